"""Splits as plain lists: the split file, few-shot selection, base and new classes.

A split is {"train": items, "val": items, "test": items}; "val" may be absent. Paths are relative everywhere
here, so nothing depends on where the images are.
"""

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from dassl.utils import BadFile, UserError, read_json, write_atomic
from dassl.utils.download import alone, file_hash

from .pickles import read_pickled

PARTS = ("train", "val", "test")
MOST_CLASSES = 1_000_000  # no label is higher


class Item(NamedTuple):
    """One image of a split, and one row of a split file."""

    path: str  # relative to the image folder, "/" between its parts
    label: int  # 0-based
    classname: str  # readable; underscores stay until a prompt is built


def read_split(path):
    """Read a split file: {"train" | "val" | "test": [[path, label, class name], ...]}.

    The order of its rows is kept: it decides which images a seed selects. Any other form raises UserError that
    names the file and the row.
    """
    try:
        stored = read_json(path)
    except BadFile as error:
        raise not_a_split(path, f"it is no JSON ({error.__cause__ or error})") from error
    return {part: read_rows(stored, part, path) for part in PARTS}


def read_rows(stored, part, path):
    """The rows of one part of the JSON object `stored`, which comes from the file `path`, as `Item`s."""
    rows = stored.get(part) if isinstance(stored, dict) else None
    if not isinstance(rows, list):
        raise not_a_split(path, f'it has no list "{part}"')
    for number, row in enumerate(rows):
        if problem := row_problem(row):
            raise not_a_split(path, f"in {part}[{number}] {problem}, but a row is [path, label, class name]")
    return [Item(*row) for row in rows]


def not_a_split(path, reason):
    """The error for a file that is not what it should be."""
    return UserError(f"{path} is not a split file: {reason}; get it again, see docs/DATASETS.md")


def row_problem(row):
    """What is wrong with one row of a split file, or ""."""
    if not isinstance(row, list) or len(row) != 3:
        return f"there is {repr(row)[:80]}"
    path, label, name = row
    if not isinstance(path, str) or not path or "\0" in path:
        return f"the path is {repr(path)[:80]}"
    if type(label) is not int or not 0 <= label < MOST_CLASSES:
        return f"the label is {repr(label)[:80]}, not a whole number from 0 to {MOST_CLASSES:,}"
    if not isinstance(name, str) or not name.strip():
        return f"the class name is {repr(name)[:80]}, not a text"
    return ""


def split_hash(split):
    """SHA-256 (hex) of the split as compact ASCII JSON with sorted keys.

    It is equal for all copies of a split, however their files are indented or end.
    """
    text = json.dumps(split, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def check_classes(split, name):
    """Raise UserError unless every label from 0 to the highest in the split has training images, and one name.

    Ask it of the whole split: base and new classes are numbered from the training images, so that a class
    without any would silently leave the test set too.
    """
    names = {}
    for items in split.values():
        for item in items:
            known = names.setdefault(item.label, item.classname)
            if known != item.classname:
                raise UserError(f"{name}: label {item.label} is {known!r} and {item.classname!r}, see docs/DATASETS.md")
    trained = sorted({item.label for item in split["train"]})
    classes = max(names, default=-1) + 1
    if len(trained) == classes:
        return
    # the first label that is not its own rank: a list of all labels could be as long as a label is high
    first = next((rank for rank, label in enumerate(trained) if rank != label), len(trained))
    raise UserError(
        f"{name}: no training images for {classes - len(trained):,} of {classes:,} classes "
        f"(first: {names.get(first, f'label {first}')}), see docs/DATASETS.md"
    )


# ---- few shots ---------------------------------------------------------------------------------------------


def select_shots(split, shots, seed, parts=("train", "val")):
    """Draw `shots` images per class of "train", min(shots, 4) of "val", as CoOp does -> {part: items}.

    One stream of Python's `random`, seeded with `seed` (negative: unseeded), serves train first, then val.
    Classes come in the order of their first appearance; one with too few validation images gives all it has and
    draws nothing, one with too few training images raises UserError: fewer would not be the shots asked for (it
    can't happen with the published splits up to 16). The stream is private, so that the global `random` does not
    tell whether a selection was drawn or read back.
    """
    counts = Counter(item.classname for item in split["train"])
    fewest = min(counts, key=counts.get)
    if counts[fewest] < shots:
        raise UserError(
            f"class {fewest!r} has {counts[fewest]} training images, fewer than the {shots} shots asked for; "
            f"set DATASET.NUM_SHOTS to {counts[fewest]} or less (the scripts: SHOTS={counts[fewest]})"
        )
    stream = random.Random(seed if seed >= 0 else None)
    return {part: _draw(split[part], shots if part == "train" else min(shots, 4), stream) for part in parts}


def _draw(items, shots, stream):
    by_class = defaultdict(list)  # insertion order = order of first appearance
    for item in items:
        by_class[item.label].append(item)
    drawn = []
    for group in by_class.values():
        drawn += stream.sample(group, shots) if len(group) >= shots else group
    return drawn


def few_shot(folder, split, digest, shots, seed, parts=("train", "val")):
    """`select_shots`, kept in `folder`/split_fewshot/shot_<shots>-seed_<seed>.json and read back from there.

    The file carries `digest`, the split's hash; one of another split, or a damaged one, is made afresh. Where CoOp's
    own cache lies beside it (.pkl), those picks are taken, as in CoOp. Of runs started together the first one that
    has its picks decides for all.
    """
    cache = Path(folder) / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
    identity = {"split": digest, "shots": shots, "seed": seed}
    pickled = cache.with_suffix(".pkl")
    if pickled.is_file():
        identity["pickle"] = file_hash(pickled)
    selected, wrong = read_selection(cache, identity, parts)
    if selected:
        print(f"Loading few-shot data from {cache}")
        return selected
    if wrong:
        print(f"{cache} {wrong}: making it afresh")
    if pickled.is_file():
        selected = read_pickled(pickled, split, parts, shots)
        differs = seed >= 0 and selected != select_shots(split, shots, seed, parts)
        note = f": not those that seed {seed} draws, but they win as in CoOp" if differs else ""
        print(f"Few-shot picks of {pickled}{note}")
    else:
        print(f"Creating a {shots}-shot dataset")
        selected = select_shots(split, shots, seed, parts)
    return _keep_first(cache, identity, selected)


def read_selection(cache, identity, parts):
    """({part: items}, "") of the file `cache`, or (None, why it can't serve; "" where there is none)."""
    if not cache.exists():
        return None, ""
    try:
        stored = read_json(cache)
        selected = {part: read_rows(stored, part, cache) for part in parts}
    except UserError:
        return None, "is damaged"
    if any(stored.get(key) != identity[key] for key in ("split", "shots", "seed")):
        return None, "belongs to another split"
    if "pickle" in identity and stored.get("pickle") != identity["pickle"]:
        return None, f"has not the picks of {cache.stem}.pkl"
    return selected, ""


def _keep_first(cache, identity, selected):
    """Write the picks, unless another run was faster: then its picks are returned, so that all use the same."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with alone(cache.parent / ".lock"):
            faster, _ = read_selection(cache, identity, tuple(selected))
            if not faster:
                write_atomic(cache, json.dumps(identity | selected).encode())
        return faster or selected
    except OSError as error:
        print(f"Not kept for later runs: {cache} ({error.strerror})")
        return selected


def write_cache(path, content):
    """Write JSON that can be made again at any time; in a read-only folder it is skipped with a note."""
    try:
        write_atomic(path, json.dumps(content).encode())
    except OSError as error:
        print(f"Not kept for later runs: {path} ({error.strerror})")


# ---- base and new classes ----------------------------------------------------------------------------------


def subsample_classes(*items, subsample):
    """Keep all, base or new classes of each list -> lists in the order given.

    Of the sorted labels in the first list, the first ceil(n/2) are base and the rest new; both are numbered
    from 0 again. UserError for any other `subsample`, and where one of the halves would have a single class: its
    accuracy would be 100% whatever was learned.
    """
    if subsample == "all":
        return list(items)
    renumbered = choose_labels({item.label for item in items[0]}, subsample)
    kept = []
    for group in items:
        kept.append([item._replace(label=renumbered[item.label]) for item in group if item.label in renumbered])
    return kept


def choose_labels(labels, subsample):
    """{label: its new number} of the base or new ones among the `labels`; errors as in `subsample_classes`."""
    if subsample not in ("base", "new"):
        raise UserError(f'DATASET.SUBSAMPLE_CLASSES is "{subsample}": it can be all, base or new')
    labels = sorted(labels)
    half = math.ceil(len(labels) / 2)
    if len(labels) - half < 2:
        raise UserError(
            f"{len(labels)} classes are too few for base and new classes, which takes two of each: "
            "use DATASET.SUBSAMPLE_CLASSES all (the script few_shot.sh)"
        )
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    chosen = labels[:half] if subsample == "base" else labels[half:]
    return {label: new for new, label in enumerate(chosen)}
