"""The table and the plot of an ablation: what scripts/skip/ablate_*.sh leave, one folder for each point of the grid.

    python -m results.ablation output/ablate/omega

Base, New and H are means and sample standard deviations over seeds, H seed by seed; training seconds include feature
extraction (in brackets); peak memory is that of training. There is one table, and one PNG in the folder, for each
dataset, trainer, preset and number of shots; where a preset ran on several datasets, for their average as well. A run
that is missing or broken is listed and left out.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read.
"""

import os
import re
import sys
from pathlib import Path

from .layout import parts, table_text
from .plot import plot
from .read import absolute, read_folder
from .tables import (
    Row,
    Table,
    accuracy_cells,
    build_tables,
    cost_cells,
    finish,
    folder_of,
    memory_column,
    notes,
    seeds_behind,
    shots_name,
    shown,
)

# Table 4's rows in its order, for scripts/skip/ablate_components.sh
COMPONENTS = {"ft": "FT", "lskip": "LSkip only", "cskip": "CSkip only", "both": "both"}
ACCURACIES = ("Base", "New", "H")
COST_CURVES = (("train_s", "training, s", "Train s", "C3"), ("memory_mb", "peak memory, MB", "Peak MB", "C4"))


def order(point: str) -> tuple:
    """Sorts the points of a grid: components as in Table 4, numbers by value, other names last."""
    if point in COMPONENTS:
        return 0, list(COMPONENTS).index(point), point
    try:
        return 1, float(point), point
    except ValueError:
        return 2, 0, point


def collect(tables: list[Table], top: Path) -> dict[tuple, dict[str, Row]]:
    """Tables, one for each point -> {(dataset, trainer, preset, shots, backbone): {point: row}}."""
    grids = {}
    for table in tables:
        if table.protocol != "base2new":
            continue
        point = os.path.relpath(table.where.parent, top)  # where: the point's base2new folder
        for row in table.rows + table.averages:
            label = (row.name, row.trainer, row.config, shots_name(table.shots), table.backbone)
            grids.setdefault(label, {})[point] = row
    return {label: dict(sorted(rows.items(), key=lambda item: order(item[0]))) for label, rows in grids.items()}


def figure(title: str, what: str, rows: dict[str, Row], memory: str = "Peak MB") -> dict:
    """{point: row} -> a table for `layout`."""
    columns = [["point", what, "text"], *([name.lower(), name, "percent"] for name in ACCURACIES)]
    columns += [["train_s", "Train s", "cost"], ["memory_mb", memory, "cost"], ["n", "n", "number"]]
    lines = []
    for point, row in rows.items():
        line = {"point": COMPONENTS.get(point, point)} | accuracy_cells(row, ACCURACIES) | cost_cells(row, memory)
        lines.append(line | {"n": seeds_behind(row, ACCURACIES)})
    return {"title": title, "columns": columns, "rows": lines}


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """The tables of an ablation's folder, for `layout` -> (figures, problems, notes)."""
    top = absolute(folder)
    runs, problems = read_folder(top)
    tables = build_tables(runs)
    memory = next((memory_column(table) for table in tables), "Peak MB")
    found = []
    for label, rows in collect(tables, top).items():
        found.append(figure(", ".join(filter(None, label)), top.name, rows, memory))
    return found, problems, list(notes(tables if found else []))


def is_number(text: str) -> bool:
    """Whether a point's name is a number, so that there is something between it and the next."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def curve(axes, table: dict, key: str, label: str, colour: str, spread: bool = False) -> None:
    """One column of a figure over its points, with bars of one spread where it has them, on matplotlib axes."""
    at, means, spreads = [], [], []
    for position, row in enumerate(table["rows"]):
        if numbers := parts(row.get(key)):
            at.append(position)
            means.append(numbers[0])
            spreads.append(numbers[1] if spread and len(numbers) > 1 else 0)
    line = "-" if all(is_number(row["point"]) for row in table["rows"]) else ""
    axes.errorbar(at, means, spreads, marker="o", linestyle=line, color=colour, capsize=3, label=label)


def paint(canvas, table: dict) -> None:
    """Figure 4's two readings of a grid, side by side on a matplotlib figure: accuracy, and what it costs.

    What no row has is left out.
    """
    known = {key for row in table["rows"] for key in row if parts(row[key])}
    cost_curves = [one for one in COST_CURVES if one[0] in known]
    panels = canvas.subplots(1, 2 if cost_curves else 1, squeeze=False)[0]
    for name, colour in zip(ACCURACIES, ("C0", "C1", "C2"), strict=True):
        if name.lower() in known:
            curve(panels[0], table, name.lower(), name, colour, spread=True)
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend()
    for number, (key, label, name, colour) in enumerate(cost_curves):
        axes = panels[1] if number == 0 else panels[1].twinx()
        curve(axes, table, key, name, colour)
        axes.set_ylabel(label, color=colour)
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    for axes in panels:
        axes.set_xticks(range(len(table["rows"])), [row["point"] for row in table["rows"]])
        axes.set_xlabel(table["columns"][0][1])


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    folder = folder_of("results.ablation", __doc__, "output/ablate/omega", argv)
    found, problems, said = figures(folder)
    for table in found:
        print(f"{table['title']}, {shown(folder)}\n\n{table_text(table)}\n")
        name = re.sub(r"[^\w.-]+", "_", table["title"])
        plot(folder / f"{name}.png", lambda canvas, table=table: paint(canvas, table), size=(10, 4))
        print()
    print(*said, sep="\n")
    return finish(found, problems, f"no base-to-new runs in {folder}; first: bash scripts/skip/ablate_omega.sh")


if __name__ == "__main__":
    sys.exit(main())
