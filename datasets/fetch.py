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
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from dassl.utils import UserError, exit_code, write_atomic
from dassl.utils.archives import unpack
from dassl.utils.download import DownloadError, alone, download_file, settle_part

from . import sources
from .imagenet import class_folders, image_names
from .published import PUBLISHED, lines_hash
from .sources import archive_fault, eligible, file_fault, is_nested, is_there, job_of, link, name_of, published_hash

LARGE = 1_000_000_000  # bytes; more is not downloaded unasked
KINDS = ("mirror", "official", "drive")


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
            first_that_works(job.sources(kind), lambda archives: fetch_images(archives, job))
        if job.missing():
            raise UserError(
                f"there is still no {', '.join(job.missing())}: run again later, or download what --dry-run shows "
                f"into {job.folder} with a browser, and run again"
            )
        shutil.rmtree(job.work, ignore_errors=True)  # another run, which was first, may have done it
    command = f"python -m datasets.doctor {job.name} --root {shlex.quote(str(job.folder.parent))}"
    print(f"{job.title} is in {job.folder}. To check every file: {command}")


def first_that_works(choices, attempt):
    """Try (kind of source, content) in order until `attempt(content)` raises no UserError; print each failure."""
    if not choices:
        print("there is no source of this kind", file=sys.stderr)
    for name, content in choices:
        try:
            return attempt(content)
        except UserError as error:
            print(f"The {name} source failed: {error}", file=sys.stderr)


def fetch_file(name, job, kind):
    """Bring a small file (split, class names) unless it is there; one with other content is an error."""
    target, fetched = job.folder / name, job.work / name

    def fault(path):
        return file_fault(name, path, job.name)

    def attempt(place):
        if name == "classnames.txt" and link(place).endswith(".json"):
            from_anywhere(place, job.work / "index.json", sources.index_fault)
            lines = sources.names_of_index(job.work / "index.json")
            write_atomic(fetched, "\n".join([*lines, ""]).encode())
        else:
            from_anywhere(place, fetched, fault)
        fetched.rename(target)

    if not target.is_file():
        first_that_works(eligible(sources.catalogue()["files"][name]["sources"], kind), attempt)
    elif fault(target):
        raise UserError(f"{target} {fault(target)}: move it away and run again")


def from_anywhere(source, target, fault):
    """Download from the {"url": ...} or from Google Drive's {"id": ...}."""
    if "url" in source:
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        return download_file(source["url"].replace("https://huggingface.co", hub, 1), target, fault)
    try:
        import gdown
    except ImportError:
        try:
            return download_file(link(source), target, fault)
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
            if job.work in path.parents and not published_hash(archive):
                path.unlink()  # nothing says that the next download would be the same
        raise


def fetch_archive(archive, job):
    """The path of a verified archive: one that the user has put into the dataset's folder, or a download."""
    name = name_of(archive)
    own = job.folder / name
    if own.is_file():
        wrong = archive_fault(archive, own)
        if not wrong:
            return own
        print(f"{own} {wrong}: not used", file=sys.stderr)
    # other bytes under the same name must not go on where these broke off
    identity = published_hash(archive) or ("", hashlib.sha256(link(archive).encode()).hexdigest())
    target = job.work / identity[1][:8] / name
    target.parent.mkdir(exist_ok=True)
    if not target.is_file():
        from_anywhere(archive, target, lambda path: archive_fault(archive, path))
    return target


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
        if is_wanted(entry, job) and not is_there(target):
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
            if all(any(is_there(folder / n) for n in (name, *others)) for name, others in images.items()):
                return folder
        level = [folder / name for folder in level for name in class_folders(folder)]
    return None


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
        if not is_there(target) and archive.is_file():
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
        print(
            IMAGENET_STEPS.format(
                folder=job.folder,
                root=shlex.quote(str(job.folder.parent)),
                archives="\n".join(
                    f"       {name}  {facts['what']}, {gigabytes(facts['about'])}, MD5 {facts['md5']}"
                    for name, facts in job.entry["archives"].items()
                ),
            )
        )
        raise UserError(f"it is not complete: {'; '.join(faults)}")


IMAGENET_STEPS = """\
ImageNet can't be downloaded without an account. What to do:
  1. Sign up at https://image-net.org/download-images.php and accept the terms.
  2. Under ILSVRC2012 download these two into {folder}
{archives}
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
    classes = dict(re.findall(r"^mv (ILSVRC2012_val_\d{8}\.JPEG) (n\d{8})/[ \t]*$", text, re.MULTILINE))
    for name in tqdm([name for name in flat if name in classes], desc="sorting val", unit=" files"):
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
        default=Path(os.environ.get("DATA") or "data"),
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
    names = args.datasets if args.datasets and "all" not in args.datasets else sources.catalogue()["datasets"]
    jobs = list({job.name: job for job in (job_of(name, root) for name in names)}.values())
    if args.list:
        return show_list(jobs)
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


def show_list(jobs):
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
    download = f"{gigabytes(job.size(kind))} to download" if job.entry["sources"] else "to be downloaded by hand"
    room = gigabytes(job.entry["unpacked"])
    print(f"{job.title}: {download}, about {room} unpacked in {job.folder}. Licence: {job.entry['licence']}")
    if details:
        show_sources(job, kind)


def show_sources(job, kind):
    """All links for what is missing, in the order in which they are tried."""
    for name in (name for name in job.entry["files"] if name in job.missing()):
        for source, place in eligible(sources.catalogue()["files"][name]["sources"], kind):
            print(f"  {name} from {source}: {link(place)}")
    for source, archives in job.sources(kind) if job.lacks_images() else []:
        for archive in archives:
            algorithm, _ = published_hash(archive) or ("no published hash", "")
            size = gigabytes(archive["size"]) if "size" in archive else "size unknown"
            print(f"  {name_of(archive)} from {source}: {link(archive)} ({size}, {algorithm})")


def check_disk(jobs, kind):
    """Raise UserError unless each disk has room for all that is unpacked on it and the largest download."""
    unpacked, largest, begun, places = Counter(), Counter(), Counter(), {}
    for job in jobs:
        place = next(folder for folder in (job.folder, *job.folder.parents) if folder.exists())
        disk = place.stat().st_dev
        places[disk] = place
        unpacked[disk] += job.unpacked()
        largest[disk] = max(largest[disk], job.size(kind))
        begun[disk] += job.begun()
    for disk, place in places.items():
        needed = max(0, unpacked[disk] + largest[disk] - begun[disk])
        free = shutil.disk_usage(place).free
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
    try:
        answer = input(f"Download {gigabytes(size)}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("nothing downloaded")


def gigabytes(size):
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def main(argv=None):
    """Exit code: 0 when all is there, 1 after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(parse(argv)), "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
