"""Plots, where matplotlib is installed; the figures they show are always printed too."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dassl.utils import write_atomic

SIGNS = "os^DvP*"
COLOURS = 10  # of matplotlib's cycle
STAND_OUT = ("SkipTuning", "FinetuneCLIP")  # what the paper compares first


def looks(names: Iterable[str]) -> dict[str, dict]:
    """{name: colour, marker} of lines, by the order of the names."""
    found = {}
    for at, name in enumerate(sorted(set(names))):
        found[name] = {"color": f"C{at % COLOURS}", "marker": SIGNS[at % len(SIGNS)]}
    return found


def method_lines(axes, lines: dict[str, list[tuple[float, float]]]) -> None:
    """{method: points (x, y)} on matplotlib axes, with the legend beside. What the paper compares first stands out."""
    look = looks(lines)
    for name, points in lines.items():
        stands_out = name.split(",")[0] in STAND_OUT
        size = {"linewidth": 2.5, "markersize": 6, "zorder": 3} if stands_out else {"linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), label=name, **{"markersize": 4} | look[name] | size)
    axes.get_figure().legend(loc="outside right upper", fontsize="small")


def plot(path: str | Path, paint: Callable, size: tuple[float, float]) -> None:
    """Have `paint(figure)` fill a new figure of `size` (width, height in inches), write it to `path` as PNG and say so.

    Without matplotlib nothing is painted, and a line on stderr says how to get it.
    """
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no state
    except ImportError:
        print(f"No plot {path}: pip install matplotlib, then give the same command again", file=sys.stderr)
        return
    figure = Figure(figsize=size, layout="constrained")
    paint(figure)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=150))
    print(f"Plot: {path}")
