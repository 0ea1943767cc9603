"""Say what is wrong with a dataset on disk, each fault with the one command that mends it. Nothing is changed.

python -m datasets.doctor eurosat dtd --root /data
"""

import argparse
import os
import re
import shlex
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, exit_code, nearest, read_image, read_json

from .base import SplitDataset
from .emoji import Emoji
from .imagenet import ClassFolders, ImageNet, class_folders
from .imagenetv2 import ImageNetV2
from .pickles import read_pickled
from .published import CLASSNAMES, PUBLISHED, lines_hash, picks_hash
from .splits import PARTS, read_selection, select_shots, split_hash

UNREADABLE, TOO_DEEP, CAPITALS = "not readable (permissions)", "one folder too deep", "spelled with other capitals"
SAMPLE = 200  # images decoded unless --decode says otherwise


class Fault(NamedTuple):
    what: str
    mend: str  # a command line


class Found(Exception):
    """A fault that leaves nothing more to be looked at."""

    def __init__(self, what, mend):
        super().__init__(what)
        self.fault = Fault(what, mend)


# ---- commands ----------------------------------------------------------------------------------------------


def command(*words):
    return shlex.join(map(str, words))


def aside(*paths):
    """The command that moves each path to a free name beside it: nothing is deleted."""
    moves = []
    for path in paths:
        free = next(p for n in range(1, 1000) if not (p := path.with_name(f"{path.name}.old{n}")).exists())
        moves.append(command("mv", path, free))
    return " && ".join(moves)


def again(dataset, *paths):
    """The command that fetches `paths` anew; what is there would be left alone, so it goes aside."""
    return f"{aside(*paths)} && {dataset.fetch()}"


def unnest(folder):
    """The command that puts a folder with only itself inside right."""
    outer = folder.with_name(f"{folder.name}.outer")
    return f"{command('mv', folder, outer)} && {command('mv', outer / folder.name, folder)}"


def some(names, most=3):
    """The first few names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


# ---- one dataset -------------------------------------------------------------------------------------------


def examine(cls, root, decode=SAMPLE):
    """All faults of one dataset under `root`, and what there is: (list of Fault, one line).

    `decode` images are decoded, evenly over the whole; None: all of them.
    """
    dataset = cls.__new__(cls)  # where it looks and how it reads, without loading
    dataset.root = root = Path(root).expanduser().absolute()
    try:
        dataset.dataset_dir = locate(dataset, root)
        look = look_at_folders if issubclass(cls, ClassFolders) else look_at_split
        faults, split, paths, seen = look(dataset)
    except Found as found:
        return [found.fault], ""
    faults += undecodable(dataset, paths, decode)
    if dataset.sampled and split:
        faults += stale_picks(dataset, split)
    return faults, f"{len(paths):,} images in {dataset.dataset_dir}; {seen}"


def locate(dataset, root):
    """The dataset's folder; raises Found."""
    try:
        folder = dataset.find_folder(root)
    except MissingFile:
        raise Found(*without_folder(dataset, root)) from None
    if not os.access(folder, os.R_OK | os.X_OK):
        raise Found(f"{folder} can't be read (permissions)", command("chmod", "-R", "u+rX", folder))
    return folder


def without_folder(dataset, root):
    """The fault of a dataset that isn't where it should be."""
    folder = root / dataset.dataset_dir
    if not root.is_dir():
        return f"there is no folder {root}", dataset.fetch()
    if folder.is_symlink() or folder.exists():
        kind = "a file" if folder.is_file() else "a link to nowhere"
        return f"{folder} is {kind} instead of a folder", again(dataset, folder)
    names = {plain(name) for name in (dataset.dataset_dir, *dataset.aliases, type(dataset).__name__)}
    for name in class_folders(root):
        if plain(name) in names:
            return f"the folder is called {name} instead of {folder.name}", command("mv", root / name, folder)
    return f"there is no folder {folder.name} in {root}", dataset.fetch()


def plain(name):
    """Letters and digits only, small: what "Oxford-Pets" and "oxford_pets" have in common."""
    return re.sub("[^a-z0-9]", "", name.lower())


# ---- datasets with a split ---------------------------------------------------------------------------------


def look_at_split(dataset):
    """(faults, split, paths of sound images, what is there) of a dataset whose images are listed."""
    if dataset.split_file:
        check_split_file(dataset, dataset.dataset_dir / dataset.split_file)
    split = read_split_of(dataset)
    if dataset.published and (wrong := split_fault(split, dataset.published, dataset.stem())):
        raise Found(*not_published(dataset, wrong))
    items = [item for part in PARTS for item in split[part]]
    dataset.image_dir = home_of_images(dataset, items)
    faults, sound = check_listed(dataset, items)
    return faults, split, sound, f"split {split_hash(split)[:16]}"


def check_split_file(dataset, path):
    if not path.exists():
        for other in sorted({*dataset.dataset_dir.glob("*.json*"), *dataset.dataset_dir.glob("*/*.json*")}):
            if plain(path.stem) in plain(other.name):
                raise Found(f"the split file is {other} instead of {path}", command("mv", other, path))
        raise Found(f"{path} is missing", dataset.fetch())
    if not os.access(path, os.R_OK):
        raise Found(f"{path} can't be read (permissions)", command("chmod", "u+r", path))
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise Found(f"{path} is empty", again(dataset, path))
    if start.startswith((b"<!doctype", b"<html")):
        raise Found(f"{path} is a web page, not a split (a download that was refused)", again(dataset, path))


def read_split_of(dataset):
    try:
        return dataset.read()
    except MissingFile as error:  # aircraft: one of its lists
        raise Found(str(error).partition(";")[0], dataset.fetch()) from None
    except UserError as error:
        if not dataset.split_file:
            raise Found(str(error), again(dataset, Path(str(error).partition(": ")[0]))) from None
        path = dataset.dataset_dir / dataset.split_file
        raise Found(f"{path} is no split file: damaged, or not complete", again(dataset, path)) from None


def not_published(dataset, wrong):
    if dataset.split_file:
        path = dataset.dataset_dir / dataset.split_file
        return f"{path} is not the published split: {wrong}", again(dataset, path)
    lists = [dataset.dataset_dir / name for name in ("variants.txt", *(f"images_variant_{part}.txt" for part in PARTS))]
    return f"the lists in {dataset.dataset_dir} are not the published ones: {wrong}", again(dataset, *lists)


def split_fault(split, published, stem):
    """How the split differs from the published one, or ""."""
    digest = split_hash(split)
    if digest == published.split:
        return ""
    for other, facts in PUBLISHED.items():
        if facts.split == digest:
            return f"it is that of {other}"
    for check in (wrong_sizes, wrong_labels, wrong_paths):
        if wrong := check(split, published):
            return wrong
    if published.split:
        return "it has as many rows, but others, or in another order"
    try:
        picks = picks_hash(select_shots(split, 16, 1))
    except UserError as error:
        return str(error).partition(",")[0]
    if picks != published.picks:
        return f"its few-shot picks have the hash {picks} instead of {published.picks}"
    names = list(dict(sorted((item.label, item.classname) for item in split["train"])).values())
    if stem == "fgvc_aircraft" and names != sorted(names):
        return "its variants are in another order"
    return ""


def wrong_sizes(split, published):
    sizes = ((part, len(split[part]), number) for part, number in published.images.items())
    return some(f"{has:,} {part} images instead of {number:,}" for part, has, number in sizes if has != number)


def wrong_labels(split, published):
    names = defaultdict(set)
    for item in (item for part in PARTS for item in split[part]):
        names[item.label].add(item.classname)
    if sorted(names) != list(range(published.classes)):
        return f"{len(names)} labels from {min(names)} to {max(names)} instead of 0 to {published.classes - 1}"
    return some(f"label {label} is {' and '.join(sorted(group))}" for label, group in names.items() if len(group) > 1)


def wrong_paths(split, published):
    twice = Counter(item.path for part in PARTS for item in split[part])
    return some(f"{path} is listed {times} times" for path, times in twice.items() if times > 1)


# ---- listed images -----------------------------------------------------------------------------------------


def home_of_images(dataset, items):
    """The folder where the paths of the split start; raises Found if it has another name or isn't there."""
    home = dataset.dataset_dir / dataset.image_dir
    if home.is_dir():
        if not os.access(home, os.R_OK | os.X_OK):
            raise Found(f"{home} can't be read (permissions)", command("chmod", "-R", "u+rX", home))
        if entries_of(home):
            return home
        raise Found(f"{home} is empty", again(dataset, home))
    folders = [dataset.dataset_dir / name for name in class_folders(dataset.dataset_dir)]
    folders += [folder / name for folder in folders for name in class_folders(folder)]
    for folder in folders:
        if any((folder / item.path).is_file() for item in items[:: max(1, len(items) // 10)]):
            raise Found(f"the images are in {folder} instead of {home}", command("mv", folder, home))
    archives = [p.name for p in dataset.dataset_dir.iterdir() if re.search(r"\.(zip|tar|tgz|tar\.gz)$", p.name)]
    packed = f"; {some(archives)} is not unpacked" if archives else ""
    raise Found(f"there is no folder {home.name} in {home.parent}{packed}", dataset.fetch())


def check_listed(dataset, items):
    """(faults, paths of sound images), by looking into every folder once."""
    folders = defaultdict(list)
    for path in dict.fromkeys(item.path for item in items):
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    kinds, sound = defaultdict(list), []
    for folder, names in tqdm(folders.items(), desc=type(dataset).__name__, unit=" folders", leave=False):
        entries = entries_of(dataset.image_dir / folder)
        why_absent = absences(dataset.image_dir, folder, entries)
        for name in names:
            path = f"{folder}/{name}".lstrip("/")
            if kind := condition(entries[name]) if name in entries else why_absent(path):
                kinds[kind].append(path)
            else:
                sound.append(dataset.image_dir / path)
    names = {item.path: item.classname for item in items}
    return image_faults(dataset, kinds, names), sound


def entries_of(folder):
    """{name: os.DirEntry} of a folder; {} where there is none, or none that can be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in entries}
    except OSError:
        return {}


def condition(entry):
    """What is wrong with an image that is there, or ""."""
    if entry.is_dir():
        return "folders instead of images"
    if not entry.is_file():
        return "links to nowhere"
    if not os.access(entry.path, os.R_OK):
        return UNREADABLE
    return "" if entry.stat().st_size else "empty files"


def absences(home, folder, entries):
    """A function that says in which way the image `path`, which should be in `folder`, isn't there."""
    denied = (home / folder).is_dir() and not os.access(home / folder, os.R_OK | os.X_OK)
    renamed = other_case(home, folder)
    small, stems = {name.lower() for name in entries}, {Path(name).stem for name in entries}

    def why(path):
        if denied:
            return UNREADABLE
        if nested_in(home, path):
            return TOO_DEEP
        if renamed or Path(path).name.lower() in small:
            return CAPITALS
        return "of another file type" if Path(path).stem in stems else "missing"

    return why


def nested_in(home, path):
    """The folder with one of the same name in it that has the image (2750/2750, cars_train/cars_train), or None."""
    top, _, rest = path.partition("/")
    places = {home: home / home.name / path} | ({home / top: home / top / top / rest} if rest else {})
    return next((outer for outer, place in places.items() if place.is_file()), None)


def other_case(home, folder):
    """The folder whose name differs from `folder` in capitals only, or None."""
    if not folder or (home / folder).is_dir():
        return None
    right = home / folder
    beside = entries_of(right.parent)
    return next((right.with_name(name) for name in beside if name.lower() == right.name.lower()), None)


def image_faults(dataset, kinds, names):
    """A fault for each of {kind: paths}. One that takes fetching anew makes smaller mends of the others needless."""
    home = dataset.image_dir
    mends = {kind: in_place(home, kind, paths) for kind, paths in kinds.items()}
    if not all(mends.values()):
        anew = again_images(dataset, [path for kind, paths in kinds.items() if kind != UNREADABLE for path in paths])
        mends = {kind: mend if kind == UNREADABLE else anew for kind, mend in mends.items()}
    faults = []
    for kind, paths in kinds.items():
        classes = Counter(names[path] for path in paths).most_common()
        counts = some(f"{name} {number:,}" for name, number in classes)
        what = f"{len(paths):,} of {len(names):,} listed images are {kind} (by class: {counts}): {some(paths)}"
        faults.append(Fault(what, mends[kind]))
    return faults


def in_place(home, kind, paths):
    """The command that mends these images with what is there, or ""."""
    if kind == UNREADABLE:
        return command("chmod", "-R", "u+rX", home)
    if kind == TOO_DEEP:
        outer = {nested_in(home, path) for path in paths}
        return unnest(*outer) if len(outer) == 1 else ""
    folders = {path.rpartition("/")[0] for path in paths}
    if kind == CAPITALS and len(folders) == 1 and (other := other_case(home, *folders)):
        return command("mv", other, home.joinpath(*folders))
    if kind == CAPITALS and len(paths) == 1:
        path = home / paths[0]
        other = next(name for name in entries_of(path.parent) if name.lower() == path.name.lower())
        return command("mv", path.with_name(other), path)
    return ""


def again_images(dataset, paths):
    """The command that fetches anew: the whole image folder, or of those that the paths start with the ones in use."""
    home = dataset.image_dir
    tops = {path.split("/")[0] for path in paths} if home == dataset.dataset_dir else {""}
    present = sorted(home / top for top in tops if (home / top).exists())
    return again(dataset, *present) if present else dataset.fetch()


# ---- ImageNet and its variants -----------------------------------------------------------------------------


def look_at_folders(dataset):
    """(faults, split or None, paths of sound images, what is there) of a dataset whose folders are its classes."""
    names = check_classnames(dataset)
    home = dataset.dataset_dir / dataset.image_dir
    parts = {"train": home / "train", "val": home / "val"} if isinstance(dataset, ImageNet) else {"test": home}
    faults, sound = [], []
    for part, folder in parts.items():
        wrong, images = look_at_part(dataset, part, folder, names)
        faults += wrong
        sound += images
    dataset.image_dir = home
    split = None if faults else dataset.read()
    seen = f"index {split_hash(split)[:16]}" if split else "no index before the faults are mended"
    return faults, split, sound, seen


def check_classnames(dataset):
    """{WordNet id: name} in label order; raises Found."""
    paths = [folder / "classnames.txt" for folder in (dataset.dataset_dir, dataset.root / ImageNet.dataset_dir)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise Found(f"{paths[0]} is missing", dataset.fetch())
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if lines_hash(lines) != CLASSNAMES:
        wrong = f"{len(lines)} lines instead of 1000" if len(lines) != 1000 else "other names, or another order"
        raise Found(f"{path} has not CLIP's class names: {wrong}", again(dataset, path))
    return dict(line.split(" ", 1) for line in lines)


def look_at_part(dataset, part, folder, names):
    """(faults, paths of sound images) of the class folders in `folder`."""
    if not folder.is_dir():
        return [absent_part(dataset, folder, names)], []
    if not os.access(folder, os.R_OK | os.X_OK):
        return [Fault(f"{folder} can't be read (permissions)", command("chmod", "-R", "u+rX", folder))], []
    classes = class_folders(folder)
    if not classes:
        flat = sum(entry.is_file() for entry in os.scandir(folder))
        what = f"its {flat:,} files lie flat, in no class folders" if flat else "is empty"
        return [Fault(f"{folder}: {what}", dataset.fetch() if flat else again(dataset, folder))], []
    if classes == [folder.name]:
        return [Fault(f"the class folders are one too deep, in {folder / folder.name}", unnest(folder))], []
    if wrong := wrong_classes(dataset, classes, names):
        return [Fault(f"{folder}: {wrong}", again(dataset, folder))], []
    return count_images(dataset, part, folder, classes)


def absent_part(dataset, folder, names):
    """The fault of a missing folder of class folders, which may only lie elsewhere in the dataset's folder."""
    beside = [dataset.dataset_dir / name for name in class_folders(dataset.dataset_dir)]
    beside += [below / name for below in beside if below.name not in names for name in class_folders(below)]
    for other in beside:
        alike = other.name == folder.name or not isinstance(dataset, ImageNet)
        if alike and set(class_folders(other)) & known_classes(dataset, names):
            mend = f"{command('mkdir', '-p', folder.parent)} && {command('mv', other, folder)}"
            return Fault(f"the class folders are in {other} instead of {folder}", mend)
    return Fault(f"there is no folder {folder}", dataset.fetch())


def known_classes(dataset, names):
    """What class folders may be called."""
    return set(names) | ({str(label) for label in range(len(names))} if isinstance(dataset, ImageNetV2) else set())


def wrong_classes(dataset, classes, names):
    """How the class folders differ from the published ones, or ""."""
    expected, known = dataset.published.classes, known_classes(dataset, names)
    if isinstance(dataset, ImageNetV2):
        right = set(classes) in (known - set(names), set(names))
    else:
        right = lines_hash(sorted(classes)) == dataset.published.ids
    if right:
        return ""
    strange = [name for name in classes if name not in known]
    missing = sorted(set(names) - set(classes)) if expected == len(names) and not strange else []
    details = [f"{len(classes)} class folders instead of {expected}"] * (len(classes) != expected)
    details += [f"no classes of ImageNet: {some(strange)}"] if strange else []
    details += [f"missing: {some(missing)}"] if missing else []
    return "; ".join(details) or "other class folders than the published ones"


def count_images(dataset, part, folder, classes):
    kinds, sound, sizes = defaultdict(list), [], {}
    for name in tqdm(classes, desc=f"{type(dataset).__name__} {part}", unit=" folders", leave=False):
        entries = {n: e for n, e in entries_of(folder / name).items() if not n.startswith(".")}
        sizes[name] = len(entries)
        for entry in entries.values():
            kind = condition(entry)
            (kinds[kind] if kind else sound).append(Path(entry.path))
    total = sum(sizes.values())
    faults = [
        Fault(
            f"{len(paths):,} of {total:,} images in {folder} are {kind}: {some(p.relative_to(folder) for p in paths)}",
            command("chmod", "-R", "u+rX", folder) if kind == UNREADABLE else again(dataset, folder),
        )
        for kind, paths in kinds.items()
    ]
    if wrong := wrong_images(dataset.published, part, sizes, sound):
        faults.append(Fault(f"{folder}: {wrong}", again(dataset, folder)))
    return faults, sound


def wrong_images(published, part, sizes, paths):
    """How the images of class folders ({name: images}, and their paths) differ from the published ones, or ""."""
    total, right = sum(sizes.values()), published.per_class if part != "train" else 0
    off = [f"{name} {number}" for name, number in sizes.items() if (number != right if right else not number)]
    if total != published.images[part] or off:
        uneven = f"; class by class not {right or 'one at least'}: {some(off)}" if off else ""
        return f"{total:,} images instead of {published.images[part]:,}{uneven}"
    files = lines_hash(sorted(f"{path.parent.name}/{path.name}" for path in paths))
    if part == "val" and len(paths) == total and files != published.files:
        return "other file names than the published ones, or in other classes"
    return ""


# ---- every dataset -----------------------------------------------------------------------------------------


def undecodable(dataset, paths, number):
    """The fault of the images that don't decode, among `number` of them (None: all)."""
    chosen = paths if number is None else paths[:: -(-len(paths) // number)] if number and paths else []
    pool = ThreadPoolExecutor()
    try:
        wrong = [
            path
            for path, sound in zip(
                chosen,
                tqdm(pool.map(decodes, chosen), total=len(chosen), desc="decoding", unit=" images", leave=False),
                strict=True,
            )
            if not sound
        ]
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the rest
    if not wrong:
        return []
    names = [path.relative_to(dataset.image_dir).as_posix() for path in wrong]
    if isinstance(dataset, ImageNet):
        mend = again(dataset, *sorted({dataset.image_dir / name.split("/")[0] for name in names}))
    else:
        mend = again_images(dataset, names)
    return [Fault(f"{len(wrong):,} of {len(chosen):,} images decoded are damaged: {some(names)}", mend)]


def decodes(path):
    try:
        read_image(path)
        return True
    except UserError:
        return False


def stale_picks(dataset, split):
    """Faults of kept few-shot picks: of another split, damaged, not the seed's, pickles that can't be used."""
    faults = []
    for path in sorted((dataset.dataset_dir / "split_fewshot").glob("shot_*-seed_*.*")):
        named = re.fullmatch(r"shot_(\d+)-seed_(-?\d+)\.(json|pkl)", path.name)
        if not named:
            continue
        shots, seed = int(named[1]), int(named[2])
        try:
            if path.suffix == ".pkl":
                read_pickled(path, split, dataset.sampled, shots)
            elif wrong := wrong_picks(path, split, shots, seed, dataset.sampled):
                faults.append(Fault(f"{path} {wrong}", command("rm", path)))
        except UserError as error:
            faults.append(Fault(str(error).partition(". Move it away")[0], aside(path)))
    return faults


def wrong_picks(path, split, shots, seed, parts):
    """What is wrong with the picks in the JSON file `path`, or ""."""
    selected, wrong = read_selection(path, {"split": split_hash(split), "shots": shots, "seed": seed}, parts)
    if wrong:
        return wrong
    drawn = seed >= 0 and "pickle" not in read_json(path)
    return (
        "has other picks than its seed draws" if drawn and selected != select_shots(split, shots, seed, parts) else ""
    )


# ---- command line ------------------------------------------------------------------------------------------


def known_names():
    """{yaml name: class} of the published datasets, and of the one that comes with the code."""
    classes = (DATASET_REGISTRY.get(name) for name in DATASET_REGISTRY.registered_names())
    ours = [cls for cls in classes if issubclass(cls, SplitDataset)]
    return {cls.stem(): cls for cls in ours if cls is Emoji or cls.stem() in PUBLISHED}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m datasets.doctor",
        description="Check datasets: folders, split, every listed image, class names, few-shot picks, decoding. "
        "Prints each fault with the one command that mends it; exits with 0 if there is none, else with 1.",
    )
    known = known_names()
    parser.add_argument("datasets", nargs="+", metavar="NAME", help=f"all, or any of {', '.join(known)}")
    parser.add_argument("--root", default=os.environ.get("DATA") or "data", help="default: $DATA, else ./data")
    parser.add_argument(
        "--decode", default=SAMPLE, metavar="N", type=number, help=f"images to decode, or all (default: {SAMPLE})"
    )
    args = parser.parse_args(argv)
    stems = {key: stem for stem, cls in known.items() for key in (stem, cls.__name__.lower())}
    names = list(PUBLISHED) if "all" in args.datasets else [name.lower() for name in args.datasets]
    for name in names:
        if name not in stems:
            raise UserError(f"no dataset {name!r}, do you mean {nearest(name, known)!r}? There are {', '.join(known)}")
    return args, [known[stems[name]] for name in dict.fromkeys(names)]


def number(text):
    """Of images; None for all."""
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return None if text == "all" else int(text)


def report(cls, root, decode):
    """Print what is known about one dataset -> how many faults it has."""
    faults, seen = examine(cls, root, decode)
    count = f"{len(faults)} fault{'s' * (len(faults) > 1)}" if faults else "in order"
    print(f"{cls.__name__}: {count}{seen and f' ({seen})'}")
    together = defaultdict(list)
    for fault in faults:
        together[fault.mend].append(fault.what)
    for mend, whats in together.items():
        print(*(f"  {what}" for what in whats), f"    mend: {mend}", sep="\n")
    return len(faults)


def main(argv=None):
    """Exit code: 0 when all is in order, 1 with faults or after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(*parse(argv)), "nothing was changed, the same command starts again")


def run(args, classes):
    return int(sum([report(cls, args.root, args.decode) for cls in classes]) > 0)


if __name__ == "__main__":
    sys.exit(main())
