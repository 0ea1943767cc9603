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
    stored = _load(path)
    if missing := [part for part in parts if part not in stored]:
        raise _refuse(path, f"it has no {' and no '.join(missing)} images")
    selected = {part: _match(path, part, stored[part], split[part]) for part in parts}
    for part, items in selected.items():
        _check_counts(path, part, items, split[part], shots if part == "train" else min(shots, 4))
    return selected


def _refuse(path, reason):
    return UserError(
        f"{path} is not used: {reason}. Move it away to have the picks drawn from the seed, or get an intact copy"
    )


def _load(path):
    """What the pickle holds, as a dict of lists of complete `_Datum`."""
    if (size := path.stat().st_size) > _MOST_BYTES:
        raise _refuse(path, f"{size:,} bytes are too many for few-shot picks")
    try:
        stored = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle can raise almost anything
        reason = error if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise _refuse(path, f"not a pickle of Datum lists ({reason})") from error
    if type(stored) is not dict or not all(map(_is_list_of_datums, stored.values())):
        raise _refuse(path, "not a pickle of Datum lists")
    return stored


def _is_list_of_datums(items):
    return type(items) is list and all(type(item) is _Datum and item.path for item in items)


def _match(path, part, pickled, items):
    known = {item.path: item for item in items}
    selected = [_find(datum.path.parts, known) for datum in pickled]
    wrong = [
        repr(str(datum.path))
        for datum, item in zip(pickled, selected, strict=True)
        if item is None or (item.label, item.classname) != (datum.label, datum.classname)
    ]
    if wrong:
        raise _refuse(
            path, f"{len(wrong)} of its {part} images are not in this split, or not in that class (first: {wrong[0]})"
        )
    return selected


def _find(parts, known):
    """The item whose path is the longest end of `parts`; None if there is none."""
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((known[end] for end in ends if end in known), None)


def _check_counts(path, part, selected, items, shots):
    available, picked, different = (Counter(item.label for item in group) for group in (items, selected, set(selected)))
    wrong = [
        item.classname
        for item in items
        if not picked[item.label] == different[item.label] == min(shots, available[item.label])
    ]
    if wrong:
        raise _refuse(path, f"{len(set(wrong))} classes have not {shots} {part} images each (first: {wrong[0]})")
