"""The catalogue of datasets (sources.yaml): what each needs, where that comes from, and how to know it."""

import os
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, nearest, read_json
from dassl.utils.archives import is_archive
from dassl.utils.download import file_hash

from . import DATASETS, imagenet
from .base import spellings
from .files import class_folders
from .published import lines_hash, split_problem
from .splits import read_split

DRIVE_URL = "https://drive.google.com/uc?export=download&id="


@cache
def catalogue():
    """sources.yaml as {"hosts": ..., "files": ..., "datasets": ...}."""
    return yaml.safe_load(Path(__file__).with_name("sources.yaml").read_text(encoding="utf-8"))


# ---- one dataset -------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One dataset to fetch."""

    name: str  # as in configs/datasets
    entry: dict  # of the catalogue
    folder: Path

    @property
    def cls(self):
        return DATASET_REGISTRY.get(self.entry["name"])

    @property
    def work(self):
        """Where what is not finished lies."""
        return self.folder / ".fetch"

    def missing(self):
        """Names of files and image folders that are not there yet, or are one folder too deep."""
        files = [name for name in self.entry["files"] if not (self.folder / name).is_file()]
        return files + self.missing_images()

    def missing_images(self):
        missing = []
        for name in self.entry["images"]:
            if not is_there(self.folder / name) or is_nested(self.folder / name):
                missing.append(name)
        return missing

    def needs_download(self):
        """Whether images are missing that are nowhere else in the dataset's folder, as `find_home` searches it."""
        return bool(self.missing_images()) and find_home(self.folder, self.entry["images"]) is None

    def sources(self, kind):
        """Eligible sources of the images; first those whose archives the user has put into the folder."""
        return sorted(eligible(self.entry["sources"], kind), key=lambda pair: not self.has_archives(pair[1]))

    def has_archives(self, archives):
        return all((self.folder / name_of(archive)).is_file() for archive in archives)

    def download_size(self, kind):
        """Bytes to download, roughly where no size was published (photographs don't shrink in an archive)."""
        sources = self.sources(kind)
        if not sources or not self.needs_download() or self.has_archives(sources[0][1]):
            return 0
        sizes = [archive.get("size") for archive in sources[0][1]]
        return sum(sizes) if all(sizes) else self.entry["unpacked"]

    def begun_size(self):
        """Bytes that an earlier run has left in the work folder."""
        return sum(path.stat().st_size for path in self.work.rglob("*") if path.is_file())

    def unpacked_size(self):
        """Bytes that unpacking will take, roughly; 0 for ImageNet while the user hasn't downloaded it."""
        waiting = [name for name in self.entry.get("archives", []) if not (self.folder / name).is_file()]
        return 0 if waiting or not self.needs_download() else self.entry["unpacked"]


def job_of(name, root):
    """The job for one name: that of a YAML file, a registered class or a folder. Raises UserError."""
    known = spellings({key: DATASET_REGISTRY.get(entry["name"]) for key, entry in catalogue()["datasets"].items()})
    if name.lower() not in known:
        if name in DATASETS:
            raise UserError(f"{name} needs no download")
        raise UserError(f'no dataset "{name}" (do you mean "{known[nearest(name, known)]}"?); --list shows all')
    key = known[name.lower()]
    entry = catalogue()["datasets"][key]
    cls = DATASET_REGISTRY.get(entry["name"])
    return Job(key, entry, cls.find_folder(root) or root / cls.dataset_dir)


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


def find_home(tree, images):
    """The uppermost folder in `tree` (at most 3 folders deep) that holds all `images`, or None.

    `images` is {name: other names under which they may lie there}.
    """
    level = [tree] if tree.is_dir() else []
    for depth in range(4):
        if depth:
            level = [folder / name for folder in level for name in class_folders(folder)]
        for folder in level:
            if all(any(is_there(folder / name) for name in (name, *others)) for name, others in images.items()):
                return folder
    return None


# ---- small files -------------------------------------------------------------------------------------------


def names_of_index(path):
    """The lines of classnames.txt from a few-shot index, which has a training image of every class."""
    rows = read_json(path)["train"]["data"]
    names = {row["impath"].split("/")[-2]: row["classname"] for row in rows}
    return [f"{wnid} {name}" for wnid, name in sorted(names.items())]


def index_problem(path):
    """What is wrong with a few-shot index of ImageNet, or None."""
    try:
        if lines_hash(names_of_index(path)) == imagenet.CLASSNAMES:
            return None
    except (UserError, LookupError, AttributeError, TypeError):
        pass  # no index at all
    return "does not hold the published class names"


def file_problem(name, path, published):
    """What is wrong with the small file `name` at `path`, or None; a split must be the `published` one."""
    try:
        if name == "classnames.txt":
            right = not imagenet.classnames_problem(path)
        elif name.endswith(".json"):
            right = not split_problem(read_split(path), published)
        else:
            right = file_hash(path) == catalogue()["files"][name]["sha256"]
    except UserError:
        right = False
    return None if right else f"is not the published {name}"


# ---- archives ----------------------------------------------------------------------------------------------


def link(source):
    """The link of {"url": ...}, of {"host": ..., "path": ...}, or of Google Drive's {"id": ...}."""
    if "host" in source:
        return f"{catalogue()['hosts'][source['host']]}/{source['path']}"
    return source.get("url") or DRIVE_URL + source["id"]


def name_of(archive):
    """The archive's file name."""
    return archive.get("name") or link(archive).rsplit("/", 1)[1]


def published_hash(archive):
    """(algorithm, hex digest), or None."""
    for algorithm in ("sha256", "md5"):
        if algorithm in archive:
            return algorithm, archive[algorithm]
    return None


def archive_problem(archive, path):
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
