"""Fetch datasets: download, verify, unpack, and bring into the folders that the loaders (and CoOp's) read.

    python -m datasets.fetch eurosat dtd --root /data

Sources, sizes, hashes and licences are in sources.yaml. Work in progress lies in <dataset>/.fetch; a folder of
images gets its name when it is complete, so what is there needs no second look.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml
from tqdm import tqdm

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, nearest, read_json, write_atomic
from dassl.utils.archives import BadArchive, is_archive, unpack
from dassl.utils.download import DownloadError, alone, download_file, file_hash, settle_part

from .imagenet import class_folders
from .splits import PARTS, read_split, select_shots, split_hash

LARGE = 1_000_000_000  # bytes; more is not downloaded unasked
KINDS = ("mirror", "official", "drive")
DRIVE_URL = "https://drive.google.com/uc?export=download&id="
IMAGENET_CLASSES, IMAGENET_COUNTS = 1000, {"train": 1_281_167, "val": 50_000}


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
    def work(self):
        return self.folder / ".fetch"

    def missing(self):
        """Names of files and image folders that are not there yet, or are one folder too deep."""
        files = [name for name in self.entry["files"] if not (self.folder / name).is_file()]
        images = [name for name in self.entry["images"] if not (self.folder / name).exists()]
        nested = [name for name in self.entry["images"] if is_nested(self.folder / name)]
        return files + images + nested

    def lacks_images(self):
        return bool(set(self.missing()) & set(self.entry["images"]))

    def size(self, kind):
        """Bytes to download, roughly where no size was published (photographs don't shrink in an archive)."""
        sources = eligible(self.entry["sources"], kind)
        if not sources or not self.lacks_images():
            return 0
        sizes = [archive.get("size") for archive in sources[0][1]]
        return sum(sizes) if all(sizes) else self.entry["unpacked"]

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


# ---- one dataset -------------------------------------------------------------------------------------------


def fetch(job, kind):
    """Bring everything that `job` lacks; raises UserError that names what could not be had."""
    job.work.mkdir(parents=True, exist_ok=True)
    with alone(job.work / "lock"):
        settle(job.folder, job, strict=False)  # what the user has unpacked may only need another name
        for name in job.entry["files"]:
            fetch_file(name, job, kind)
        if job.name == "imagenet":
            prepare_imagenet(job, kind)
        elif job.lacks_images():
            first_that_works(job.entry["sources"], kind, lambda archives: fetch_images(archives, job))
        left = job.missing()
        if left:
            raise UserError(f"{job.entry['name']} still lacks {', '.join(left)}: {by_hand(job)}")
        shutil.rmtree(job.work, ignore_errors=True)  # another run, which was first, may have done it
    command = f"python -m datasets.doctor {job.name} --root {job.folder.parent}"
    print(f"{job.entry['name']} is in {job.folder}. To check every file: {command}")


def first_that_works(sources, kind, attempt):
    """Try sources in order until `attempt(content)` raises no UserError; each failure is reported. -> success"""
    for name, content in eligible(sources, kind):
        try:
            attempt(content)
            return True
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return False


def by_hand(job):
    """What a user can do whom no source serves."""
    if job.name == "imagenet":
        return "see the steps above"
    links = [
        archive.get("url") or DRIVE_URL + archive["id"]
        for _, archives in eligible(job.entry["sources"], None)
        for archive in archives
    ]
    return f"run again later, or put one of these into {job.folder} and run again: {', '.join(links)}"


def fetch_file(name, job, kind):
    """Bring a small file (split, class names) unless it is there; one with other content is an error."""
    target = job.folder / name
    if target.is_file():
        wrong = file_fault(name, target)
        if wrong:
            raise UserError(f"{target} {wrong}: move it away and run again")
        return

    def attempt(source):
        fetched = job.work / name
        if name == "classnames.txt" and source.endswith(".json"):
            index = job.work / "index.json"
            download_file(source, index, lambda path: None)
            write_atomic(fetched, names_of_index(index).encode())
        else:
            from_anywhere({"url": source} if "/" in source else {"id": source}, fetched, lambda p: file_fault(name, p))
        wrong = file_fault(name, fetched)
        if wrong:
            raise DownloadError(f"{source} {wrong}")
        fetched.rename(target)

    first_that_works(catalogue()["files"][name]["sources"], kind, attempt)


def names_of_index(path):
    """The text of classnames.txt from a few-shot index with one training image of every class."""
    rows = read_json(path)["train"]["data"]
    names = {row["impath"].split("/")[-2]: row["classname"] for row in rows}
    return "".join(f"{wnid} {name}\n" for wnid, name in sorted(names.items()))


def file_fault(name, path):
    """What is wrong with the small file `name` of the catalogue at `path`, or None."""
    facts = catalogue()["files"][name]
    try:
        if "lines" in facts:
            lines = path.read_text(encoding="utf-8").split("\n")[:1000]
            right = hashlib.sha256("\n".join(lines).encode()).hexdigest() == facts["lines"]
        elif "sha256" in facts:
            right = file_hash(path) == facts["sha256"]
        else:
            right = is_published_split(read_split(path), facts)
    except (UserError, ValueError):
        right = False
    return None if right else f"is not the published {name}"


def is_published_split(split, facts):
    if "content" in facts:
        return split_hash(split) == facts["content"]
    picks = select_shots(split, shots=16, seed=1)
    short = [hashlib.sha256("\n".join(i.path for i in picks[part]).encode()).hexdigest()[:12] for part in picks]
    return [len(split[part]) for part in PARTS] == facts["counts"] and "/".join(short) == facts["picks"]


def from_anywhere(source, target, fault):
    """Download from the {"url": ...} or from Google Drive's {"id": ...}."""
    if "url" in source:
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        return download_file(source["url"].replace("https://huggingface.co", hub, 1), target, fault)
    try:
        import gdown
    except ImportError:
        try:
            return download_file(DRIVE_URL + source["id"], target, fault)
        except DownloadError as error:
            raise DownloadError(f"{error}; for Google Drive's pages: pip install gdown, and run again") from error
    fetched = target.with_name(f"{target.name}.drive")  # gdown keeps its own unfinished files beside it
    try:
        found = gdown.download(id=source["id"], output=str(fetched), resume=True)
    except Exception as error:  # its errors have no common type over its versions
        raise DownloadError(f"Google Drive {source['id']}: {' '.join(str(error).split())}") from error
    if not found:  # how versions before 6 report a failure
        raise DownloadError(f"Google Drive {source['id']}: gdown could not download it (quota?)")
    return settle_part(fetched, target, fault, f"Google Drive {source['id']}")


# ---- images ------------------------------------------------------------------------------------------------


def fetch_images(archives, job):
    """Download the archives of one source (or take them from the dataset's folder), unpack, move into place."""
    paths = [fetch_archive(archive, job) for archive in archives]
    tree = fresh_folder(job.work / "unpacked")
    for path in paths:
        try:
            unpack(path, tree, limit=3 * job.entry["unpacked"])
        except BadArchive:
            if path.parent == job.work:
                path.unlink()
            raise
    settle(tree, job)


def fetch_archive(archive, job):
    """The path of a verified archive: one that the user has put into the dataset's folder, or a download."""
    name = archive.get("name") or archive["url"].rsplit("/", 1)[1]
    own = job.folder / name
    if own.is_file():
        wrong = archive_fault(archive, own)
        if not wrong:
            return own
        print(f"{own} {wrong}: not used", file=sys.stderr)
    # other bytes under the same name must not go on where these broke off
    identity = archive.get("sha256") or archive.get("md5") or hashlib.md5(str(archive).encode()).hexdigest()
    target = job.work / f"{identity[:8]}-{name}"
    if not target.is_file():
        from_anywhere(archive, target, lambda path: archive_fault(archive, path))
    return target


def archive_fault(facts, path):
    """What is wrong with the archive at `path`, or None; without a published hash any archive will do."""
    size = path.stat().st_size
    if size != facts.get("size", size):
        return f"has {size:,} bytes instead of {facts['size']:,}"
    algorithm = next((name for name in ("sha256", "md5") if name in facts), None)
    if algorithm is None:
        return None if is_archive(path) else "is no archive"
    print(f"Checking {path.name}")
    found = file_hash(path, algorithm)
    return None if found == facts[algorithm] else f"has the wrong {algorithm.upper()} {found}"


def fresh_folder(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def settle(tree, job, strict=True):
    """Move what the dataset needs from wherever it is in `tree` (at most 3 folders deep) into its folder.

    What lies beside it comes along, but not caches of other codebases and nothing that exists already. Raises
    UserError if `strict` and `tree` doesn't hold all of the dataset's images.
    """
    home = find_home(tree, job.entry["images"])
    if home is None and strict:
        found = ", ".join(sorted(entry.name for entry in islice(tree.iterdir(), 5))) or "nothing"
        raise UserError(f"the archives hold no {' and '.join(job.entry['images'])}, but {found}")
    renamed = {other: name for name, others in job.entry["images"].items() for other in others}
    for entry in sorted(home.iterdir()) if home else []:
        target = job.folder / renamed.get(entry.name, entry.name)
        unwanted = entry.name.startswith((".", "split_fewshot")) or entry.suffix == ".pkl"
        if (
            not unwanted
            and not target.exists()
            and not (entry.name in job.entry["files"] and file_fault(entry.name, entry))
        ):
            entry.rename(target)
    for name in job.entry["images"]:
        flatten(job.folder / name)


def find_home(tree, images):
    """The uppermost folder in `tree` that holds all `images`, under their names or other ones; or None."""
    level = [tree]
    for _ in range(4):
        for folder in level:
            if all(any((folder / n).exists() for n in (name, *others)) for name, others in images.items()):
                return folder
        level = [
            Path(e)
            for folder in level
            for e in sorted(os.scandir(folder), key=lambda e: e.name)
            if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")
        ]
    return None


def is_nested(folder):
    """Whether `folder` holds nothing but a folder of the same name."""
    if not (folder / folder.name).is_dir():
        return False
    return len(list(islice((e for e in os.scandir(folder) if not e.name.startswith(".")), 2))) == 1


def flatten(folder):
    while is_nested(folder):
        outer = folder.with_name(f"{folder.name}-outer")
        folder.rename(outer)
        (outer / folder.name).rename(folder)
        shutil.rmtree(outer)


# ---- ImageNet ----------------------------------------------------------------------------------------------


def prepare_imagenet(job, kind):
    """Unpack what the user has downloaded, sort the validation images into classes, and count everything."""
    images = job.folder / "images"
    for name, facts in job.entry["archives"].items():
        target = images / ("train" if "train" in name else "val")
        archive = job.folder / name
        if not target.exists() and archive.is_file():
            wrong = archive_fault(facts, archive)
            if wrong:
                raise UserError(f"{archive} {wrong}: download it again")
            tree = fresh_folder(job.work / target.name)
            unpack(archive, tree, limit=3 * job.entry["unpacked"])
            images.mkdir(exist_ok=True)
            tree.rename(target)
    sort_val(images / "val", job, kind)
    faults = imagenet_faults(images)
    if faults:
        print(IMAGENET_STEPS.format(folder=job.folder, root=job.folder.parent))
        raise UserError(f"ImageNet is not complete: {'; '.join(faults)}")


IMAGENET_STEPS = """\
ImageNet can't be downloaded without an account. What to do:
  1. Sign up at https://image-net.org/download-images.php and accept the terms.
  2. Under ILSVRC2012 download these two into {folder}
       ILSVRC2012_img_train.tar   Training images (Task 1 & 2), 138 GiB, MD5 1d675b47d978889d74fa0da5fadfb00e
       ILSVRC2012_img_val.tar     Validation images (all tasks), 6.3 GiB, MD5 29b22e2961454d5413ddabcf34fc5622
  3. Run: python -m datasets.fetch imagenet --root {root}
     It verifies and unpacks them, sorts the validation images into class folders and counts. (If you have
     unpacked them before: {folder}/images/train and {folder}/images/val is where they belong.)"""


def sort_val(folder, job, kind):
    """Move validation images that lie flat in `folder`, as the archive brings them, into class folders."""
    flat = (
        sorted(e.name for e in os.scandir(folder) if e.is_file() and e.name.startswith("ILSVRC2012_val_"))
        if folder.is_dir()
        else []
    )
    if not flat:
        return
    listing = job.work / "valprep.sh"
    sources = catalogue()["files"]["valprep.sh"]["sources"]
    if not listing.is_file() and not first_that_works(
        sources, kind, lambda url: download_file(url, listing, lambda path: file_fault("valprep.sh", path))
    ):
        raise UserError(f"can't sort {folder} without the list of its classes: run again later, or put it at {listing}")
    classes = dict(re.findall(r"^mv (ILSVRC2012_val_\d{8}\.JPEG) (n\d{8})/$", listing.read_text(), re.MULTILINE))
    for name in tqdm(flat, desc="sorting val", unit=" files"):
        if name in classes:
            (folder / classes[name]).mkdir(exist_ok=True)
            (folder / name).rename(folder / classes[name] / name)


def imagenet_faults(images):
    """What is missing or too much in images/train and images/val, as a list of short texts."""
    faults = []
    for part, expected in IMAGENET_COUNTS.items():
        if not (images / part).is_dir():
            faults.append(f"no {images / part}")
            continue
        folders = class_folders(images / part)
        found = sum(e.name.endswith(".JPEG") for f in folders for e in os.scandir(images / part / f))
        if len(folders) != IMAGENET_CLASSES:
            faults.append(f"{images / part} has {len(folders)} class folders instead of {IMAGENET_CLASSES}")
        if found != expected:
            faults.append(f"{images / part} has {found:,} images in class folders instead of {expected:,}")
    return faults


# ---- command line ------------------------------------------------------------------------------------------


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m datasets.fetch",
        description="Download datasets, verify and unpack them, and bring them into the folders the loaders read. "
        "An interrupted run goes on where it stopped; what is there is left alone.",
        epilog="HF_ENDPOINT replaces https://huggingface.co; proxies are taken from the environment. "
        "Google Drive is asked through gdown if that is installed. Sources: datasets/sources.yaml.",
    )
    parser.add_argument("datasets", nargs="*", metavar="NAME", help="eurosat, dtd, ... (see --list), or all")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DATA", "data")),
        help="folder of all datasets (default: $DATA, else ./data)",
    )
    parser.add_argument("--source", choices=KINDS, help="use only this kind of source (default: all, in order)")
    parser.add_argument(
        "--list", action="store_true", help="show all datasets, their sizes, licences, and what is there"
    )
    parser.add_argument("--dry-run", action="store_true", help="show sources and sizes, download nothing")
    parser.add_argument("--yes", action="store_true", help="don't ask before downloading more than 1 GB")
    args = parser.parse_args(argv)
    if not args.datasets and not args.list:
        parser.error("name datasets, or all; --list shows them")
    return args


def run(args):
    root = args.root.expanduser().absolute()
    names = args.datasets if args.datasets and "all" not in args.datasets else catalogue()["datasets"]
    jobs = list({job.name: job for job in (job_of(name, root) for name in names)}.values())
    if args.list:
        return show_list(jobs, args.source)
    for job in jobs:
        describe(job, args.source, details=args.dry_run)
    todo = [job for job in jobs if job.missing() or job.name == "imagenet"]  # made by hand: counted every time
    check_disk(todo, args.source)
    if args.dry_run:
        return None
    confirm(sum(job.size(args.source) for job in todo), args.yes)
    failed = [job.entry["name"] for job in todo if not report(job, args.source)]
    if failed:
        raise UserError(f"not complete: {', '.join(failed)} (reasons above); the same command goes on from here")
    return None


def report(job, kind):
    """Fetch one of several datasets; a failure is printed and leaves the others their turn. -> success"""
    try:
        fetch(job, kind)
        return True
    except (UserError, OSError) as error:
        print(f"Error: {job.entry['name']}: {error}", file=sys.stderr)
        return False


def show_list(jobs, kind):
    for job in jobs:
        lacking = job.missing()
        state = f"lacks {', '.join(lacking)}" if lacking else f"in {job.folder}"
        print(f"{job.name:16} {gigabytes(job.entry['unpacked']):>9}  {state}\n{'':27} {job.entry['licence']}")


def describe(job, kind, details):
    """What will happen to one dataset: its size and licence, and with `details` every source."""
    lacking = job.missing()
    if not lacking:
        print(f"{job.entry['name']}: already in {job.folder}")
        return
    size = job.size(kind)
    print(
        f"{job.entry['name']}: {gigabytes(size)} to download into {job.folder}, "
        f"about {gigabytes(job.entry['unpacked'])} unpacked. Licence: {job.entry['licence']}"
    )
    if details:
        for name in job.entry["files"]:
            for source, place in eligible(catalogue()["files"][name]["sources"], kind):
                print(f"  {name} from {source}: {place}")
        for source, archives in eligible(job.entry.get("sources", []), kind):
            for archive in archives:
                known = next((a.upper() for a in ("sha256", "md5") if a in archive), "no published hash")
                size = gigabytes(archive["size"]) if "size" in archive else "size unknown"
                print(f"  images from {source}: {archive.get('url') or archive['id']} ({size}, {known})")


def check_disk(jobs, kind):
    """Raise UserError unless each disk has room for all that is unpacked on it and the largest download."""
    unpacked, largest, places = Counter(), Counter(), {}
    for job in jobs:
        place = next(folder for folder in (job.folder, *job.folder.parents) if folder.exists())
        disk = place.stat().st_dev
        places[disk] = place
        unpacked[disk] += job.unpacked()
        largest[disk] = max(largest[disk], job.size(kind))
    for disk, place in places.items():
        needed, free = unpacked[disk] + largest[disk], shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"{place} has {gigabytes(free)} free, and {gigabytes(needed)} are needed (archives and images): "
                "make room, choose another --root or fewer datasets"
            )


def confirm(size, yes):
    """Ask before a large download; without a terminal --yes is needed."""
    if size <= LARGE or yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{gigabytes(size)} to download: add --yes to agree")
    if input(f"Download {gigabytes(size)}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing downloaded")


def gigabytes(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def main(argv=None):
    """Exit code: 0 when all is there, 1 after an error, 130 after Ctrl-C."""
    try:
        run(parse(argv))
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
