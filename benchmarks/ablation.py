"""The table and the plot of an ablation: what scripts/skip/ablate_*.sh leave, one folder for each point of the grid.

    python -m benchmarks.ablation output/ablate/omega

Base, New and H are means and sample standard deviations over seeds, H seed by seed; training seconds include feature
extraction (in brackets); peak memory is that of training. There is one table, and one PNG in the folder, for each data
set, trainer, preset and number of shots; where a preset ran on several data sets, for their average as well. A run that
is missing or broken is listed and left out.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read.
"""

import argparse
import os
import sys
from pathlib import Path

from tabulate import tabulate

from benchmarks.plot import plot
from parse_test_res import (
    build_tables,
    cost,
    finish,
    notes,
    percent,
    read_folder,
    seeds_behind,
    shown,
    train_seconds,
)

# Table 4's rows in its order, for scripts/skip/ablate_components.sh
COMPONENTS = {"ft": "FT", "lskip": "LSkip only", "cskip": "CSkip only", "both": "both"}
ACCURACIES = ("Base", "New", "H")


def order(point):
    """Sorts the points of a grid: components as in Table 4, numbers by value, other names last."""
    if point in COMPONENTS:
        return 0, list(COMPONENTS).index(point), point
    try:
        return 1, float(point), point
    except ValueError:
        return 2, 0, point


def collect(tables, top):
    """parse_test_res's tables, one for each point -> {(data set, trainer, preset, shots, backbone): {point: row}}."""
    grids = {}
    for table in tables:
        if table.protocol != "base2new":
            continue
        point = os.path.relpath(table.where.parent, top)  # where: the point's base2new folder
        for (dataset, trainer, config), row in (table.rows | table.averages).items():
            label = (dataset, trainer, config, f"{table.shots} shots", table.backbone)
            grids.setdefault(label, {})[point] = row
    return {label: dict(sorted(rows.items(), key=lambda item: order(item[0]))) for label, rows in grids.items()}


def render(what, rows):
    """{point: row} -> the table as text."""
    body = [
        [
            COMPONENTS.get(point, point),
            *(percent(row.get(name)) for name in ACCURACIES),
            train_seconds(row),
            cost(row.get("Peak MB")),
            seeds_behind(row, ACCURACIES),
        ]
        for point, row in rows.items()
    ]
    header = [what, *ACCURACIES, "Train s", "Peak MB", "n"]
    return tabulate(body, header, disable_numparse=True, colalign=["left"] + ["right"] * (len(header) - 1))


def paint(figure, what, rows):
    """Figure 4's two readings of a grid, side by side: accuracy, and what it costs."""
    line = "" if COMPONENTS.keys() & rows.keys() else "-"  # between components there is nothing
    accuracy, seconds = figure.subplots(1, 2)
    memory = seconds.twinx()
    panels = [
        *((accuracy, name, colour) for name, colour in zip(ACCURACIES, ("C0", "C1", "C2"), strict=True)),
        (seconds, "Train s", "C3"),
        (memory, "Peak MB", "C4"),
    ]
    for axes, name, colour in panels:
        known = [(at, row[name]) for at, row in enumerate(rows.values()) if name in row]
        at, mean, spread = [x for x, _ in known], [s.mean for _, s in known], [s.spread or 0 for _, s in known]
        axes.errorbar(at, mean, spread, marker="o", linestyle=line, color=colour, capsize=3, label=name)
    accuracy.set_ylabel("accuracy, %")
    accuracy.legend()
    for axes, label, colour in ((seconds, "training, s", "C3"), (memory, "peak memory, MB", "C4")):
        axes.set_ylabel(label, color=colour)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    for axes in (accuracy, seconds):
        axes.set_xticks(range(len(rows)), [COMPONENTS.get(point, point) for point in rows])
        axes.set_xlabel(what)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="such as output/ablate/omega")
    folder = parser.parse_args(argv).folder
    top = Path(os.path.abspath(folder))
    runs, problems = read_folder(top)
    tables = build_tables(runs, ci95=False)
    grids = collect(tables, top)
    for label, rows in grids.items():
        print(f"{', '.join(filter(None, label))}, {shown(top)}\n\n{render(top.name, rows)}\n")
        name = "_".join(label[:4]).replace(" ", "_")
        plot(folder / f"{name}.png", lambda figure, rows=rows: paint(figure, top.name, rows), size=(10, 4))
        print()
    print(*notes(tables if grids else [], False, None), sep="\n")
    return finish(grids, problems, f"no base-to-new runs in {folder}; first: bash scripts/skip/ablate_omega.sh")


if __name__ == "__main__":
    sys.exit(main())
