"""The learning rate of every method by one rule, from what scripts/choose.sh leaves: one folder for each rate.

    python -m results.choose output/choose

The rule: the smallest rate whose mean accuracy over the seeds is within one standard error of the best rate's. The
standard error is that of the best rate's mean over n seeds, s / sqrt(n). With one seed it is that of a share of N
images, sqrt(p (1 - p) / N). Accuracies are those on the validation images of the base classes. A run that was tested on
anything else is named and left out, so that nothing can be chosen on test images or on new classes.

Exit code: 0 all is well, 1 some runs are broken or of another kind, 2 nothing to read.
"""

import math
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from .layout import table_text
from .read import Run, absolute, find_runs, read_all
from .tables import describe, finish, folder_of, shots_name, shown


def choose(accuracies: dict[float, list[float]], images: float) -> float:
    """{rate: accuracy of each seed, in percent, on so many images} -> the rate that the rule takes."""
    means = {rate: statistics.fmean(values) for rate, values in accuracies.items()}
    best = max(sorted(means), key=means.get)
    values = accuracies[best]
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    else:
        error = math.sqrt(means[best] * (100 - means[best]) / images)
    return min(rate for rate in means if means[rate] >= means[best] - error)


def rate_of(run: Run, top: Path) -> float | None:
    """The number that the folder just below `top` is called; None if it is no number."""
    try:
        return float(os.path.relpath(run.file, top).split(os.sep)[0])
    except ValueError:
        return None


def why_not(run: Run, top: Path) -> str:
    """Why a run has no say in the choice; "" if it has."""
    if (run.protocol, run.part) != ("base2new", "train_base"):
        return "not a training on the base classes"
    if run.tested != "val":
        return f"tested on the {run.tested} images: only validation images (TEST.SPLIT val) choose"
    if rate_of(run, top) is None:
        return "its folder is not named after a learning rate"
    return ""


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str]]:
    """One table for each dataset, for `layout`: methods x rates, and the chosen rate -> (tables, problems)."""
    top = absolute(folder)
    runs, problems = read_all(find_runs(top), top)
    grids, images = defaultdict(lambda: defaultdict(lambda: defaultdict(list))), {}
    for run in runs:
        if reason := why_not(run, top):
            problems[run.file.parent] = reason
        else:
            where = run.dataset, shots_name(run.shots), run.backbone, (run.split or "")[:8]
            grids[where][run.trainer, run.preset][rate_of(run, top)].append(run.value)
            images[where] = run.record.get("total") or math.inf  # another project's log doesn't say
    return [figure(where, grid, images[where]) for where, grid in sorted(grids.items())], problems


def figure(where: tuple[str, ...], grid: dict[tuple[str, str], dict[float, list[float]]], images: float) -> dict:
    """{(trainer, preset): {rate: accuracies on so many images}} -> a table for `layout`."""
    rates = sorted({rate for found in grid.values() for rate in found})
    columns = [["method", "Method", "text"], ["preset", "Preset", "text"]]
    columns += [[f"{rate:g}", f"{rate:g}", "percent"] for rate in rates]
    columns += [["trials", "Trials", "number"], ["chosen", "Chosen", "number"]]
    rows = []
    for (trainer, preset), found in sorted(grid.items()):
        row = {"method": trainer, "preset": preset or "recommended"}
        for rate, values in sorted(found.items()):
            stat = describe(values)
            row[f"{rate:g}"] = [stat.mean, stat.spread]
        row |= {"trials": str(sum(map(len, found.values()))), "chosen": f"{choose(found, images):g}"}
        rows.append(row)
    title = ", ".join(["Base classes' validation images", *filter(None, where)])
    return {"title": title, "columns": columns, "rows": rows}


NOTES = ["mean ± sample standard deviation over seeds; chosen: the smallest rate within one standard error of the best"]


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    folder = folder_of("results.choose", __doc__, "output/choose", argv)
    found, problems = figures(folder)
    for table in found:
        print(f"{table['title']}, {shown(folder)}\n\n{table_text(table)}\n")
    print(*NOTES if found else [], sep="\n")
    return finish(found, problems, f"no runs of a search in {folder}; first: bash scripts/choose.sh emoji")


if __name__ == "__main__":
    sys.exit(main())
