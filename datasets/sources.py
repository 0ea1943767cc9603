"""The catalogue of datasets (sources.yaml): what each needs, where that comes from, and how to know it."""

import os
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, nearest, read_json
from dassl.utils.archives import is_archive
from dassl.utils.download import file_hash

from .published import CLASSNAMES, PUBLISHED, lines_hash, picks_hash
from .splits import read_split, select_shots, split_hash

DRIVE_URL = "https://drive.google.com/uc?export=download&id="


@cache
def catalogue():
    """sources.yaml as {"files": ..., "datasets": ...}, with the names of hosts filled in."""
    text = Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8")
    for host, url in yaml.safe_load(text)["hosts"].items():
        text = text.replace(f"{{{host}}}", url)
    return yaml.safe_load(text)


class Job(NamedTuple):
    """One dataset to fetch."""

    name: str  # as in configs/datasets
    entry: dict  # of the catalogue
    folder: Path

    @property
    def title(self):
        return self.entry["name"]

    @property
    def work(self):
        return self.folder / ".fetch"

    def missing(self):
        """Names of files and image folders that are not there yet, or are one folder too deep."""
        files = [name for name in self.entry["files"] if not (self.folder / name).is_file()]
        images = [name for name in self.entry["images"] if not is_there(self.folder / name)]
        nested = [name for name in self.entry["images"] if is_nested(self.folder / name)]
        return files + images + nested

    def lacks_images(self):
        return bool(set(self.missing()) & set(self.entry["images"]))

    def sources(self, kind):
        """Eligible sources of the images; before the others those whose archives the user has put into the folder."""
        return sorted(eligible(self.entry["sources"], kind), key=lambda pair: not self.by_hand(pair[1]))

    def by_hand(self, archives):
        return all((self.folder / name_of(archive)).is_file() for archive in archives)

    def size(self, kind):
        """Bytes to download, roughly where no size was published (photographs don't shrink in an archive)."""
        sources = self.sources(kind)
        if not sources or not self.lacks_images() or self.by_hand(sources[0][1]):
            return 0
        sizes = [archive.get("size") for archive in sources[0][1]]
        return sum(sizes) if all(sizes) else self.entry["unpacked"]

    def begun(self):
        """Bytes that an earlier run has left in the work folder."""
        return sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())

    def unpacked(self):
        """Bytes that unpacking will take, roughly; 0 for ImageNet while the user hasn't downloaded it."""
        waiting = [name for name in self.entry.get("archives", []) if not (self.folder / name).is_file()]
        return self.entry["unpacked"] if self.lacks_images() and not waiting else 0


def job_of(name, root):
    """The job for one name: that of a YAML file, a registered class or a folder. Raises UserError."""
    known = {key: key for key in catalogue()["datasets"]}
    for key, entry in catalogue()["datasets"].items():
        cls = DATASET_REGISTRY.get(entry["name"])
        known |= dict.fromkeys((alias.lower() for alias in (entry["name"], cls.dataset_dir, *cls.aliases)), key)
    if name.lower() not in known:
        if name in datasets.__all__:
            raise UserError(f"{name} needs no download")
        raise UserError(f'no dataset "{name}" (do you mean "{nearest(name, known)}"?); --list shows all')
    key = known[name.lower()]
    entry = catalogue()["datasets"][key]
    cls = DATASET_REGISTRY.get(entry["name"])
    folders = [root / folder for folder in (cls.dataset_dir, *cls.aliases)]
    return Job(key, entry, next((folder for folder in folders if folder.is_dir()), folders[0]))


def eligible(sources, kind):
    """[(kind of source, its content)] of the kind asked for (None: of all), in order."""
    pairs = [next(iter(source.items())) for source in sources]
    return [pair for pair in pairs if kind in (None, pair[0])]


def is_there(path):
    """Whether `path` is a file, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def is_nested(folder):
    """Whether `folder` holds nothing but a folder of the same name."""
    if not (folder / folder.name).is_dir():
        return False
    return len(list(islice((e for e in os.scandir(folder) if not e.name.startswith(".")), 2))) == 1


# ---- small files -------------------------------------------------------------------------------------------


def names_of_index(path):
    """The lines of classnames.txt from a few-shot index, which has a training image of every class."""
    rows = read_json(path)["train"]["data"]
    names = {row["impath"].split("/")[-2]: row["classname"] for row in rows}
    return [f"{wnid} {name}" for wnid, name in sorted(names.items())]


def index_fault(path):
    try:
        right = lines_hash(names_of_index(path)) == CLASSNAMES
    except (LookupError, TypeError, ValueError):
        right = False
    return None if right else "does not hold the published class names"


def file_fault(name, path, dataset):
    """What is wrong with the small file `name` at `path`, or None; `dataset` tells which split it should be."""
    try:
        if name == "classnames.txt":
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            right = lines_hash(line for line in lines if line) == CLASSNAMES
        elif name.endswith(".json"):
            right = is_published(read_split(path), PUBLISHED[dataset])
        else:
            right = file_hash(path) == catalogue()["files"][name]["sha256"]
    except (UserError, ValueError):
        right = False
    return None if right else f"is not the published {name}"


def is_published(split, published):
    """By the hash of the content; of two splits only the numbers of images and some few-shot picks are known."""
    if published.split:
        return split_hash(split) == published.split
    sizes = {part: len(items) for part, items in split.items()}
    return sizes == published.images and picks_hash(select_shots(split, shots=16, seed=1)) == published.picks


# ---- archives ----------------------------------------------------------------------------------------------


def link(archive):
    return archive.get("url") or DRIVE_URL + archive["id"]


def name_of(archive):
    return archive.get("name") or archive["url"].rsplit("/", 1)[1]


def published_hash(archive):
    """(algorithm, hex digest), or None."""
    return next(((name, archive[name]) for name in ("sha256", "md5") if name in archive), None)


def archive_fault(archive, path):
    """What is wrong with the file at `path`, or None; without a published hash any archive will do."""
    size = path.stat().st_size
    if size != archive.get("size", size):
        return f"has {size:,} bytes instead of {archive['size']:,}"
    if not published_hash(archive):
        return None if is_archive(path) else "is no archive"
    algorithm, expected = published_hash(archive)
    print(f"Checking the {algorithm.upper()} of {path.name}")
    found = file_hash(path, algorithm)
    return None if found == expected else f"has the wrong {algorithm.upper()} {found}"
