"""Fetch datasets: download, verify, unpack, and bring into the folders that the loaders (and CoOp's) read.

    python -m datasets.fetch eurosat dtd --root /data

Sources, sizes, hashes and licences are in sources.yaml. What is not finished lies in <dataset>/.fetch; a folder of
images gets its name when it is complete, so what is there needs no second look.
"""

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

from dassl.utils import Parser, UserError, exit_code, read_text, write_atomic
from dassl.utils.archives import unpack
from dassl.utils.download import DownloadError, alone, download_file, settle_part

from . import sources
from .files import class_folders, is_image_name
from .imagenet import file_names
from .published import lines_hash
from .sources import (
    archive_problem,
    eligible,
    file_problem,
    find_home,
    is_nested,
    is_there,
    job_of,
    link,
    name_of,
    published_hash,
)

LARGE = 1_000_000_000  # bytes; more is not downloaded unasked
KINDS = ("mirror", "official", "drive")
IMAGENET_STEPS = """\
ImageNet can't be downloaded without an account. What to do:
  1. Sign up at https://image-net.org/download-images.php and accept the terms.
  2. Under ILSVRC2012 download these two into {folder}
{archives}
  3. Run: python -m datasets.fetch imagenet --root {root}
     It verifies and unpacks them, sorts the validation images into class folders and counts. (If you have
     unpacked them before: {folder}/images/train and {folder}/images/val is where they belong.)"""


# ---- one dataset -------------------------------------------------------------------------------------------


def fetch(job, kind):
    """Bring everything that `job` lacks; raises UserError that names what could not be had."""
    job.work.mkdir(parents=True, exist_ok=True)
    with alone(job.work / "lock"):
        for name in job.entry["files"]:
            fetch_file(name, job, kind)
        if job.name == "imagenet":
            prepare_imagenet(job, kind)
        elif job.missing_images():
            settle(job.folder, job)  # what the user has unpacked may only need another name
        if job.missing_images():
            try_sources(job, kind)
        if job.missing():
            raise UserError(
                f"there is still no {', '.join(job.missing())}: run again later, or download what --dry-run shows "
                f"into {job.folder} with a browser, and run again"
            )
        shutil.rmtree(job.work, ignore_errors=True)  # another run, which was first, may have done it
    command = f"python -m datasets.doctor {job.name} --root {shlex.quote(str(job.folder.parent))}"
    print(f"{job.entry['name']} is in {job.folder}. To check every file: {command}")


def fetch_file(name, job, kind):
    """Bring a small file (split, class names) unless it is there; one with other content is an error.

    A source that fails is printed, and the next one is tried.
    """
    target, fetched, published = job.folder / name, job.work / name, job.cls.published
    if target.is_file():
        if wrong := file_problem(name, target, published):
            raise UserError(f"{target} {wrong}: move it away and run again")
        return
    places = eligible(sources.catalogue()["files"][name]["sources"], kind)
    if not places:
        print(f"{name}: there is no source of this kind", file=sys.stderr)
    for source, place in places:
        try:
            if name == "classnames.txt" and link(place).endswith(".json"):
                index = job.work / "index.json"
                download(place, index, sources.index_problem)
                write_atomic(fetched, "\n".join([*sources.names_of_index(index), ""]).encode())
            else:
                download(place, fetched, lambda path: file_problem(name, path, published))
            fetched.rename(target)
            return
        except UserError as error:
            print(f"The {source} source failed: {error}", file=sys.stderr)


def try_sources(job, kind):
    """Bring the images from the first source that works; those that fail are printed."""
    choices = job.sources(kind)
    if not choices:
        print("there is no source of this kind", file=sys.stderr)
    for source, archives in choices:
        try:
            fetch_images(archives, job)
            return
        except UserError as error:
            print(f"The {source} source failed: {error}", file=sys.stderr)


def download(source, target, problem):
    """Download from a link, or from Google Drive; `problem(path)` says what is wrong with the file, or None."""
    if "id" not in source:
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        return download_file(link(source).replace("https://huggingface.co", hub, 1), target, problem)
    try:
        import gdown
    except ImportError:
        try:
            return download_file(link(source), target, problem)
        except DownloadError as error:
            raise DownloadError(f"{error}; for Google Drive's pages: pip install gdown, and run again") from error
    fetched = target.with_name(f"{target.name}.drive")  # gdown keeps its own unfinished files beside it
    try:
        found = gdown.download(id=source["id"], output=str(fetched), resume=True)
    except Exception as error:  # its errors have no common type over its versions
        raise DownloadError(f"Google Drive {source['id']}: {' '.join(str(error).split())}") from error
    if not found:  # how versions before 6 report a failure
        raise DownloadError(f"Google Drive {source['id']}: gdown could not download it (quota?)")
    return settle_part(fetched, target, problem, f"Google Drive {source['id']}")


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
            names = ", ".join(path.name for path in paths)
            raise UserError(f"{names} should hold {' and '.join(job.entry['images'])}, but holds {found}")
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
        wrong = archive_problem(archive, own)
        if not wrong:
            return own
        print(f"{own} {wrong}: not used", file=sys.stderr)
    # a folder for each content: other bytes under the same name must not go on where these broke off
    identity = published_hash(archive) or ("", hashlib.sha256(link(archive).encode()).hexdigest())
    target = job.work / identity[1][:8] / name
    target.parent.mkdir(exist_ok=True)
    if not target.is_file():
        download(archive, target, lambda path: archive_problem(archive, path))
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
        if is_there(entry) and is_wanted(entry, job) and not is_there(target):
            bring(entry, target, tree)
    for name in images:
        flatten(job.folder / name)
    return home is not None


def is_wanted(entry, job):
    if entry.name in job.entry["files"]:
        return file_problem(entry.name, entry, job.cls.published) is None
    return not entry.name.startswith((".", "split_fewshot")) and entry.suffix != ".pkl"


def bring(path, target, tree):
    """Move `path` to `target`; what lies outside `tree`, behind a link, stays where it is and is linked to."""
    real = path.resolve()
    if tree.resolve() in real.parents:
        path.rename(target)
    else:
        target.symlink_to(real)


def flatten(folder):
    """Take folders of the same name out of each other until one is left; a link then leads to that one."""
    while is_nested(folder):
        outer = folder.with_name(f"{folder.name}-outer")
        folder.rename(outer)
        bring(outer / folder.name, folder, folder.parent)
        if outer.is_symlink():
            outer.unlink()
        else:
            shutil.rmtree(outer)


# ---- ImageNet ----------------------------------------------------------------------------------------------


def prepare_imagenet(job, kind):
    """Unpack what the user has downloaded, sort the validation images into classes, and count everything."""
    images = job.folder / "images"
    images.mkdir(exist_ok=True)
    for name, facts in job.entry["archives"].items():
        target = images / ("train" if "train" in name else "val")
        elsewhere = job.folder / target.name  # imagenet/train, as other codebases have it
        if not is_there(target) and is_there(elsewhere):
            bring(elsewhere, target, job.folder)
        flatten(target)
        archive = job.folder / name
        if not is_there(target) and archive.is_file():
            if wrong := archive_problem(facts, archive):
                raise UserError(f"{archive} {wrong}: download it again")
            tree = fresh_folder(job.work / target.name)
            unpack(archive, tree, limit=3 * job.entry["unpacked"])
            tree.rename(target)
    sort_val(images / "val", job, kind)
    wrong = imagenet_problems(images, job.cls.published)
    if wrong:
        archives = []
        for name, facts in job.entry["archives"].items():
            archives.append(f"       {name}  {facts['what']}, {gigabytes(facts['about'])}, MD5 {facts['md5']}")
        root = shlex.quote(str(job.folder.parent))
        print(IMAGENET_STEPS.format(folder=job.folder, root=root, archives="\n".join(archives)))
        raise UserError(f"it is not complete: {'; '.join(wrong)}")


def sort_val(folder, job, kind):
    """Move validation images that lie flat in `folder`, as the archive brings them, into class folders."""
    flat = sorted(path.name for path in folder.glob("ILSVRC2012_val_*.JPEG"))
    if not flat:
        return
    fetch_file("valprep.sh", job, kind)
    if not (job.folder / "valprep.sh").is_file():
        raise UserError(f"{folder} can't be sorted without valprep.sh, which names the classes: run again later")
    text = read_text(job.folder / "valprep.sh")
    classes = dict(re.findall(r"^mv (ILSVRC2012_val_\d{8}\.JPEG) (n\d{8})/[ \t]*$", text, re.MULTILINE))
    for name in tqdm([name for name in flat if name in classes], desc="sorting val", unit=" files"):
        (folder / classes[name]).mkdir(exist_ok=True)
        (folder / name).rename(folder / classes[name] / name)


def imagenet_problems(images, published):
    """What is wrong with the folders and numbers in images/train and images/val, as a list of short texts."""
    problems = []
    for part in (images / "train", images / "val"):
        if not part.is_dir():
            problems.append(f"no {part}")
            continue
        folders = class_folders(part)
        found = sum(sum(map(is_image_name, file_names(part / folder))) for folder in folders)
        if lines_hash(folders) != published.ids:
            problems.append(f"the {len(folders)} folders in {part} are not the {published.classes} classes")
        if found != published.images[part.name]:
            problems.append(f"{part} has {found:,} images in class folders instead of {published.images[part.name]:,}")
    return problems


# ---- what is said before -----------------------------------------------------------------------------------


def show_list(jobs):
    for job in jobs:
        missing = job.missing()
        state = f"lacks {', '.join(missing)}" if missing else f"in {job.folder}"
        print(f"{job.name:16} {gigabytes(job.entry['unpacked']):>9}  {state}\n{'':27} {job.entry['licence']}")


def describe(job, kind, details):
    """What will happen to one dataset: its size and licence, and with `details` every source."""
    name = job.entry["name"]
    if not job.missing():
        print(f"{name}: already in {job.folder}")
        return
    if job.missing_images() and not job.needs_download():
        print(f"{name}: the images are in {job.folder}, but not where they belong: they are moved, not downloaded")
    else:
        download = f"{gigabytes(job.download_size(kind))} to download"
        if not job.entry["sources"]:
            download = "to be downloaded by hand"
        room = gigabytes(job.entry["unpacked"])
        print(f"{name}: {download}, about {room} unpacked in {job.folder}. Licence: {job.entry['licence']}")
    if details:
        show_sources(job, kind)


def show_sources(job, kind):
    """All links for what is missing, in the order in which they are tried."""
    for name in job.entry["files"]:
        if name in job.missing():
            for source, place in eligible(sources.catalogue()["files"][name]["sources"], kind):
                print(f"  {name} from {source}: {link(place)}")
    if not job.needs_download():
        return
    for source, archives in job.sources(kind):
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
        unpacked[disk] += job.unpacked_size()
        largest[disk] = max(largest[disk], job.download_size(kind))
        begun[disk] += job.begun_size()
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


# ---- command line ------------------------------------------------------------------------------------------


def parse(argv):
    parser = Parser(
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
    confirm(sum(job.download_size(args.source) for job in todo), args.yes)
    failed = []
    for job in todo:
        try:
            fetch(job, args.source)
        except (UserError, OSError) as error:  # the others get their turn
            print(f"Error: {job.entry['name']}: {error}", file=sys.stderr)
            failed.append(job.entry["name"])
    if failed:
        raise UserError(f"not complete: {', '.join(failed)} (reasons above); the same command goes on from here")
    return None


def main(argv=None):
    """Exit code: 0 when all is there, 1 after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(parse(argv)), "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
