"""Tables -> charts as plain data, which the page (results/page.py) and matplotlib (results/paint.py) both draw.

A chart has views, mostly one for each dataset, and a view has series, mostly one for each method. Nothing is made up:
where a method has no number, its series has no point.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .ablation import ACCURACIES, collect, order
from .read import COSTS
from .tables import Row, Stat, Table, group, memory_column, shots_name

OWN = ("", "recommended")  # presets that a method's name needn't mention
ZERO_SHOT = "ZeroshotCLIP"
LEAST_CORNERS = 3  # of a radar


@dataclass
class Series:
    """The points of one method, or of one quantity: lists of the same length."""

    name: str
    x: list
    y: list
    spread: list[float | None] = field(default_factory=list)  # of y
    size: list[float | None] = field(default_factory=list)  # MB
    text: list[str] = field(default_factory=list)  # what a reader sees who points at it


@dataclass
class Chart:
    """What is drawn, and what stands at its axes."""

    kind: str  # radar, plane, bubbles, bars, lines or reliability
    title: str
    x: str
    y: str
    views: dict[str, list[Series]]
    methods: bool = True  # whether the series are methods
    note: str = ""
    points: list[str] = field(default_factory=list)  # of lines: the x axis, in order, whichever series has them


# --- names ----------------------------------------------------------------------------------------------


def labels(rows: list[Row]) -> dict[tuple[str, str], str]:
    """{(trainer, config): the method as a reader calls it}: its preset where it isn't its own recipe.

    The config instead, where two of them would have one name.
    """
    short = {}
    for row in rows:
        preset = "" if row.preset in OWN else f" ({row.preset})"
        short[row.trainer, row.config] = row.trainer + preset
    names = list(short.values())
    return {key: name if names.count(name) == 1 else f"{key[0]} ({key[1]})" for key, name in short.items()}


def number(stat: Stat | None) -> str:
    """52.12 ±0.25"""
    if stat is None:
        return "-"
    return f"{stat.mean:.2f}" + ("" if stat.spread is None else f" ±{stat.spread:.2f}")


def hover(row: Row, columns: list[str], seeds: str) -> str:
    """The cells of a row as text, and each seed's value of the column `seeds`."""
    found = [f"{name} {number(row.cells[name])}" for name in columns if name in row.cells]
    each = row.values.get(seeds, {})
    if len(each) > 1:
        found.append("seeds " + ", ".join(f"{seed}: {value:.2f}" for seed, value in each.items()))
    return "\n".join(found)


def by_dataset(table: Table) -> dict[str, list[Row]]:
    """{name of a view: its rows}, averages first."""
    averages = group(table.averages, lambda row: row.name)
    return averages | group(table.rows, lambda row: row.name)


# --- one chart each -------------------------------------------------------------------------------------


def radar(table: Table, title: str, names: dict) -> Chart | None:
    """A polygon for each method, a corner for each dataset."""
    column = "H" if table.protocol == "base2new" else "Accuracy"
    corners = list(dict.fromkeys(row.name for row in table.rows if column in row.cells))
    if len(corners) < LEAST_CORNERS:
        return None
    series = {}
    for row in table.rows:
        if column in row.cells:
            name = names[row.trainer, row.config]
            found = series.setdefault(
                name, Series(name, list(corners), [None] * len(corners), text=[""] * len(corners))
            )
            at = corners.index(row.name)
            found.y[at] = row.cells[column].mean
            found.text[at] = hover(row, table.columns, column)
    return Chart("radar", f"{column} on each dataset, {title}", "", f"{column}, %", {"": list(series.values())})


def plane(table: Table, title: str, names: dict) -> Chart | None:
    """Accuracy on base against new classes, for each dataset."""
    views = defaultdict(list)
    for view, rows in by_dataset(table).items():
        for row in rows:
            if "Base" in row.cells and "New" in row.cells:
                point = Series(names[row.trainer, row.config], [row.cells["Base"].mean], [row.cells["New"].mean])
                point.text = [hover(row, table.columns, "H")]
                views[view].append(point)
    note = "Lines: the same harmonic mean H of base and new. A method is better than another above and right of it."
    title = f"Base against new classes, {title}"
    return Chart("plane", title, "base classes, %", "new classes, %", dict(views), note=note) if views else None


def bubbles(table: Table, title: str, names: dict) -> Chart | None:
    """The paper's Figure 1: H against training time, the bubble's area being memory."""
    memory = memory_column(table)
    views = defaultdict(list)
    for view, rows in by_dataset(table).items():
        for row in rows:
            seconds = row.cells.get("Train s")
            if "H" in row.cells and seconds and seconds.mean > 0:  # what trains nothing has no place on this axis
                used = row.cells[memory].mean if memory in row.cells else None
                point = Series(names[row.trainer, row.config], [seconds.mean], [row.cells["H"].mean], size=[used])
                point.spread = [row.cells["H"].spread]
                point.text = [hover(row, ["H", "Train s", memory], "H")]
                views[view].append(point)
    note = f"Area of a sign: {memory}; small and empty where it wasn't measured. Methods without training are left out."
    title = f"Accuracy against time and memory, {title}"
    return Chart("bubbles", title, "training, s", "H, %", dict(views), note=note) if views else None


def bars(table: Table, title: str, names: dict) -> Chart | None:
    """What each method gains over zero-shot CLIP, for each dataset."""
    column = "H" if table.protocol == "base2new" else "Accuracy"
    views = defaultdict(list)
    for view, rows in by_dataset(table).items():
        start = next((row for row in rows if row.trainer == ZERO_SHOT and column in row.cells), None)
        for row in rows if start else ():
            if row is not start and column in row.cells:
                gain = row.cells[column].mean - start.cells[column].mean
                point = Series(names[row.trainer, row.config], [gain], [names[row.trainer, row.config]])
                point.text = [f"{gain:+.2f} over {start.cells[column].mean:.2f}\n" + hover(row, [column], column)]
                views[view].append(point)
        views[view].sort(key=lambda series: series.x[0])
    views = {view: series for view, series in views.items() if series}
    title = f"{column} over zero-shot CLIP, {title}"
    return Chart("bars", title, f"points of {column} over {ZERO_SHOT}", "", views) if views else None


def curves(table: Table, title: str, names: dict) -> Chart | None:
    """The paper's Figure 5: accuracy by the number of training images of each class."""
    views = defaultdict(list)
    for view, rows in by_dataset(table).items():
        for row in rows:
            at = [column for column in table.columns if column in row.cells]
            cells = [row.cells[column] for column in at]
            line = Series(names[row.trainer, row.config], at, [cell.mean for cell in cells])
            line.spread = [cell.spread for cell in cells]
            line.text = [f"{column} shots: " + hover(row, [column], column).removeprefix(f"{column} ") for column in at]
            views[view].append(line)
    title = f"Accuracy by shots, {title}"
    chart = Chart("lines", title, "images of each class", "accuracy, %", dict(views), points=table.columns)
    return chart if views else None


def reliability(table: Table, title: str, names: dict) -> Chart | None:
    """Accuracy by confidence, for each dataset and half; the bins of all seeds are taken together."""
    views = defaultdict(list)
    for row in table.rows:
        for column in [column for column in table.columns if column in row.bins]:
            line = Series(names[row.trainer, row.config], [], [])
            for images, confidence, accuracy in pooled(row.bins[column]):
                line.x.append(confidence)
                line.y.append(accuracy)
                line.text.append(f"{images} images\nconfidence {confidence:.2f}\naccuracy {accuracy:.2f}")
            views[f"{row.name}, {column}" + " shots" * (table.protocol == "few_shot")].append(line)
    note = "Images in bins of equal width by their confidence. Below the line a method is surer than it is right."
    title = f"Reliability, {title}"
    return Chart("reliability", title, "confidence, %", "accuracy, %", dict(views), note=note) if views else None


def pooled(found: list[dict]) -> list[tuple[int, float, float]]:
    """Calibration's bins of several runs -> (images, mean confidence, accuracy) of each that isn't empty."""
    sums = defaultdict(lambda: [0, 0.0, 0.0])
    for bins in found:
        rows = zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True)
        for place, (images, *means) in enumerate(rows):
            if images:
                sums[place] = [
                    sums[place][0] + images,
                    *(s + images * m for s, m in zip(sums[place][1:], means, strict=True)),
                ]
    return [(images, *(total / images for total in totals)) for _, (images, *totals) in sorted(sums.items())]


CHARTS = {
    "base2new": (radar, plane, bubbles, bars, reliability),
    "cross_dataset": (radar, bars, reliability),
    "few_shot": (curves, reliability),
}


# --- ablations ------------------------------------------------------------------------------------------


def split_grids(tables: list[Table]) -> tuple[list[Table], dict[Path, list[Table]]]:
    """-> (tables of methods, {folder of an ablation: its tables, one for each point}).

    The folders in an ablation's folder have numbers or Table 4's components for names, and there are several.
    """
    found = defaultdict(list)
    for table in tables:
        point = table.where.parent
        if table.protocol == "base2new" and order(point.name)[0] < 2:
            found[point.parent].append(table)
    grids = {folder: some for folder, some in found.items() if len({table.where for table in some}) > 1}
    inside = [id(table) for some in grids.values() for table in some]
    return [table for table in tables if id(table) not in inside], grids


def grid_charts(folder: Path, tables: list[Table], title: str) -> list[Chart]:
    """The paper's Figure 4 for one ablation: accuracy, and costs as shares of the largest, where runs say them."""
    accuracy, costs = {}, {}
    grids = collect(tables, folder)
    points = sorted({point for rows in grids.values() for point in rows}, key=order)
    for label, rows in grids.items():
        view = ", ".join(filter(None, label))
        found = {name: Series(name, [], []) for name in (*ACCURACIES, *COSTS)}
        for point, row in rows.items():
            for name, series in found.items():
                if name in row.cells:
                    series.x.append(point)
                    series.y.append(row.cells[name].mean)
                    series.spread.append(row.cells[name].spread)
                    series.text.append(f"{folder.name} {point}\n" + hover(row, [name], name))
        accuracy[view] = [found[name] for name in ACCURACIES if found[name].y]
        costs[view] = []
        for series in [found[name] for name in COSTS if max(found[name].y, default=0)]:
            largest = max(series.y)
            series.y = [100 * value / largest for value in series.y]
            series.spread = [None] * len(series.y)
            costs[view].append(series)
    charts = [
        Chart("lines", f"{title}: {tables[0].keyword}", folder.name, "%", accuracy, methods=False, points=points),
        Chart("lines", f"{title}: costs", folder.name, "% of the largest", costs, methods=False, points=points),
    ]
    return [chart for chart in charts if any(chart.views.values())]


# --- all ------------------------------------------------------------------------------------------------


def title_of(table: Table, tables: list[Table]) -> str:
    """What tells this table's charts from those of others; its folder only where two would have one title."""
    titled = (table.protocol, table.shots, table.backbone)
    same = [other.where for other in tables if (other.protocol, other.shots, other.backbone) == titled]
    folder = os.path.relpath(table.where, os.path.commonpath([where.parent for where in same])) if len(same) > 1 else ""
    metric = table.keyword if table.keyword != "accuracy" else ""
    return ", ".join(filter(None, [table.protocol, metric, shots_name(table.shots), table.backbone, folder]))


def build_charts(tables: list[Table]) -> list[Chart]:
    """Every chart that the tables have the numbers for."""
    of_methods, grids = split_grids(tables)
    charts = []
    for table in of_methods:
        names = labels(table.rows + table.averages)
        for make in CHARTS.get(table.protocol, ()):
            charts.append(make(table, title_of(table, of_methods), names))
    for folder, some in grids.items():
        alone = [other.name for other in grids].count(folder.name) == 1
        title = folder.name if alone else os.path.relpath(folder, os.path.commonpath(grids))
        charts += grid_charts(folder, some, title)
    return [chart for chart in charts if chart is not None]
