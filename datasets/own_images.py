"""What a user gives the dataset `custom`: class folders or a CSV file of images, and names for the classes."""

import csv
import io
import re
import unicodedata
from collections import defaultdict
from typing import NamedTuple

import yaml

from dassl.utils import BadFile, UserError, compose_yaml, nearest, read_text

from .files import IMAGE_SUFFIXES, class_folders, count_suffixes, is_image, shorten, visible_files
from .splits import PARTS

PART_NAMES = {"": "", "training": "train", "valid": "val", "validation": "val", "testing": "test"}
NAMES_FORM = "must be YAML, a class name on every line behind a hyphen, or behind a key and a colon"
PART_NAMES |= {part: part for part in PARTS}


class Row(NamedTuple):
    """One image as the user has filed it."""

    path: str  # relative to the image folder
    folder: str  # its class, as the folder or the CSV's label spells it
    part: str  # train, val, test, or "" where the split is left to us


def composed(text):
    """`text` in Unicode's composed form (NFC): in a folder's name from macOS an e may be followed by its accent."""
    return unicodedata.normalize("NFC", text)


# ---- images ------------------------------------------------------------------------------------------------


def folder_rows(source):
    """Rows of a folder of class folders, or of train, val and test folders with class folders in them.

    A folder that holds nothing but a folder called test is for tests only.
    """
    parts = {name: PART_NAMES.get(name.lower()) for name in class_folders(source)}
    others = [name for name, part in parts.items() if part is None]
    given = set(parts.values()) - {None}
    if given and not others and given != {"val"}:
        if "train" not in given and given != {"test"}:
            raise UserError(f"{source} has val and test folders, but none called train: add it, or take val away")
        return [row for name, part in parts.items() for row in class_rows(source, source / name, part)]
    if {"train", "test"} <= given:
        raise UserError(
            f"{source} has train and test folders, and others beside them ({shorten(others)}): move those into "
            "train or test, or take them away"
        )
    return class_rows(source, source, "")


def class_rows(source, top, part):
    """Rows of the images in the class folders of `top`, and of the folders below; what is left out is printed."""
    rows, empty, links, others = [], [], [], []
    for name in class_folders(top):
        images = []
        for path in sorted(visible_files(top / name)):
            if is_image(path):
                images.append(Row(path.relative_to(source).as_posix(), composed(name), part))
            elif path.is_symlink() and not path.exists():
                links.append(path.relative_to(source).as_posix())
            else:
                others.append(path.name)
        rows += images
        if not images:
            empty.append(name)
    if links:
        print(f"Left out: {len(links)} links in {top} that lead to no file ({shorten(links)})")
    if others:
        print(f"Left out: files in {top} that are no images by their extension ({count_suffixes(others)})")
    if not rows:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{top} has no class folders with images ({kinds}): make one folder per class")
    if loose := sum(is_image(path) for path in top.iterdir()):
        print(f"Left out: {loose} images that lie in {top} itself, in no class folder")
    if empty:
        print(f"Left out: {len(empty)} folders of {top} without an image ({', '.join(empty)})")
    return rows


def csv_rows(source):
    """Rows of a CSV file with the columns path, label and perhaps split; paths start where the file is."""
    try:
        text = read_text(source)
    except BadFile as error:
        raise UserError(f"{source} is neither a folder nor a CSV file with images: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows, seen = [], set()
    try:
        if not {"path", "label"} <= set(reader.fieldnames or ()):
            raise UserError(f'{source} has no first line "path,label" or "path,label,split"; add it')
        for line in reader:
            path, folder, part = ((line.get(key) or "").strip() for key in ("path", "label", "split"))
            if wrong := csv_problem(source.parent, path, folder, part, seen):
                raise UserError(f"{source}, line {reader.line_num}: {wrong}; correct it there")
            seen.add(path)
            rows.append(Row(path, composed(folder), PART_NAMES[part.lower()]))
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: {error}; correct it there") from error
    if not rows:
        raise UserError(f"{source} lists no images; add a line for each")
    if len({row.part == "" for row in rows}) > 1:
        raise UserError(f"{source} names a split for some images only: name one for all, or for none")
    return rows


def csv_problem(top, path, folder, part, seen):
    """What is wrong with one line of a CSV file, or ""."""
    if not folder:
        return "no label"
    if not (top / path).is_file():
        return f"no image at {top / path}"
    if path in seen:
        return f"{path} for the second time"
    if part.lower() not in PART_NAMES:
        return f'split "{part}" is not train, val or test'
    return ""


def check_rows(rows, source):
    """Raise UserError for what can't become a split; asked before every image is decoded, which takes time."""
    classes = sorted({row.folder for row in rows})
    if all(row.part == "test" for row in rows):
        return
    trained = {row.folder for row in rows if row.part in ("", "train")}
    if missing := [name for name in classes if name not in trained]:
        raise UserError(
            f"{source}: no training images for {len(missing)} of {len(classes)} classes (first: {missing[0]}); the "
            "folders train and test must hold the same class folders, and nothing between"
        )
    if any(row.part == "test" for row in rows):
        return
    counts = defaultdict(int)
    for row in rows:
        counts[row.folder] += row.part != "val"
    refuse_too_few([name for name in classes if counts[name] < 2], len(classes))


def refuse_too_few(few, classes):
    """Raise UserError if there are classes of which no test image can be drawn."""
    if few:
        raise UserError(
            f"Too few images to draw a test set: {len(few)} of {classes} classes ({shorten(few, 5)}) have only one; "
            "add more, take the class away, or put all class folders into one called test to test on them only"
        )


# ---- class names -------------------------------------------------------------------------------------------


def class_names(folders, names_file=""):
    """{folder: name}: from the YAML file ("folder: name" lines) or the folder, "_" and "-" as spaces.

    UserError for names that differ by case at most: their prompts would be the same.
    """
    given = read_names(names_file) if names_file else {}
    if not isinstance(given, dict):
        raise UserError(f'{names_file} must hold lines "folder: name", not a list')
    if unknown := sorted(set(given) - set(folders)):
        raise UserError(f"{names_file} names a class {unknown[0]!r}, do you mean {nearest(unknown[0], folders)!r}?")
    by_name = defaultdict(list)
    names = {}
    for folder in sorted(folders):
        names[folder] = given.get(folder) or " ".join(re.split(r"[\s_-]+", folder)).strip() or folder
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
    top = compose_yaml(path)
    if isinstance(top, yaml.MappingNode):
        return {text_of(key, path): text_of(value, path) for key, value in top.value}
    if isinstance(top, yaml.SequenceNode) and top.value:
        return [text_of(value, path) for value in top.value]
    raise UserError(f"{path} {NAMES_FORM}")


def text_of(node, path):
    """The text of a YAML scalar as it is written, composed; UserError for anything else, and for an empty one."""
    if isinstance(node, yaml.ScalarNode) and node.value.strip():
        return composed(node.value)
    raise UserError(f"{path}, line {node.start_mark.line + 1}: it {NAMES_FORM}")
