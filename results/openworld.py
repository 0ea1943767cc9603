"""Base and new images in one test, from two finished halves of base-to-new that kept their logits; no model is needed.

Generalised accuracy, OpenworldAUC (Hua et al., ICML 2025) and how well base images are told from new ones. All numbers
are in percent. docs/CALIBRATION.md has the definitions and where others differ.

Notation: N images, C classes of the whole dataset, K of them base.
"""

import json
import statistics
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .gate import Broken
from .read import BESIDE, SCORES, Run
from .tables import Row, Table, accuracy_cells, shown, titled

FILE, FORMAT = "logits.npz", 1
ARRAYS = {  # kind and number of dimensions
    **{"relative_logits": ("f", 2), "highest": ("f", 1), "labels": ("i", 1), "own": ("i", 1)},
    **{"images": ("U", 1), "classnames": ("U", 1), "about": ("U", 0)},
}
SAME = ("dataset", "split", "shots", "seed", "trainer", "backbone", "preset", "precision", "tested", "logit_scale")
# Ends of the options of a method that decide only its time and memory.
COST_ONLY = (".CACHE_LIMIT", ".CACHE_ON_DEVICE", ".COMPILE")
ACCEPTED = 0.95  # share of the images for which FPR95 sets its threshold


@dataclass(frozen=True)
class Half:
    """logits.npz of one half, read."""

    logits: np.ndarray  # float64 (N, C)
    labels: np.ndarray  # (N,), among C
    own: np.ndarray  # the half's own classes, among C
    images: list[str]
    classnames: list[str]
    about: dict  # what was run


# --- reading --------------------------------------------------------------------------------------------


def read_half(folder: Path) -> Half:
    """The logits that the test in `folder` kept. Raises Broken."""
    file = folder / FILE
    if not file.is_file():
        raise Broken(f"{shown(folder)} has no {FILE}: test it into another folder with TEST.SAVE_LOGITS True")
    try:
        with np.load(file, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in ARRAYS}
        about = json.loads(str(arrays["about"]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise Broken(f"{shown(file)} is damaged ({error}): remove that test and give its command again") from None
    check_arrays(arrays, about)
    logits = arrays["highest"].astype(np.float64)[:, None] + arrays["relative_logits"]
    names = (arrays["images"].tolist(), arrays["classnames"].tolist())
    return Half(logits, arrays["labels"], arrays["own"], *names, about)


def check_arrays(arrays: dict[str, np.ndarray], about: object) -> None:
    """Broken unless the arrays of one file have the right kinds and fit together."""
    wrong = [
        name for name, (kind, dims) in ARRAYS.items() if (arrays[name].dtype.kind, arrays[name].ndim) != (kind, dims)
    ]
    if wrong:
        raise Broken(f"{FILE} is not what a test writes: {wrong[0]} is of another type")
    number, classes = arrays["relative_logits"].shape
    lengths = {len(arrays[name]) for name in ("highest", "labels", "images")}
    inside = all(((arrays[name] >= 0) & (arrays[name] < classes)).all() for name in ("labels", "own"))
    inside = inside and np.isin(arrays["labels"], arrays["own"]).all()
    if lengths != {number} or len(arrays["classnames"]) != classes or not inside or not number:
        raise Broken(f"{FILE} is not what a test writes: its arrays don't fit together")
    if np.isnan(arrays["relative_logits"]).any() or not np.isfinite(arrays["highest"]).all():
        raise Broken(f"{FILE} has logits that are no numbers")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise Broken(f"{FILE} doesn't say what was run, or is of another version of this code: test again")


def check_halves(base: Half, new: Half) -> None:
    """Broken, with the reason, unless both are of the same weights and together the whole dataset."""
    for half, part in ((base, "base"), (new, "new")):
        if half.about.get("subsample") != part:
            raise Broken(f"its classes are {half.about.get('subsample')}, not {part}")
    for key in SAME:
        there, here = base.about.get(key), new.about.get(key)
        if there != here:
            raise Broken(f"{key} {there} there, {here} here")
    there, here = (half.about.get("options") or {} for half in (base, new))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key) and not key.endswith(COST_ONLY):
            raise Broken(f"{key} {there.get(key)} there, {here.get(key)} here")
    if base.about.get("weights") != new.about.get("weights"):
        raise Broken("they tested other weights")
    if base.classnames != new.classnames:
        raise Broken("their logits are of other classes")
    if sorted([*base.own, *new.own]) != list(range(len(base.classnames))):
        raise Broken("their classes are not the whole dataset's, each once")
    if set(base.images) & set(new.images):
        raise Broken("they have images in common")


# --- numbers --------------------------------------------------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def right(half: Half, among: np.ndarray) -> np.ndarray:
    """Whether each image's own class has the highest logit among these classes: bool (N,)."""
    return among[half.logits[:, among].argmax(axis=1)] == half.labels


def scores(logits: np.ndarray, scale: float | None) -> dict[str, np.ndarray]:
    """How much an image looks like one of these classes: {score: (N,)}, from logits (N, K).

    MCM (Ming et al., NeurIPS 2022) is the highest probability at T = 1 of the cosines, without CLIP's factor `scale`.
    """
    highest = logits.max(axis=1)
    found = {} if scale is None else {"mcm": softmax(logits / scale).max(axis=1)}
    energy = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return found | {"msp": softmax(logits).max(axis=1), "max_logit": highest, "energy": energy}


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The share of pairs in which the positive image scores higher; an equal score counts half."""
    ordered = np.sort(negative)
    below, not_above = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negative)))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """AUPR: sum over thresholds of (recall - recall before) * precision, as scikit-learn's average_precision_score."""
    values, counts = np.unique(positive, return_counts=True)
    true = len(positive) - np.searchsorted(np.sort(positive), values)  # at or above each threshold
    false = len(negative) - np.searchsorted(np.sort(negative), values)
    return float((counts * true / (true + false)).sum() / len(positive))


def false_positives(positive: np.ndarray, negative: np.ndarray) -> float:
    """FPR95: the share of the negative images at or above the highest threshold that takes 95% of the positive ones."""
    needed = int(np.ceil(ACCEPTED * len(positive)))
    threshold = np.sort(positive)[len(positive) - needed]
    return float((negative >= threshold).mean())


def openworld_auc(base: Half, new: Half) -> float:
    """The share of pairs of a base and a new image in which both are right among their own half's classes and the base
    one has the higher base score; an equal score counts half. The score is the highest probability of a base class in
    the softmax over all classes, as in the paper's code."""
    ours, theirs = (softmax(half.logits)[:, base.own].max(axis=1)[right(half, half.own)] for half in (base, new))
    pairs = len(base.labels) * len(new.labels)
    return auroc(ours, theirs) * len(ours) * len(theirs) / pairs if len(ours) and len(theirs) else 0.0


def numbers(base: Half, new: Half) -> dict[str, float]:
    """Every number of two halves that `check_halves` has let through, in percent, by the names of read.BESIDE."""
    everything = np.arange(len(base.classnames))
    found = {"gen_base": right(base, everything).mean(), "gen_new": right(new, everything).mean()}
    found["gen_h"] = statistics.harmonic_mean([float(value) for value in found.values()])
    found["openworld_auc"] = openworld_auc(base, new)
    inside, outside = (scores(half.logits[:, base.own], base.about.get("logit_scale")) for half in (base, new))
    for name, positive in inside.items():
        negative = outside[name]
        found[f"auroc_{name}"] = auroc(positive, negative)
        found[f"aupr_{name}"] = average_precision(positive, negative)
        found[f"fpr95_id_{name}"] = false_positives(positive, negative)
        found[f"fpr95_ood_{name}"] = false_positives(-negative, -positive)
    return {name: 100 * float(value) for name, value in found.items()}


def join(base: Path, new: Path) -> dict[str, float]:
    """`numbers` of the halves in two folders. Raises Broken."""
    half, other = read_half(base), read_half(new)
    check_halves(half, other)
    return numbers(half, other)


# --- many runs ------------------------------------------------------------------------------------------


def add_joined(runs: list[Run], kept_only: bool = False) -> tuple[list[Run], dict[Path, str]]:
    """-> (the runs, those on new classes with the numbers of both halves, {folder: why there are none}).

    kept_only: pairs of which a half kept no logits are left as they are, without a word.
    """
    bases = {halves(run): run for run in runs if run.part == "train_base"}
    found, problems = [], {}
    for run in runs:
        base = bases.get(halves(run)) if run.part == "test_new" else None
        if base and (not kept_only or all((half.file.parent / FILE).is_file() for half in (base, run))):
            try:
                run = replace(run, beside=run.beside | join(base.file.parent, run.file.parent))
            except Broken as error:
                problems[run.file.parent] = f"not joined with {shown(base.file.parent)}: {error}"
        found.append(run)
    return found, problems


def halves(run: Run) -> tuple:
    """What the two halves of one seed share."""
    return run.experiment, run.seed, run.backbone, run.tested, run.split


def figures(tables: list[Table]) -> list[dict]:
    """Two tables for `layout` of each base-to-new table with joined halves: all classes at once; base told from new."""
    found = []
    for table in tables:
        rows = [row for row in table.rows + table.averages if "gen_h" in row.cells]
        if rows:
            found += [generalised(table, rows), near_ood(table, rows)]
    return found


NOTES = (
    "ECE: 15 bins, of each half among its own classes; Gen.: each half's images among all classes, and H of the two",
    "OpenworldAUC: pairs of a base and a new image that are both right, and in the right order; docs/CALIBRATION.md",
    "base told from new: by the base classes alone, base images being positive",
    "FPR95 id: new images accepted with 95% of the base ones, ood: base images flagged with 95% of the new ones",
)
NAMES = [["dataset", "Dataset", "text"], ["trainer", "Trainer", "text"], ["config", "Config", "text"]]
N = ["n", "n", "number"]


def line_of(row: Row) -> dict:
    """What begins a line."""
    n = str(row.cells["gen_h"].n) if row.values else ""
    return {"dataset": row.name, "trainer": row.trainer, "config": row.config, "n": n}


def generalised(table: Table, rows: list[Row]) -> dict:
    """Accuracy and calibration of each half by itself, and both against all classes."""
    names = ("ece15_base", "ece15_new", "gen_base", "gen_new", "gen_h", "openworld_auc")
    columns = [["h", "H", "percent"], *([name, BESIDE[name].replace(" ", "\n"), "percent"] for name in names)]
    lines = [line_of(row) | accuracy_cells(row, ("H", *names)) for row in rows]
    return titled(table, "all classes at once", [*NAMES, *columns, N], lines)


def near_ood(table: Table, rows: list[Row]) -> dict:
    """A line for each method and score: how well base images are told from new ones by the base classes alone."""
    metrics = {"auroc": "AUROC", "aupr": "AUPR", "fpr95_id": "FPR95\nid", "fpr95_ood": "FPR95\nood"}
    columns = [["score", "Score", "text"], *([name, head, "percent"] for name, head in metrics.items()), N]
    lines = []
    for row in rows:
        for score in SCORES:
            cells = accuracy_cells(row, [f"{name}_{score}" for name in metrics])
            cells = {name: cells[f"{name}_{score}"] for name in metrics}
            lines.append(line_of(row) | {"score": score} | cells)
    return titled(table, "base told from new", [*NAMES, *columns], lines)
