"""Fetch datasets: download, verify, unpack, and bring into the folders that the loaders (and CoOp's) read.

    python -m datasets.fetch eurosat dtd --root /data

Sources, sizes, hashes and licences are in sources.yaml. Work in progress lies in <dataset>/.fetch; a folder of
images gets its name when it is complete, so what is there needs no second look.
"""

import argparse
import hashlib
import os
import re
import shlex
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
from dassl.utils.archives import is_archive, unpack
from dassl.utils.download import DownloadError, alone, download_file, file_hash, settle_part

from .imagenet import class_folders, image_names
from .published import CLASSNAMES, PUBLISHED, lines_hash, picks_hash
from .splits import read_split, select_shots, split_hash

LARGE = 1_000_000_000  # bytes; more is not downloaded unasked
KINDS = ("mirror", "official", "drive")
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
        for name in job.entry["files"]:
            fetch_file(name, job, kind)
        if job.name == "imagenet":
            prepare_imagenet(job, kind)
        elif job.lacks_images():
            settle(job.folder, job)  # what the user has unpacked may only need another name
        if job.lacks_images():
            first_that_works(job.entry["sources"], kind, lambda archives: fetch_images(archives, job))
        if job.missing():
            raise UserError(f"there is still no {', '.join(job.missing())}: {by_hand(job)}")
        shutil.rmtree(job.work, ignore_errors=True)  # another run, which was first, may have done it
    command = f"python -m datasets.doctor {job.name} --root {shlex.quote(str(job.folder.parent))}"
    print(f"{job.title} is in {job.folder}. To check every file: {command}")


def first_that_works(sources, kind, attempt):
    """Try sources in order until `attempt(content)` raises no UserError; each failure is reported. -> success"""
    pairs = eligible(sources, kind)
    if not pairs:
        print(f"no source is of the kind {kind}", file=sys.stderr)
    for name, content in pairs:
        try:
            attempt(content)
            return True
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
    return False


def by_hand(job):
    """What a user can do whom no source serves."""
    ways = []
    for name in set(job.missing()) & set(job.entry["files"]):
        sources = eligible(catalogue()["files"][name]["sources"], None)
        ways.append(f"{name} from {' or '.join(link(as_archive(place)) for _, place in sources)}")
    if job.lacks_images():
        sources = eligible(job.entry["sources"], None)
        ways.append(f"the images from {' or '.join(' with '.join(map(link, archives)) for _, archives in sources)}")
    return f"run again later, or download into {job.folder} by hand, and run again: {'; '.join(ways)}"


def as_archive(place):
    """{"url": ...} or, of a Google Drive id, {"id": ...}."""
    return {"url" if "/" in place else "id": place}


def link(archive):
    return archive.get("url") or DRIVE_URL + archive["id"]


def fetch_file(name, job, kind):
    """Bring a small file (split, class names) unless it is there; one with other content is an error."""
    target, fetched = job.folder / name, job.work / name

    def fault(path):
        return file_fault(name, path, job.name)

    def attempt(place):
        if name == "classnames.txt" and place.endswith(".json"):
            download_file(place, job.work / "index.json", index_fault)
            write_atomic(fetched, "\n".join([*names_of_index(job.work / "index.json"), ""]).encode())
        else:
            from_anywhere(as_archive(place), fetched, fault)
        fetched.rename(target)

    if not target.is_file():
        first_that_works(catalogue()["files"][name]["sources"], kind, attempt)
    elif fault(target):
        raise UserError(f"{target} {fault(target)}: move it away and run again")


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
    try:
        for path in paths:
            unpack(path, tree, limit=3 * job.entry["unpacked"])
        if not settle(tree, job):
            found = ", ".join(sorted(entry.name for entry in islice(tree.iterdir(), 5))) or "nothing"
            raise UserError(f"the archives hold no {' and '.join(job.entry['images'])}, but {found}")
    except UserError:
        for archive, path in zip(archives, paths, strict=True):
            if path.parent == job.work and not published_hash(archive):
                path.unlink()  # nothing says that the next download would be the same
        raise


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
    identity = published_hash(archive) or ("", hashlib.sha256(link(archive).encode()).hexdigest())
    target = job.work / f"{identity[1][:8]}-{name}"
    if not target.is_file():
        from_anywhere(archive, target, lambda path: archive_fault(archive, path))
    return target


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


def fresh_folder(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def settle(tree, job):
    """Move what the dataset needs from wherever it is in `tree` (at most 3 folders deep) into its folder.

    What lies beside it comes along, but neither caches of other codebases nor what exists already. Returns
    whether `tree` has it all.
    """
    images = job.entry["images"]
    home = find_home(tree, images)
    renamed = {other: name for name, others in images.items() for other in others}
    for entry in sorted(home.iterdir()) if home else []:
        target = job.folder / renamed.get(entry.name, entry.name)
        if is_wanted(entry, job) and not target.exists():
            entry.rename(target)
    for name in images:
        flatten(job.folder / name)
    return home is not None


def is_wanted(entry, job):
    if entry.name in job.entry["files"]:
        return file_fault(entry.name, entry, job.name) is None
    return not entry.name.startswith((".", "split_fewshot")) and entry.suffix != ".pkl"


def find_home(tree, images):
    """The uppermost folder in `tree` that holds all `images`, under their names or other ones; or None."""
    level = [tree]
    for _ in range(4):
        for folder in level:
            if all(any((folder / n).exists() for n in (name, *others)) for name, others in images.items()):
                return folder
        level = [folder / name for folder in level for name in class_folders(folder)]
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
        print(IMAGENET_STEPS.format(folder=job.folder, root=shlex.quote(str(job.folder.parent))))
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
    flat = sorted(path.name for path in folder.glob("ILSVRC2012_val_*.JPEG"))
    if not flat:
        return
    fetch_file("valprep.sh", job, kind)
    if not (job.folder / "valprep.sh").is_file():
        raise UserError(f"{folder} can't be sorted without valprep.sh, which names the classes: run again later")
    text = (job.folder / "valprep.sh").read_text(encoding="utf-8")
    classes = dict(re.findall(r"^mv (ILSVRC2012_val_\d{8}\.JPEG) (n\d{8})/$", text, re.MULTILINE))
    for name in tqdm(flat, desc="sorting val", unit=" files"):
        (folder / classes[name]).mkdir(exist_ok=True)
        (folder / name).rename(folder / classes[name] / name)


def imagenet_faults(images):
    """What is wrong with the folders and numbers in images/train and images/val, as a list of short texts."""
    published, faults = PUBLISHED["imagenet"], []
    for part in (images / "train", images / "val"):
        if not part.is_dir():
            faults.append(f"no {part}")
            continue
        folders = class_folders(part)
        found = sum(len(image_names(part / folder)) for folder in folders)
        if lines_hash(folders) != published.ids:
            faults.append(f"the {len(folders)} folders in {part} are not the {published.classes} classes")
        if found != published.images[part.name]:
            faults.append(f"{part} has {found:,} images in class folders instead of {published.images[part.name]:,}")
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
    failed = [job.title for job in todo if not report(job, args.source)]
    if failed:
        raise UserError(f"not complete: {', '.join(failed)} (reasons above); the same command goes on from here")
    return None


def report(job, kind):
    """Fetch one of several datasets; a failure is printed and leaves the others their turn. -> success"""
    try:
        fetch(job, kind)
        return True
    except (UserError, OSError) as error:
        print(f"Error: {job.title}: {error}", file=sys.stderr)
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
        print(f"{job.title}: already in {job.folder}")
        return
    size = job.size(kind)
    print(
        f"{job.title}: {gigabytes(size)} to download into {job.folder}, "
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
