"""Custom: your own images, in one folder per class, in train, val and test with such folders, or listed in a CSV.

They are only read. What is found out about them once (the split, copies, files that don't decode) is kept in
DATASET.ROOT/custom/<name>-<8 digits of the path's hash>/split.json: CoOp's form of a split, with three more keys.
"""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import MissingFile, UserError, read_json

from .base import SplitDataset, check_template
from .files import check_images, shorten
from .own_images import check_rows, class_names, csv_rows, folder_rows, refuse_too_few
from .published import lines_hash
from .splits import PARTS, Item, read_rows, write_cache

TEST_SHARE, VAL_SHARE = 0.3, 0.2  # as CoOp cuts the datasets that come without a test set


@DATASET_REGISTRY.register()
class Custom(SplitDataset):
    """The images of DATASET.IMAGES; labels count the classes in the order of their folders' sorted names.

    Where no test images are given, `draw_test` takes them from the others; where nothing else is given, the dataset
    is for tests only. `dataset_dir` is the image folder. `split_hash` is of the images' content too, so that it
    tells one user's images from another's with the same file names.
    """

    def __init__(self, cfg):
        if cfg.DATASET.TEMPLATE:
            check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        source = locate_images(cfg.DATASET.IMAGES)
        image_dir = source if source.is_dir() else source.parent
        kept = folder_of(source, cfg.DATASET.ROOT)
        stored, names = read_or_make_split(source, image_dir, kept / "split.json", cfg.DATASET.CLASSNAMES)
        split = {}
        for part in PARTS:
            split[part] = [Item(path, label, names[folder]) for path, label, folder in stored[part]]
        if not split["train"]:
            self.test_only = True
            split = {"train": split["test"], "test": split["test"]}
        self.load(split, kept, image_dir, cfg)
        self.dataset_dir = image_dir  # result.json's hash takes paths from here
        self.split_hash = lines_hash([self.split_hash, str(stored.get("content", ""))])


def locate_images(images):
    """DATASET.IMAGES as a full path, which must exist."""
    if not images:
        raise UserError("DATASET.IMAGES is not set: give the folder with your images (the scripts: IMAGES=...)")
    source = Path(images).expanduser().absolute()
    if not source.exists():
        raise MissingFile(f"No {source}; set DATASET.IMAGES (the scripts: IMAGES) to a folder or a CSV file")
    return source


def folder_of(source, root):
    """The folder where what is found out about the images in `source` is kept."""
    digest = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
    return Path(root).expanduser().absolute() / "custom" / f"{source.stem}-{digest}"


def read_or_make_split(source, image_dir, path, names_file):
    """(the split as `make_split` gives it, {folder: class name}); kept in the file `path`."""
    rows = folder_rows(source) if source.is_dir() else csv_rows(source)
    stored = read_stored(path, rows) if path.exists() else None
    if stored is None:
        folders = {row.folder for row in rows}
    else:
        folders = {row.classname for part in PARTS for row in stored[part]}
    names = class_names(folders, names_file)
    if len(names) < 2:
        raise UserError(
            f"{source} has only one class ({', '.join(names)}), it takes two: set DATASET.IMAGES (the "
            "scripts: IMAGES) to the folder that holds the class folders, perhaps the one above or below"
        )
    if stored is None:
        check_rows(rows, source)
        stored = make_split(rows, image_dir)
        write_cache(path, stored)
    report(stored, path)
    return stored, names


# ---- the split ---------------------------------------------------------------------------------------------


def make_split(rows, image_dir):
    """{train, val, test: [[path, label, folder]]}, and unreadable: paths, copies: lists of paths with equal bytes,
    content: a hash of all paths and bytes.

    `copies` are those that matter: in more than one part, or under more than one class.
    """
    rows_and_digests, unreadable = [], []
    for row, (digest, error) in zip(rows, check_images([image_dir / row.path for row in rows]), strict=True):
        if error:
            print(error)
            unreadable.append(row.path)
        else:
            rows_and_digests.append((row, digest))
    labels = {folder: label for label, folder in enumerate(sorted({row.folder for row in rows}))}
    if lost := sorted(set(labels) - {row.folder for row, _ in rows_and_digests}):
        raise UserError(f"No image of the class {lost[0]!r} decodes: replace them, or take the class away")
    if not any(row.part == "test" for row, _ in rows_and_digests):
        rows_and_digests = draw_test(rows_and_digests)
    split = {part: [] for part in PARTS}
    by_content = defaultdict(list)
    for row, digest in rows_and_digests:
        split[row.part].append([row.path, labels[row.folder], row.folder])
        by_content[digest].append(row)
    copies = []
    for same in by_content.values():
        if len({(row.folder, row.part) for row in same}) > 1:
            copies.append([row.path for row in same])
    content = lines_hash(sorted(f"{digest} {row.path}" for row, digest in rows_and_digests))
    return {**split, "unreadable": unreadable, "copies": copies, "content": content}


def draw_test(rows_and_digests):
    """Take 30% of every class for test and, unless some are given, 20% for val: [(row, SHA-256)], parts filled in.

    The images of a class are put in the order of their SHA-256, a shuffle that knows neither names nor folders, so
    the same images are drawn on every machine; the first are test, then val, then train. Copies stay together.
    UserError names the classes with less than two different images.
    """
    given_val = any(row.part == "val" for row, _ in rows_and_digests)
    by_class = defaultdict(set)
    for row, digest in rows_and_digests:
        if row.part != "val":
            by_class[row.folder].add(digest)
    refuse_too_few(sorted(folder for folder, contents in by_class.items() if len(contents) < 2), len(by_class))
    drawn = {}
    for folder, contents in by_class.items():
        test = max(1, int(TEST_SHARE * len(contents) + 0.5))
        val = 0 if given_val else int(VAL_SHARE * len(contents) + 0.5)
        for rank, digest in enumerate(sorted(contents)):
            drawn[folder, digest] = "test" if rank < test else "val" if rank < test + val else "train"
    filled = []
    for row, digest in rows_and_digests:
        part = "val" if row.part == "val" else drawn[row.folder, digest]
        filled.append((row._replace(part=part), digest))
    return filled


def read_stored(path, rows):
    """What `make_split` found, as kept in `path`. It holds until it is deleted: new images don't change it.

    UserError if images in it are gone, or now have another class or part.
    """
    try:
        stored = read_json(path)
        stored |= {part: read_rows(stored, part, path) for part in PARTS}
        unreadable = set(stored["unreadable"])
        copies = [list(map(str, same)) for same in stored["copies"]]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, and the split is made again") from error
    known = {(item.path, item.classname): part for part in PARTS for item in stored[part]}
    given = {(row.path, row.folder): row.part for row in rows}
    changed = [key[0] for key, part in known.items() if given.get(key) not in ("", part)]
    if changed:
        raise UserError(
            f"{len(changed)} images of the split in {path} are gone or filed elsewhere (first: {changed[0]}): put "
            "them back, or delete that file for a new split and train again"
        )
    new = [key[0] for key in given if key not in known and key[0] not in unreadable]
    if new:
        print(f"Left out: {len(new)} images newer than the split (first: {new[0]}); to have them in, delete {path}")
    return stored | {"copies": copies}


def report(stored, path):
    """Say where the split is and what is wrong with the images; the whole lists are in the file."""
    print(f"Split: {', '.join(f'{len(stored[part]):,} {part}' for part in PARTS)} images, kept in {path}")
    if unreadable := stored["unreadable"]:
        names = shorten(unreadable, 5)
        print(f"Left out: {len(unreadable)} images that don't decode ({names}); once replaced, delete {path}")
    if stored["copies"]:
        print(
            f"Warning: {len(stored['copies'])} images are there more than once, across train, val and test or across "
            "classes, with equal bytes (SHA-256; resized or re-saved copies are not found): "
            + shorten([" = ".join(same) for same in stored["copies"]], 5)
        )
