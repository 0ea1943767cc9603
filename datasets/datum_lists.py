"""What the dataset files of CoOp and its forks call on OxfordPets and DescribableTextures: splits as lists of Datum.

Our own datasets don't need it. It is here so that such a file works when it is dropped into this folder and its name
is added to `datasets.DATASETS`. Names and arguments are CoOp's, and so are the random draws.
"""

import os
import random
from collections import defaultdict

from dassl.data.datasets import Datum
from dassl.utils import UserError, listdir_nohidden, write_json

from . import splits


def read_split(filepath, path_prefix):
    """(train, val, test) of a split file; its paths start in the folder `path_prefix`."""
    split = splits.read_split(filepath)
    parts = []
    for part in splits.PARTS:
        parts.append([datum(os.path.join(path_prefix, item.path), item.label, item.classname) for item in split[part]])
    return tuple(parts)


def save_split(train, val, test, filepath, path_prefix):
    """Write a split file with paths relative to the folder `path_prefix`."""
    rows = {}
    for part, items in zip(splits.PARTS, (train, val, test), strict=True):
        rows[part] = [[relative_path(item.impath, path_prefix), item.label, item.classname] for item in items]
    write_json(rows, filepath)
    print(f"Saved split to {filepath}")


def split_trainval(trainval, p_val=0.2):
    """(train, val): of every class the share `p_val`, rounded, drawn with Python's `random`, is val."""
    print(f"Splitting trainval into {1 - p_val:.0%} train and {p_val:.0%} val")
    by_label = defaultdict(list)
    for item in trainval:
        by_label[item.label].append(item)
    train, val = [], []
    for items in by_label.values():
        number = round(len(items) * p_val)
        if not number:
            raise UserError(
                f"class {items[0].classname!r} has {len(items)} images, too few for a share of {p_val} in val"
            )
        random.shuffle(items)
        val += items[:number]
        train += items[number:]
    return train, val


def subsample_classes(*args, subsample="all"):
    """All, base or new classes of each list, numbered from 0 again; as `splits.subsample_classes`, for Datum."""
    if subsample == "all":
        return args
    new_labels = splits.choose_labels({item.label for item in args[0]}, subsample)
    kept = []
    for items in args:
        chosen = [item for item in items if item.label in new_labels]
        kept.append([datum(item.impath, new_labels[item.label], item.classname, item.domain) for item in chosen])
    return kept


def read_and_split_data(image_dir, p_trn=0.5, p_val=0.2, ignored=(), new_cnames=None):
    """(train, val, test) of a folder of class folders, drawn with Python's `random`.

    ignored: class folders to leave out. new_cnames: {class folder: class name}, where they differ.
    """
    print(f"Splitting into {p_trn:.0%} train, {p_val:.0%} val, and {1 - p_trn - p_val:.0%} test")
    folders = [name for name in listdir_nohidden(image_dir, sort=True) if name not in ignored]
    train, val, test = [], [], []
    for label, folder in enumerate(folders):
        paths = [os.path.join(image_dir, folder, name) for name in listdir_nohidden(os.path.join(image_dir, folder))]
        random.shuffle(paths)
        name = (new_cnames or {}).get(folder, folder)
        items = [datum(path, label, name) for path in paths]
        first, second = round(len(items) * p_trn), round(len(items) * p_trn) + round(len(items) * p_val)
        if not 0 < first < second < len(items):
            raise UserError(f"{os.path.join(image_dir, folder)} has {len(items)} images, too few for three parts")
        train += items[:first]
        val += items[first:second]
        test += items[second:]
    return train, val, test


def datum(path, label, name, domain=0):
    return Datum(impath=path, label=label, domain=domain, classname=name)


def relative_path(path, prefix):
    """`path` without the folder `prefix` that it starts with, "/" between its parts."""
    path = str(path).replace("\\", "/")
    prefix = str(prefix).replace("\\", "/").rstrip("/")
    return path.removeprefix(prefix).lstrip("/") if path.startswith(f"{prefix}/") else path
