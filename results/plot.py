"""Plots, where matplotlib is installed; the figures they show are always printed too."""

import sys
from collections.abc import Callable
from pathlib import Path

from dassl.utils import write_atomic


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
