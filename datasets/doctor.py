"""Say what is wrong with a dataset on disk, each problem with the command that fixes it. Nothing is changed.

python -m datasets.doctor eurosat dtd --root /data
"""

import argparse
import math
import os
import re
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Parser, UserError, exit_code, nearest, read_json

from .base import SplitDataset, spellings
from .emoji import Emoji
from .files import check_images, class_folders, is_image_name, shorten
from .imagenet import ClassFolders, ImageNet, classnames_problem, file_names
from .imagenetv2 import ImageNetV2
from .pickles import read_pickled
from .published import lines_hash, split_problem
from .splits import read_selection, select_shots, split_hash

SAMPLE = 200  # images decoded unless --decode says otherwise


class Problem(NamedTuple):
    what: str
    fix: str  # a command line


class Findings(NamedTuple):
    """What is known about one dataset. Where `problems` stop the search early, the rest is empty."""

    problems: list = []
    split: dict = {}
    images: list = []  # full paths of those that are there
    seen: str = ""  # one line


# ---- one dataset -------------------------------------------------------------------------------------------


def examine(cls, root, decode=SAMPLE):
    """All problems of one dataset under `root`, and what there is: (list of `Problem`, one line).

    `decode` images are decoded, evenly over the whole; None: all of them.
    """
    root = Path(root).expanduser().absolute()
    folder = cls.find_folder(root)
    if folder is None:
        where = f"{cls.dataset_dir} in {root}" if root.is_dir() else root
        return [Problem(f"there is no folder {where}", cls.fetch_command(root))], ""
    look = look_at_folders if issubclass(cls, ClassFolders) else look_at_split
    found = look(cls, root, folder)
    problems = [*found.problems, *damaged(cls, root, found.images, decode)]
    if found.split and not cls.test_only:
        problems += stale_picks(cls, folder, found.split)
    return problems, f"{len(found.images):,} images in {folder}; {found.seen}" if found.seen else ""


def again(cls, root, *paths):
    """The command that fetches `paths` anew. `fetch` leaves alone what is there, so they are moved to free names."""
    moves = [move_aside(path) for path in paths if os.path.lexists(path)]
    return " && ".join([*moves, cls.fetch_command(root)])


def move_aside(path):
    """The command that moves `path` to a free name beside it: nothing is deleted."""
    number = 1
    while os.path.lexists(f"{path}.old{number}"):
        number += 1
    return shlex.join(["mv", str(path), f"{path}.old{number}"])


# ---- datasets with a split ---------------------------------------------------------------------------------


def look_at_split(cls, root, folder):
    """Findings about a dataset whose images are listed in a split file, or in lists of its own."""
    files = [folder / name for name in ([cls.split_file] if cls.split_file else cls.lists)]
    for path in files:
        if not path.is_file():
            return Findings([Problem(f"{path} is missing", cls.fetch_command(root))])
    try:
        split = cls.read(root)
    except UserError as error:
        return Findings([Problem(str(error), again(cls, root, *files))])
    wrong = split_problem(split, cls.published) if cls.published else ""
    if wrong:
        named = files[0] if cls.split_file else f"{folder}/*.txt"
        return Findings([Problem(f"{named} is not the published split: {wrong}", again(cls, root, *files))])
    problems, images = look_at_listed_images(cls, root, folder / cls.image_dir, split)
    return Findings(problems, split, images, f"split {split_hash(split)[:16]}")


def look_at_listed_images(cls, root, home, split):
    """(problems, full paths of the images that are there). Every folder is listed once."""
    by_folder = defaultdict(set)
    for items in split.values():
        for item in items:
            folder, _, name = item.path.rpartition("/")
            by_folder[folder].add(name)
    absent, empty, images = [], [], []
    for folder in tqdm(sorted(by_folder), desc=cls.__name__, unit=" folders", leave=False):
        sizes = file_sizes(home / folder)
        for name in sorted(by_folder[folder]):
            path = home / folder / name
            if name not in sizes:
                absent.append(path)
            elif not sizes[name]:
                empty.append(path)
            else:
                images.append(path)
    total = len(absent) + len(empty) + len(images)
    problems = []
    for paths, kind in ((absent, "missing"), (empty, "empty files")):
        if paths:
            what = f"{len(paths):,} of {total:,} listed images are {kind}: {shorten(relative(paths, home))}"
            problems.append(Problem(what, fetch_images(cls, root, home, paths, everything=len(paths) == total)))
    return problems, images


def file_sizes(folder):
    """{name: bytes} of the files in a folder; {} where there is no folder, or none that can be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    except OSError:
        return {}


def relative(paths, home):
    return [path.relative_to(home).as_posix() for path in paths]


def fetch_images(cls, root, home, paths, everything=False):
    """The command that brings `paths`: `fetch` alone where the image folder has none of them, else it must be moved.

    `fetch` also finds images one folder too deep, or under the name that their archive gave them.
    """
    if everything and home != cls.find_folder(root):
        return cls.fetch_command(root)
    if home != cls.find_folder(root):
        return again(cls, root, home)
    tops = {home / name.split("/")[0] for name in relative(paths, home)}  # cars_train, cars_test
    return again(cls, root, *sorted(tops))


# ---- ImageNet and its variants -----------------------------------------------------------------------------


def look_at_folders(cls, root, folder):
    """Findings about a dataset whose folders are its classes."""
    path = cls.find_classnames(root)
    if not path.is_file():
        return Findings([Problem(f"{folder / path.name} is missing", cls.fetch_command(root))])
    if wrong := classnames_problem(path):
        return Findings([Problem(f"{path} has not CLIP's class names: {wrong}", again(cls, root, path))])
    home = folder / cls.image_dir
    parts = {"train": home / "train", "val": home / "val"} if cls is ImageNet else {"test": home}
    problems, images = [], []
    for part, place in parts.items():
        wrong, found = look_at_part(cls, root, part, place)
        problems += wrong
        images += found
    if problems:
        return Findings(problems, {}, images, "no index before the problems are fixed")
    split = cls.read(root)
    return Findings([], split, images, f"index {split_hash(split)[:16]}")


def look_at_part(cls, root, part, folder):
    """(problems, full paths of images) of the class folders in `folder`."""
    if not folder.is_dir():
        return [Problem(f"there is no folder {folder}", cls.fetch_command(root))], []
    classes = class_folders(folder)
    if not classes:
        what = f"{folder} has no class folders: its images lie flat in it, or it is empty"
        return [Problem(what, cls.fetch_command(root))], []
    if classes == [folder.name]:
        return [Problem(f"the class folders are one too deep, in {folder / folder.name}", cls.fetch_command(root))], []
    if wrong := wrong_classes(cls, root, classes):
        return [Problem(f"{folder}: {wrong}", again(cls, root, folder))], []
    images, empty, counts = [], [], {}
    for name in tqdm(classes, desc=f"{cls.__name__} {part}", unit=" folders", leave=False):
        sizes = file_sizes(folder / name)
        names = [file for file in file_names(folder / name) if is_image_name(file) and file in sizes]
        counts[name] = len(names)
        images += [folder / name / file for file in names if sizes[file]]
        empty += [folder / name / file for file in names if not sizes[file]]
    if empty:
        what = f"{len(empty):,} of {len(images) + len(empty):,} images in {folder} are empty files"
        return [Problem(f"{what}: {shorten(relative(empty, folder))}", again(cls, root, folder))], images
    if wrong := wrong_images(cls.published, part, counts, images):
        return [Problem(f"{folder}: {wrong}", again(cls, root, folder))], images
    return [], images


def wrong_classes(cls, root, classes):
    """How the class folders differ from the published ones, or ""."""
    if cls is ImageNetV2:
        ids = set(cls.names(root))
        right = set(classes) in (ids, {str(label) for label in range(len(ids))})
    else:
        right = lines_hash(classes) == cls.published.ids
    if right:
        return ""
    if len(classes) != cls.published.classes:
        return f"{len(classes):,} class folders instead of {cls.published.classes:,}"
    return "other class folders than the published ones"


def wrong_images(published, part, counts, images):
    """How the images of class folders ({name: number}, and their paths) differ from the published ones, or ""."""
    total = sum(counts.values())
    if total != published.images[part]:
        return f"{total:,} images instead of {published.images[part]:,}"
    expected = published.per_class if part != "train" else 0
    uneven = [name for name, number in counts.items() if (number != expected if expected else not number)]
    if uneven:
        return f"{len(uneven)} classes have not {expected or 'any'} images each: {shorten(uneven)}"
    if part == "val" and lines_hash(sorted(f"{path.parent.name}/{path.name}" for path in images)) != published.files:
        return "other file names than the published ones, or in other classes"
    return ""


# ---- every dataset -----------------------------------------------------------------------------------------


def damaged(cls, root, images, number):
    """The problem of the images that don't decode, among `number` of them (None: all), as a list."""
    chosen = images if number is None else sample(images, number)
    wrong = [(path, error) for path, (_, error) in zip(chosen, check_images(chosen), strict=True) if error]
    if not wrong:
        return []
    home = cls.locate_images(root)
    names = relative([path for path, _ in wrong], home)
    what = f"{len(wrong):,} of {len(chosen):,} images decoded are damaged: {shorten(names)} ({wrong[0][1]})"
    if cls is ImageNet:
        parts = sorted({home / name.split("/")[0] for name in names})
        return [Problem(what, again(cls, root, *parts))]
    return [Problem(what, fetch_images(cls, root, home, [path for path, _ in wrong]))]


def sample(images, number):
    """At most `number` of the images, evenly over all."""
    if not images or not number:
        return []
    return images[:: math.ceil(len(images) / number)]


def stale_picks(cls, folder, split):
    """Problems of kept few-shot picks: of another split, damaged, not the seed's, pickles that can't be used."""
    problems = []
    for path in sorted((folder / "split_fewshot").glob("shot_*-seed_*.*")):
        named = re.fullmatch(r"shot_(\d+)-seed_(-?\d+)\.(json|pkl)", path.name)
        if not named:
            continue
        shots, seed = int(named[1]), int(named[2])
        try:
            if path.suffix == ".pkl":
                read_pickled(path, split, cls.sampled, shots)
            elif wrong := wrong_picks(path, split, shots, seed, cls.sampled):
                problems.append(Problem(f"{path} {wrong}", shlex.join(["rm", str(path)])))
        except UserError as error:
            problems.append(Problem(str(error), move_aside(path)))
    return problems


def wrong_picks(path, split, shots, seed, parts):
    """What is wrong with the picks in the JSON file `path`, or ""."""
    selected, wrong = read_selection(path, {"split": split_hash(split), "shots": shots, "seed": seed}, parts)
    if wrong:
        return wrong
    drawn = seed >= 0 and "pickle" not in read_json(path)
    if drawn and selected != select_shots(split, shots, seed, parts):
        return "has other picks than its seed draws"
    return ""


# ---- command line ------------------------------------------------------------------------------------------


def known_datasets():
    """{yaml name: class} of the published datasets, and of the one that comes with the code."""
    known = {}
    for name in DATASET_REGISTRY.registered_names():
        cls = DATASET_REGISTRY.get(name)
        if isinstance(cls, type) and issubclass(cls, SplitDataset) and (cls.published or cls is Emoji):
            known[cls.stem()] = cls
    return known


def parse(argv):
    parser = Parser(
        prog="python -m datasets.doctor",
        description="Check datasets: folders, split, every listed image, class names, few-shot picks, decoding. "
        "Prints each problem with the command that fixes it; exits with 0 if there is none, else with 1.",
    )
    known = known_datasets()
    parser.add_argument("datasets", nargs="+", metavar="NAME", help=f"all, or any of {', '.join(known)}")
    parser.add_argument("--root", default=os.environ.get("DATA") or "data", help="default: $DATA, else ./data")
    parser.add_argument(
        "--decode", default=SAMPLE, metavar="N", type=number, help=f"images to decode, or all (default: {SAMPLE})"
    )
    args = parser.parse_args(argv)
    if "all" in args.datasets:
        return args, [cls for cls in known.values() if cls.published]
    stems = spellings(known)
    for name in map(str.lower, args.datasets):
        if name == "custom":
            raise UserError(
                "custom has nothing published to be compared with: train.py checks your images when it first reads "
                "them, and names those that don't decode or are there twice"
            )
        if name not in stems:
            meant = stems[nearest(name, stems)]
            raise UserError(f"no dataset {name!r}, do you mean {meant!r}? There are {', '.join(known)}")
    return args, [known[stem] for stem in dict.fromkeys(stems[name.lower()] for name in args.datasets)]


def number(text):
    """Of images; None for all."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return None if text == "all" else int(text)


def report(cls, root, decode):
    """Print what is known about one dataset -> how many problems it has."""
    problems, seen = examine(cls, root, decode)
    plural = "s" if len(problems) > 1 else ""
    state = f"{len(problems)} problem{plural}" if problems else "in order"
    print(f"{cls.__name__}: {state}" + (f" ({seen})" if seen else ""))
    by_fix = defaultdict(list)
    for problem in problems:
        by_fix[problem.fix].append(problem.what)
    for fix, whats in by_fix.items():
        for what in whats:
            print(f"  {what}")
        print(f"    fix: {fix}")
    return len(problems)


def main(argv=None):
    """Exit code: 0 when all is in order, 1 with problems or after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(*parse(argv)), "nothing was changed, the same command starts again")


def run(args, classes):
    numbers = [report(cls, args.root, args.decode) for cls in classes]
    return 1 if any(numbers) else 0


if __name__ == "__main__":
    sys.exit(main())
