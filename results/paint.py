"""The page's charts as files for papers, with matplotlib: one file for each chart, a panel for each view."""

import math
import re
from collections.abc import Callable
from pathlib import Path

from dassl.utils import write_atomic

from .charts import Chart, Series, build_charts
from .plot import looks
from .tables import Table

FORMATS = ("pdf", "png")
PANEL = (4.2, 3.4)  # inches
ACROSS = 4  # panels


def looks_in(charts: list[Chart]) -> dict[str, dict]:
    """`looks` of all series: a method looks the same in all charts."""
    return looks(one.name for chart in charts for series in chart.views.values() for one in series)


def paint_radar(axes, series: list[Series], look: dict[str, dict]) -> None:
    for one in series:
        angles = [2 * math.pi * at / len(one.x) for at in range(len(one.x))]
        values = [math.nan if value is None else value for value in one.y]
        axes.plot(
            [*angles, angles[0]], [*values, values[0]], label=one.name, markersize=3, linewidth=1, **look[one.name]
        )
    axes.set_xticks(angles, series[0].x, fontsize="small")
    known = [value for one in series for value in one.y if value is not None]
    axes.set_ylim(max(0, min(known) - 5), min(100, max(known) + 2))


def paint_plane(axes, series: list[Series], look: dict[str, dict]) -> None:
    for one in series:
        axes.plot(one.x, one.y, linestyle="", label=one.name, **look[one.name])
    low, high = max(1, min(*axes.get_xlim(), *axes.get_ylim())), min(100, max(*axes.get_xlim(), *axes.get_ylim()))
    step = next((size for size in (1, 2, 5, 10) if (high - low) / size <= 8), 20)
    for mean in range(math.ceil(low / step) * step, math.floor(high) + 1, step):
        grid = [low + (high - low) * at / 100 for at in range(101)]
        line = [(base, mean * base / (2 * base - mean)) for base in grid if 2 * base > mean]
        line = [(base, new) for base, new in line if low <= new <= high]
        if line:
            axes.plot(*zip(*line, strict=True), color="0.8", linewidth=0.7, zorder=0)
            axes.annotate(f"H {mean}", line[-1], color="0.5", fontsize="x-small", ha="right")


def paint_bubbles(axes, series: list[Series], look: dict[str, dict]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    largest = max((one.size[0] or 0 for one in series), default=0) or 1
    for one in series:
        axes.errorbar(one.x, one.y, [value or 0 for value in one.spread], color=look[one.name]["color"], linewidth=0.7)
        area = 15 if one.size[0] is None else 20 + 380 * one.size[0] / largest
        face = "none" if one.size[0] is None else look[one.name]["color"]
        axes.scatter(one.x, one.y, area, facecolors=face, edgecolors=look[one.name]["color"], alpha=0.7, label=one.name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def paint_bars(axes, series: list[Series], look: dict[str, dict]) -> None:
    for one in series:
        axes.barh(one.y, one.x, color=look[one.name]["color"])
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.tick_params(axis="y", labelsize="x-small")


def paint_lines(axes, series: list[Series], look: dict[str, dict], points: list[str]) -> None:
    points = [point for point in points if any(point in one.x for one in series)]
    for one in series:
        at = [points.index(point) for point in one.x]
        errors = [value or 0 for value in one.spread]
        axes.errorbar(at, one.y, errors, label=one.name, markersize=4, linewidth=1, capsize=2, **look[one.name])
    axes.set_xticks(range(len(points)), points)


def paint_reliability(axes, series: list[Series], look: dict[str, dict]) -> None:
    axes.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    for one in series:
        axes.plot(one.x, one.y, label=one.name, markersize=4, linewidth=1, **look[one.name])
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)


PAINT: dict[str, Callable] = {
    "radar": paint_radar,
    "plane": paint_plane,
    "bubbles": paint_bubbles,
    "bars": paint_bars,
    "lines": paint_lines,
    "reliability": paint_reliability,
}


def paint(figure, chart: Chart, look: dict[str, dict]) -> None:
    """Fill a matplotlib figure with a chart: panels, axes, one legend."""
    views = {view: series for view, series in chart.views.items() if series}
    across = min(ACROSS, len(views))
    projection = {"projection": "polar"} if chart.kind == "radar" else {}
    more = {"points": chart.points} if chart.kind == "lines" else {}
    panels = figure.subplots(math.ceil(len(views) / across), across, squeeze=False, subplot_kw=projection)
    for axes, (view, series) in zip(panels.flat, views.items(), strict=False):
        PAINT[chart.kind](axes, series, look, **more)
        axes.set_title(view, fontsize="medium")
        axes.set_xlabel(chart.x)
        axes.set_ylabel("" if chart.kind == "radar" else chart.y)
    for axes in list(panels.flat)[len(views) :]:
        axes.set_axis_off()
    figure.suptitle(chart.title)
    handles = {}
    for axes in panels.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        columns = max(2, 3 * across - 1)
        figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=columns, fontsize="small", markerscale=0.7
        )


def write_figures(tables: list[Table], folder: Path) -> list[Path]:
    """Every chart of `tables` as a PDF and a PNG in `folder` -> the files.

    Raises ImportError without matplotlib, OSError if they can't be written.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no state
    except ImportError:
        raise ImportError("--figures needs matplotlib; get it with: pip install matplotlib") from None
    charts = build_charts(tables)
    of_methods = looks_in([chart for chart in charts if chart.methods])
    files = []
    for chart in charts:
        views = sum(bool(series) for series in chart.views.values())
        across = 2 if chart.kind == "radar" else min(ACROSS, views)
        down = 2 if chart.kind == "radar" else math.ceil(views / ACROSS)
        figure = Figure(figsize=(PANEL[0] * max(1.4, across), PANEL[1] * down + 1.2), layout="constrained")
        paint(figure, chart, of_methods if chart.methods else looks_in([chart]))
        name = re.sub(r"[^\w.-]+", "_", chart.title).strip("_")
        for kind in FORMATS:
            path = folder / f"{name}.{kind}"
            write_atomic(path, lambda file, kind=kind, figure=figure: figure.savefig(file, format=kind, dpi=150))
            files.append(path)
    return files
