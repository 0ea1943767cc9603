"""Custom: your own pictures, in one folder per class, in train, val and test with such folders, or listed in a CSV.

They are only read. What is found out about them once (the split, copies, files that don't decode) is kept in
DATASET.ROOT/custom/<name>-<8 digits of the path's hash>/split.json: CoOp's form of a split, with two more keys.
"""

import csv
import hashlib
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml
from PIL import Image
from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, nearest, read_image, read_json

from .base import SplitDataset
from .imagenet import class_folders
from .splits import PARTS, Item, write_cache

PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PART_NAMES = {"": "", "training": "train", "valid": "val", "validation": "val", "testing": "test"}
PART_NAMES |= {part: part for part in PARTS}
TEST_SHARE, VAL_SHARE = 0.3, 0.2  # as CoOp cuts the datasets that come without a test set


class Row(NamedTuple):
    """One picture as the user has filed it."""

    path: str  # relative to the image folder
    folder: str  # its class, as the folder or the CSV's label spells it
    part: str  # train, val, test, or "" where the split is left to us


@DATASET_REGISTRY.register()
class Custom(SplitDataset):
    """The pictures of DATASET.IMAGES; labels count the classes in the order of their folders' sorted names.

    Where no test pictures are given, `draw_test` takes them from the others. `dataset_dir` is the image folder.
    """

    def __init__(self, cfg):
        if not cfg.DATASET.IMAGES:
            raise UserError("DATASET.IMAGES is not set: give the folder with your pictures (the scripts: IMAGES=...)")
        if cfg.DATASET.TEMPLATE and "{}" not in cfg.DATASET.TEMPLATE:
            raise UserError(f"DATASET.TEMPLATE is {cfg.DATASET.TEMPLATE!r}: it needs {{}} where the class name goes")
        self.source = Path(cfg.DATASET.IMAGES).expanduser().absolute()
        if not self.source.exists():
            raise MissingFile(f"No {self.source}; DATASET.IMAGES (the scripts: IMAGES) is a folder or a CSV file")
        self.image_dir = self.source if self.source.is_dir() else self.source.parent
        self.names_file = cfg.DATASET.CLASSNAMES
        super().__init__(cfg)
        self.dataset_dir = self.image_dir  # result.json's hash takes paths from here

    def find_folder(self, root):
        digest = hashlib.sha256(os.fsencode(self.source)).hexdigest()[:8]
        return Path(root).expanduser().absolute() / "custom" / f"{self.source.stem}-{digest}"

    def read(self):
        rows = folder_rows(self.source) if self.source.is_dir() else csv_rows(self.source)
        path = self.dataset_dir / "split.json"
        stored = read_stored(path, rows) if path.exists() else None
        folders = {row[2] for part in PARTS for row in stored[part]} if stored else {row.folder for row in rows}
        names = class_names(folders, self.names_file)
        if len(names) < 2:
            raise UserError(
                f"{self.source} has only one class ({', '.join(names)}), it takes two: DATASET.IMAGES (the scripts: "
                "IMAGES) is the folder that holds the class folders, perhaps the one above or below"
            )
        if stored is None:
            stored = make_split(rows, self.image_dir)
            write_cache(path, stored)
        report(stored, path)
        return {part: [Item(file, label, names[name]) for file, label, name in stored[part]] for part in PARTS}


# ---- what the user has -------------------------------------------------------------------------------------


def folder_rows(source):
    """Rows of a folder of class folders, or of train, val and test folders with class folders in them."""
    tops = {name: PART_NAMES.get(name.lower()) for name in class_folders(source)}
    others = [name for name, part in tops.items() if part is None]
    if not others and "train" in tops.values():
        places = [(source / name, part) for name, part in tops.items()]
    elif {"train", "test"} <= set(tops.values()):
        raise UserError(
            f"{source} has train and test folders, and others beside them ({', '.join(others[:3])}): move those into "
            "train or test, or take them away"
        )
    else:
        places = [(source, "")]
    return [row for top, part in places for row in _class_rows(source, top, part)]


def _class_rows(source, top, part):
    rows, empty, others = [], [], Counter()
    for name in class_folders(top):
        files = sorted(visible_files(top / name))
        pictures = [path for path in files if is_picture(path)]
        rows += [Row(path.relative_to(source).as_posix(), name, part) for path in pictures]
        empty += [] if pictures else [name]
        others.update(path.suffix.lower() for path in files if not is_picture(path))
    if not rows:
        raise UserError(f"{top} has no class folders with pictures ({', '.join(PICTURES)}): make one folder per class")
    if loose := sum(map(is_picture, top.iterdir())):
        print(f"Left out: {loose} pictures that lie in {top} itself, in no class folder")
    if empty:
        print(f"Left out: {len(empty)} folders of {top} without a picture ({', '.join(empty)})")
    if others:
        kinds = ", ".join(f"{number} {suffix or 'without an extension'}" for suffix, number in others.most_common())
        print(f"Left out: files in {top} that are no pictures by their extension ({kinds})")
    return rows


def is_picture(path):
    """Whether the name is that of a picture; hidden files ("._a.jpg") are none."""
    return path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file()


def find_pictures(folder):
    """Paths of all pictures in `folder` and the folders below, sorted."""
    return sorted(filter(is_picture, visible_files(folder)))


def visible_files(folder):
    """Paths of all files in `folder` and the folders below but hidden ones; links are followed, each folder once."""
    seen = set()

    def refuse(error):
        raise UserError(f"Can't list {error.filename} ({error.strerror}); make it readable or take it away") from error

    for base, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(base)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        if real not in seen:
            yield from (Path(base, name) for name in files if not name.startswith("."))
        seen.add(real)


def csv_rows(source):
    """Rows of a CSV file with the columns path, label and perhaps split; paths start where the file is."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is neither a folder nor a CSV file in UTF-8") from error
    rows, seen = [], set()
    reader = csv.DictReader(text.splitlines())
    if not {"path", "label"} <= set(reader.fieldnames or ()):
        raise UserError(f'{source}: the first line of a CSV file with pictures is "path,label" or "path,label,split"')
    for line in reader:
        path, folder, part = ((line.get(key) or "").strip() for key in ("path", "label", "split"))
        wrong = (
            ("no label" if not folder else "")
            or (f"no picture at {source.parent / path}" if not (source.parent / path).is_file() else "")
            or (f"{path} for the second time" if path in seen else "")
            or (f'split "{part}" is not train, val or test' if part.lower() not in PART_NAMES else "")
        )
        if wrong:
            raise UserError(f"{source}, line {reader.line_num}: {wrong}; correct it there")
        seen.add(path)
        rows.append(Row(path, folder, PART_NAMES[part.lower()]))
    if not rows:
        raise UserError(f"{source} lists no pictures")
    if len({row.part == "" for row in rows}) > 1:
        raise UserError(f"{source} names a split for some pictures only: name one for all, or for none")
    return rows


def class_names(folders, names_file=""):
    """{folder: name}: from the YAML file ("folder: name" lines) or the folder, "_" and "-" as spaces.

    UserError for names that differ by case at most: their prompts would be the same.
    """
    given = read_names(names_file) if names_file else {}
    if not isinstance(given, dict):
        raise UserError(f'{names_file} must hold lines "folder: name", not a list')
    if unknown := sorted(set(given) - set(folders)):
        raise UserError(f"{names_file} names a class {unknown[0]!r}, do you mean {nearest(unknown[0], folders)!r}?")
    names = {
        folder: given.get(folder) or " ".join(re.split(r"[\s_-]+", folder)).strip() or folder for folder in folders
    }
    by_name = defaultdict(list)
    for folder in sorted(names):
        by_name[names[folder].casefold()].append(folder)
    for same in by_name.values():
        if len(same) > 1:
            raise UserError(
                f"The classes {' and '.join(map(repr, same))} have the same name {names[same[0]]!r}: put them into one "
                "folder, or name them in a YAML file (DATASET.CLASSNAMES; the scripts: CLASSNAMES)"
            )
    return names


def read_names(path):
    """A YAML list of names, or mapping to names, in which all is text as it is written: no, 1e3 and 007 too."""
    try:
        names = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except FileNotFoundError as error:
        raise MissingFile(f"No file with class names at {path}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    values = names.values() if isinstance(names, dict) else names
    if isinstance(names, str) or not values or not all(isinstance(name, str) and name for name in values):
        raise UserError(f"{path} must be YAML, a class name on every line behind a hyphen, or behind a key and a colon")
    return names


# ---- the split ---------------------------------------------------------------------------------------------


def make_split(rows, image_dir):
    """{train, val, test: [[path, label, folder]]}, and unreadable: paths, copies: lists of paths with equal bytes.

    `copies` are those that matter: in more than one part, or under more than one class.
    """
    found = list(zip(rows, examine([image_dir / row.path for row in rows]), strict=True))
    for _, (_, wrong) in found:
        if wrong:
            print(wrong)
    unreadable = [row.path for row, (_, wrong) in found if wrong]
    labels = {folder: label for label, folder in enumerate(sorted({row.folder for row in rows}))}
    rows = [(row, digest) for row, (digest, wrong) in found if not wrong]
    if lost := sorted(set(labels) - {row.folder for row, _ in rows}):
        raise UserError(f"No picture of the class {lost[0]!r} decodes: replace them, or take the class away")
    if not any(row.part == "test" for row, _ in rows):
        rows = draw_test(rows)
    split = {part: [[r.path, labels[r.folder], r.folder] for r, _ in rows if r.part == part] for part in PARTS}
    by_content = defaultdict(list)
    for row, digest in rows:
        by_content[digest].append(row)
    copies = [[r.path for r in same] for same in by_content.values() if len({(r.folder, r.part) for r in same}) > 1]
    return {**split, "unreadable": unreadable, "copies": copies}


def examine(paths):
    """Decode every picture -> [(SHA-256 (hex) of its bytes, None) or (None, the error)]."""
    Image.init()  # all formats now: a thread that meets Pillow loading them takes a WebP for no image
    pool = ThreadPoolExecutor()
    try:
        return list(tqdm(pool.map(_examine, paths), total=len(paths), desc="Checking pictures", unit=""))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the rest


def _examine(path):
    try:
        read_image(path)
        return hashlib.sha256(path.read_bytes()).hexdigest(), None
    except (UserError, OSError) as error:
        return None, error


def draw_test(rows):
    """Take 30% of every class for test and, unless some are given, 20% for val: [(row, SHA-256)], parts filled in.

    The pictures of a class are put in the order of their SHA-256, a shuffle that knows neither names nor folders, so
    the same pictures are drawn on every machine; the first are test, then val, then train. Copies stay together.
    UserError names the classes with less than two different pictures.
    """
    given_val = any(row.part == "val" for row, _ in rows)
    by_class = defaultdict(set)
    for row, digest in rows:
        if row.part != "val":
            by_class[row.folder].add(digest)
    few = sorted(folder for folder, contents in by_class.items() if len(contents) < 2)
    if few:
        raise UserError(
            f"Too few pictures to draw a test set: {len(few)} of {len(by_class)} classes ({', '.join(few[:5])}) have "
            "only one; add more, or take the class away"
        )
    drawn = {}
    for folder, contents in by_class.items():
        number = len(contents)
        test = max(1, int(TEST_SHARE * number + 0.5))
        val = 0 if given_val else int(VAL_SHARE * number + 0.5)
        for rank, digest in enumerate(sorted(contents)):
            drawn[folder, digest] = "test" if rank < test else "val" if rank < test + val else "train"
    return [(r if r.part == "val" else r._replace(part=drawn[r.folder, digest]), digest) for r, digest in rows]


def read_stored(path, rows):
    """What `make_split` found, as kept in `path`. It holds until it is deleted: new pictures don't change it.

    UserError if pictures in it are gone, or now have another class or part.
    """
    try:
        stored = read_json(path)
        known = {(file, folder): part for part in PARTS for file, _, folder in stored[part]}
        unreadable = set(stored["unreadable"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: delete it, and the split is made again") from error
    given = {(row.path, row.folder): row.part for row in rows}
    changed = [key[0] for key, part in known.items() if given.get(key) not in ("", part)]
    if changed:
        raise UserError(
            f"{len(changed)} pictures of the split in {path} are gone or filed elsewhere (first: {changed[0]}): put "
            "them back, or delete that file for a new split and train again"
        )
    new = [key[0] for key in given if key not in known and key[0] not in unreadable]
    if new:
        print(f"Left out: {len(new)} pictures newer than the split (first: {new[0]}); to have them in, delete {path}")
    return stored


def report(stored, path):
    """Say where the split is and what is wrong with the pictures; the whole lists are in the file."""
    print(f"Split: {', '.join(f'{len(stored[part]):,} {part}' for part in PARTS)} pictures, kept in {path}")
    if stored["unreadable"]:
        names = _some(stored["unreadable"])
        print(
            f"Left out: {len(stored['unreadable'])} pictures that don't decode ({names}); once replaced, delete {path}"
        )
    if stored["copies"]:
        print(
            f"Warning: {len(stored['copies'])} pictures are there more than once, across train, val and test or across "
            "classes, with equal bytes (SHA-256; resized or re-saved copies are not found): "
            + _some([" = ".join(same) for same in stored["copies"]])
        )


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
