"""Base against new classes over learning rates, from what scripts/curve.sh leaves: one folder for each trial.

    python -m results.curve output/curve

A method that is tuned harder knows the base classes better and forgets more of the others. So methods are compared as
curves, a point for each rate: the curve that lies further out is the better method whatever the rate. Every curve
begins at zero-shot CLIP, as rate 0; several numbers of epochs are several curves. Three tables for each dataset: the
points; new classes where base classes are equally well known (linear between the points of neighbouring rates, the best
one if a curve comes by several times; "-": the curve never gets there); all methods at each rate. The curves are drawn
into the folder.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read.
"""

import math
import sys
from collections import defaultdict
from pathlib import Path

from .ablation import ACCURACIES, collect
from .choose import trial_of
from .layout import parts, table_text
from .plot import method_lines, plot
from .read import absolute, read_folder
from .tables import Row, accuracy_cells, build_tables, finish, folder_of, notes, seeds_behind, shown

STEPS = (0.5, 1, 2, 5, 10, 20)  # between the levels of equal base accuracy, in percent
MOST_LEVELS = 6
DIVERGED = 0.7  # of zero-shot CLIP's base accuracy: a point below lies outside the plot
SIZE = (8, 6)  # of the plot, in inches
UNTRAINED = "ZeroshotCLIP"


def new_at(points: list[tuple[float, float]], base: float) -> float | None:
    """The accuracy on new classes where a curve's base accuracy is `base`; None where it never is.

    points: (base, new) in the order of the rates, in percent.
    """
    found = [new for at, new in points if at == base]
    for (left, new_left), (right, new_right) in zip(points, points[1:], strict=False):
        if min(left, right) < base < max(left, right):
            found.append(new_left + (base - left) / (right - left) * (new_right - new_left))
    return max(found, default=None)


def levels(curves: list[list[tuple[float, float]]]) -> list[float]:
    """Round base accuracies, at most MOST_LEVELS, from where the curves begin to the most that two of them reach."""
    tops = sorted(max(base for base, _ in points) for points in curves)
    if len(tops) < 2:
        return []
    low, high = min(points[0][0] for points in curves), tops[-2]
    for step in STEPS:
        found = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(found) <= MOST_LEVELS:
            return found
    return []


def methods(grids: dict[tuple, dict[str, Row]]) -> dict[tuple, dict[str, dict[str, Row]]]:
    """What `ablation.collect` gives -> {(dataset, shots, backbone): {method: {rate: row}}}.

    Where two recipes of a trainer would have one name, their configs tell them apart; epochs are named where a dataset
    has several numbers of them.
    """
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for (dataset, trainer, config, shots, backbone), rows in grids.items():
        trials = sorted((trial_of(point), point) for point in rows if trial_of(point))
        for (rate, epochs), point in trials:
            row = rows[point]
            name = trainer if row.preset in ("", "recommended", "matched") else f"{trainer} ({row.preset})"
            found[dataset, shots, backbone][name, epochs][f"{trainer} ({config})"][f"{rate:g}"] = row
    named = {}
    for label, short in found.items():
        named[label] = {}
        several = len({epochs for name, epochs in short if name != UNTRAINED}) > 1
        for (name, epochs), curves in short.items():
            tail = f", {epochs} epochs" if several and epochs else ""
            if len(curves) == 1:
                named[label][name + tail] = next(iter(curves.values()))
            else:
                named[label] |= {config + tail: rows for config, rows in curves.items()}
    return named


def points_of(rows: dict[str, Row]) -> list[tuple[float, float]]:
    """[(base, new)] in the order of the rates, without the rates of which one half is missing."""
    whole = [row for row in rows.values() if "H" in row.cells]
    return [(row.cells["Base"].mean, row.cells["New"].mean) for row in whole]


def points_table(title: str, found: dict[str, dict[str, Row]]) -> dict:
    """All points, for `layout`."""
    columns = [["method", "Method", "text"], ["rate", "Rate", "text"]]
    columns += [[name.lower(), name, "percent"] for name in ACCURACIES] + [["n", "n", "number"]]
    lines = []
    for name, rows in found.items():
        for rate, row in rows.items():
            cells = accuracy_cells(row, ACCURACIES) | {"n": seeds_behind(row, ACCURACIES)}
            lines.append({"method": name, "rate": rate} | cells)
    return {"title": f"{title}: base and new over learning rates", "columns": columns, "rows": lines}


def equal_base_table(title: str, found: dict[str, dict[str, Row]]) -> dict | None:
    """New at equal base accuracy, for `layout`; None where fewer than two curves meet."""
    points = {name: points_of(rows) for name, rows in found.items()}
    start = points.pop(UNTRAINED, [])
    curves = {name: start + own for name, own in points.items() if own}
    at = levels(list(curves.values()))
    if not at:
        return None
    columns = [["method", "Method", "text"], *([f"{base:g}", f"base {base:g}", "percent1"] for base in at)]
    lines = []
    for name, points in curves.items():
        lines.append({"method": name} | {f"{base:g}": new_at(points, base) for base in at})
    return {
        "title": f"{title}: accuracy on new classes where that on base classes is",
        "columns": columns,
        "rows": lines,
    }


def rate_table(title: str, found: dict[str, dict[str, Row]]) -> dict | None:
    """H of all methods at each rate, for `layout`; None where there is one rate only."""
    rates = sorted({rate for rows in found.values() for rate in rows}, key=float)
    if len(rates) < 2:
        return None
    columns = [["method", "Method", "text"], *([rate, rate, "percent"] for rate in rates)]
    lines = []
    for name, rows in found.items():
        lines.append({"method": name} | {rate: accuracy_cells(row, ["H"])["h"] for rate, row in rows.items()})
    return {"title": f"{title}: H at one common rate", "columns": columns, "rows": lines}


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """The tables of a folder, for `layout` -> (tables, problems, notes)."""
    top = absolute(folder)
    runs, problems = read_folder(top)
    tables = build_tables(runs)
    made = []
    for label, found in methods(collect(tables, top)).items():
        title = ", ".join(filter(None, label))
        made += [points_table(title, found), equal_base_table(title, found), rate_table(title, found)]
    return [table for table in made if table], problems, list(notes(tables if made else []))


def paint(canvas, table: dict) -> None:
    """The curves of a table of points on a matplotlib figure: base accuracy to the right, new accuracy up.

    The axes end at the points of what has not diverged.
    """
    axes = canvas.subplots()
    curves = {}
    for row in table["rows"]:
        if parts(row["base"]) and parts(row["new"]):
            curves.setdefault(row["method"], []).append((row["base"][0], row["new"][0]))
    start = curves.pop(UNTRAINED, [])
    method_lines(axes, {name: start + points for name, points in curves.items()})
    points = [point for points in curves.values() for point in points]
    near = start + [(base, new) for base, new in points if not start or base > DIVERGED * start[0][0]]
    if near:
        bases, news = zip(*near, strict=True)
        axes.set_xlim(min(bases) - 1, max(bases) + 1)
        axes.set_ylim(min(news) - 1, max(news) + 1)
    axes.set_xlabel("base classes, %")
    axes.set_ylabel("new classes, %")


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    folder = folder_of("results.curve", __doc__, "output/curve", argv)
    found, problems, said = figures(folder)
    for table in found:
        print(f"{table['title']}\n\n{table_text(table)}\n")
        if "rate" in [key for key, *_ in table["columns"]]:
            name = "_".join(table["title"].split(":")[0].split(", ")).replace(" ", "_").replace("/", "-")
            plot(folder / f"{name}.png", lambda canvas, table=table: paint(canvas, table), size=SIZE)
            print()
    print(f"In {shown(folder)}", *said, sep="\n")
    return finish(found, problems, f"no base-to-new runs in {folder}; first: bash scripts/curve.sh emoji")


if __name__ == "__main__":
    sys.exit(main())
