"""CoOp's few-shot caches, split_fewshot/shot_<shots>-seed_<seed>.pkl, read without trusting them.

CoOp pickles {"train": [Datum, ...], "val": [Datum, ...]} (ImageNet: only "train") with the absolute paths of the
machine that drew them. Unpickling as usual runs whatever code the file asks for; here nothing can be asked for.
"""

import io
import pickle
from collections import Counter
from pathlib import PurePosixPath

from dassl.utils import UserError

_FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}
_MOST_BYTES = 1 << 28  # all of ImageNet at 16 shots takes some 3 MB


class _Datum:
    """Stands in for Dassl's class: takes its four fields and nothing else."""

    path = None  # until the fields have come

    def __setstate__(self, state):
        if type(state) is not dict or {key: type(value) for key, value in state.items()} != _FIELDS:
            raise pickle.UnpicklingError("a Datum with other fields than path, label, domain and class name")
        self.path = PurePosixPath(state["_impath"].replace("\\", "/"))
        self.label = state["_label"]
        self.classname = state["_classname"]


class _Unpickler(pickle._Unpickler):
    """The one in Python, not in C: a number in a hostile file makes the latter reserve gigabytes."""

    def find_class(self, module, name):
        if (module, name) != ("dassl.data.datasets.base_dataset", "Datum"):
            raise pickle.UnpicklingError(f"it asks for {ascii(f'{module}.{name}')[:80]}")
        return _Datum


def read_pickled(path, split, parts, shots):
    """The picks in the pickle `path` as {part: items of `split`}, in the order of the pickle.

    A path of another machine is known by its end, which must be that of an image in the same part of the
    split, with the same label and class name. UserError for anything but lists of Datum, for images that are not
    in the split, for a class that has not the shots (val: min(shots, 4), where there are as many).
    """
    stored = load_datums(path)
    missing = [part for part in parts if part not in stored]
    if missing:
        raise refuse(path, f"it has no {' and no '.join(missing)} images")
    selected = {}
    for part in parts:
        selected[part] = match_items(path, part, stored[part], split[part])
        wanted = shots if part == "train" else min(shots, 4)
        if short := classes_without_shots(selected[part], split[part], wanted):
            raise refuse(path, f"{len(short)} classes have not {wanted} {part} images each (first: {short[0]})")
    return selected


def refuse(path, reason):
    """The error for a pickle that can't be used."""
    return UserError(
        f"{path} is not used: {reason}. Move it away to have the picks drawn from the seed, or get an intact copy"
    )


def load_datums(path):
    """What the pickle holds, as a dict of lists of complete `_Datum`."""
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise refuse(path, f"{size:,} bytes are too many for few-shot picks")
    try:
        stored = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = error if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise refuse(path, f"not a pickle of Datum lists ({reason})") from error
    lists = stored.values() if type(stored) is dict else [None]
    for items in lists:
        if type(items) is not list or not all(type(item) is _Datum and item.path for item in items):
            raise refuse(path, "not a pickle of Datum lists")
    return stored


def match_items(path, part, datums, items):
    """The items of one part of the split that the datums stand for; UserError if some stand for none."""
    known = {item.path: item for item in items}
    selected, wrong = [], []
    for datum in datums:
        item = item_at_end(datum.path.parts, known)
        if item is None or (item.label, item.classname) != (datum.label, datum.classname):
            wrong.append(repr(str(datum.path)))
        selected.append(item)
    if wrong:
        raise refuse(
            path, f"{len(wrong)} of its {part} images are not in this split, or not in that class (first: {wrong[0]})"
        )
    return selected


def item_at_end(parts, known):
    """The item of {path: item} whose path is the longest end of `parts`; None if there is none."""
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        if end in known:
            return known[end]
    return None


def classes_without_shots(selected, items, shots):
    """Names of the classes of `items` of which there are not `shots` different images (or all, if there are fewer)."""
    available = Counter(item.label for item in items)
    picked = Counter(item.label for item in selected)
    different = Counter(item.label for item in set(selected))
    names = {item.label: item.classname for item in items}
    short = []
    for label, number in available.items():
        if not picked[label] == different[label] == min(shots, number):
            short.append(names[label])
    return short
