"""The learning rate of every method by one rule, from what scripts/choose.sh leaves: one folder for each rate.

    python -m results.choose output/choose

The rule: the smallest rate whose mean accuracy over the seeds is within one standard error of the best rate's. The
standard error is that of the best rate's mean over n seeds, s / sqrt(n). With one seed it is that of a share of N
images, sqrt(p (1 - p) / N). Accuracies are those on the validation images of the base classes. A run that was tested on
anything else is named and left out, so that nothing can be chosen on test images or on new classes. A rate that lacks
seeds is named too: the choice stands only when all rates have all seeds.

Exit code: 0 all is well, 1 some runs are missing, broken or of another kind, 2 nothing to read.
"""

import math
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from .layout import table_text
from .read import Run, absolute, find_runs, find_twice, read_all
from .tables import describe, finish, folder_of, shots_name, shown

Grid = dict[tuple[str, str, str], dict[float, dict[int, Run]]]  # {(trainer, preset, config): {rate: {seed: run}}}


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


def rate_of(run: Run) -> float | None:
    """The number that the folder of a rate is called; None if it is no number."""
    try:
        return float(run.where.name)
    except ValueError:
        return None


def why_not(run: Run) -> str:
    """Why a run has no say in the choice; "" if it has."""
    if (run.protocol, run.part) != ("base2new", "train_base"):
        return "not a training on the base classes"
    if run.tested != "val":
        return f"tested on the {run.tested} images: only validation images (TEST.SPLIT val) choose"
    if rate_of(run) is None:
        return "its folder is not named after a learning rate"
    return ""


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """One table for each dataset, for `layout`: methods x rates, and the chosen rate -> (tables, problems, notes)."""
    top = absolute(folder)
    runs, problems = read_all(find_runs(top), top)
    runs = [replace(run, where=top / run.file.relative_to(top).parts[0]) for run in runs]  # the folder of its rate
    problems |= find_twice(runs)
    grids = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for run in runs:
        if reason := why_not(run):
            problems[run.file.parent] = reason
        elif run.file.parent not in problems:
            where = run.dataset, shots_name(run.shots), run.backbone, (run.split or "")[:8]
            grids[where][run.trainer, run.preset, run.config][rate_of(run)][run.seed] = run
    found = []
    for where, grid in sorted(grids.items()):
        problems |= missing_seeds(grid)
        found.append(figure(where, grid))
    return found, problems, NOTES


def missing_seeds(grid: Grid) -> dict[Path, str]:
    """{folder: why} of the rates of methods that have not all seeds, as what a stopped search leaves."""
    cells = [by_seed for found in grid.values() for by_seed in found.values()]
    wanted = {seed for by_seed in cells for seed in by_seed}
    problems = {}
    for by_seed in cells:
        if lacking := wanted - by_seed.keys():
            some = next(iter(by_seed.values()))
            seeds = ", ".join(map(str, sorted(lacking)))
            problems[some.file.parent] = (
                f"{some.trainer} at rate {rate_of(some):g} lacks seeds that others have ({seeds}): search again"
            )
    return problems


def figure(where: tuple[str, ...], grid: Grid) -> dict:
    """A table for `layout`: a row for each method, a column for each rate."""
    rates = sorted({rate for found in grid.values() for rate in found})
    columns = [["method", "Method", "text"], ["preset", "Preset", "text"]]
    columns += [[f"{rate:g}", f"{rate:g}", "percent"] for rate in rates]
    columns += [["trials", "Trials", "number"], ["chosen", "Chosen", "number"]]
    named = Counter((trainer, preset) for trainer, preset, _ in grid)
    rows = []
    for (trainer, preset, config), found in sorted(grid.items()):
        row = {"method": trainer, "preset": preset or "recommended"}
        if named[trainer, preset] > 1:
            row["preset"] += f" ({config})"
        accuracies = {rate: [run.value for run in by_seed.values()] for rate, by_seed in sorted(found.items())}
        for rate, values in accuracies.items():
            stat = describe(values)
            row[f"{rate:g}"] = [stat.mean, stat.spread]
        some = next(iter(next(iter(found.values())).values()))
        images = some.record.get("total") or math.inf  # another project's log doesn't say
        row |= {"trials": str(len(accuracies)), "chosen": f"{choose(accuracies, images):g}"}
        rows.append(row)
    title = ", ".join(["Base classes' validation images", *filter(None, where)])
    return {"title": title, "columns": columns, "rows": rows}


NOTES = [
    "mean ± sample standard deviation over seeds; trials: rates that were tried;",
    "  chosen: the smallest rate within one standard error of the best",
]


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    folder = folder_of("results.choose", __doc__, "output/choose", argv)
    found, problems, said = figures(folder)
    for table in found:
        print(f"{table['title']}, {shown(folder)}\n\n{table_text(table)}\n")
    print(*said if found else [], sep="\n")
    return finish(found, problems, f"no runs of a search in {folder}; first: bash scripts/choose.sh emoji")


if __name__ == "__main__":
    sys.exit(main())
