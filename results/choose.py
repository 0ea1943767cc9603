"""Learning rate and epochs of every method by one rule, from what scripts/choose.sh leaves: one folder for each trial.

    python -m results.choose output/choose

A trial is a rate and a number of epochs; its folder is RATExEPOCHS, or RATE with the recipe's epochs. The rule: of the
trials whose mean accuracy over the seeds is within one standard error of the best one's, those with the smallest rate,
and of these the one with the fewest epochs. The standard error is that of the best trial's mean over n seeds,
s / sqrt(n). With one seed it is that of a share of N images, sqrt(p (1 - p) / N). Accuracies are those on the
validation images of the base classes. A run that was tested on anything else is named and left out, so that nothing can
be chosen on test images or on new classes. A trial that lacks seeds is named too: the choice stands only when all
trials have all seeds.

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

Trial = tuple[float, int]  # learning rate, epochs (0: the recipe's)
Grid = dict[tuple[str, str, str], dict[Trial, dict[int, Run]]]  # {(trainer, preset, config): {trial: {seed: run}}}


def choose(accuracies: dict[Trial, list[float]], images: float) -> Trial:
    """{trial: accuracy of each seed, in percent, on so many images} -> the trial that the rule takes."""
    means = {trial: statistics.fmean(values) for trial, values in accuracies.items()}
    best = max(sorted(means), key=means.get)
    values = accuracies[best]
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    else:
        error = math.sqrt(means[best] * (100 - means[best]) / images)
    return min(trial for trial in means if means[trial] >= means[best] - error)


def trial_of(name: str) -> Trial | None:
    """What the folder of a trial is called, "0.01" or "0.01x12" -> the trial; None if it is called otherwise."""
    rate, _, epochs = name.partition("x")
    try:
        return float(rate), int(epochs or 0)
    except ValueError:
        return None


def name_of(trial: Trial) -> str:
    """The other way round."""
    rate, epochs = trial
    return f"{rate:g}x{epochs}" if epochs else f"{rate:g}"


def why_not(run: Run) -> str:
    """Why a run has no say in the choice; "" if it has."""
    if (run.protocol, run.part) != ("base2new", "train_base"):
        return "not a training on the base classes"
    if run.tested != "val":
        return f"tested on the {run.tested} images: only validation images (TEST.SPLIT val) choose"
    if trial_of(run.where.name) is None:
        return "its folder is not named after a learning rate (0.01) or one and epochs (0.01x12)"
    return ""


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """One table for each dataset, for `layout`: methods x trials, and the chosen one -> (tables, problems, notes)."""
    top = absolute(folder)
    runs, problems = read_all(find_runs(top), top)
    runs = [replace(run, where=top / run.file.relative_to(top).parts[0]) for run in runs]  # the folder of its trial
    problems |= find_twice(runs)
    grids = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for run in runs:
        if reason := why_not(run):
            problems[run.file.parent] = reason
        elif run.file.parent not in problems:
            where = run.dataset, shots_name(run.shots), run.backbone, (run.split or "")[:8]
            grids[where][run.trainer, run.preset, run.config][trial_of(run.where.name)][run.seed] = run
    found = []
    for where, grid in sorted(grids.items()):
        problems |= missing_seeds(grid)
        found.append(figure(where, grid))
    return found, problems, NOTES


def missing_seeds(grid: Grid) -> dict[Path, str]:
    """{folder: why} of the trials of methods that have not all seeds, as what a stopped search leaves."""
    cells = [by_seed for found in grid.values() for by_seed in found.values()]
    wanted = {seed for by_seed in cells for seed in by_seed}
    problems = {}
    for by_seed in cells:
        if lacking := wanted - by_seed.keys():
            some = next(iter(by_seed.values()))
            seeds = ", ".join(map(str, sorted(lacking)))
            problems[some.file.parent] = (
                f"{some.trainer} at rate {some.where.name} lacks seeds that others have ({seeds}): search again"
            )
    return problems


def figure(where: tuple[str, ...], grid: Grid) -> dict:
    """A table for `layout`: a row for each method, a column for each trial."""
    trials = sorted({trial for found in grid.values() for trial in found}, key=lambda trial: trial[::-1])
    names = {trial: name_of(trial) for trial in trials}
    columns = [["method", "Method", "text"], ["preset", "Preset", "text"]]
    columns += [[name, name, "percent"] for name in names.values()]
    columns += [["trials", "Trials", "number"], ["chosen", "Chosen", "text"]]
    named = Counter((trainer, preset) for trainer, preset, _ in grid)
    rows = []
    for (trainer, preset, config), found in sorted(grid.items()):
        row = {"method": trainer, "preset": preset or "recommended"}
        if named[trainer, preset] > 1:
            row["preset"] += f" ({config})"
        accuracies = {trial: [run.value for run in by_seed.values()] for trial, by_seed in sorted(found.items())}
        for trial, values in accuracies.items():
            stat = describe(values)
            row[names[trial]] = [stat.mean, stat.spread]
        some = next(iter(next(iter(found.values())).values()))
        images = some.record.get("total") or math.inf  # another project's log doesn't say
        row |= {"trials": str(len(accuracies)), "chosen": names[choose(accuracies, images)]}
        rows.append(row)
    title = ", ".join(["Base classes' validation images", *filter(None, where)])
    return {"title": title, "columns": columns, "rows": rows}


NOTES = [
    "mean ± sample standard deviation over seeds; 0.01x12: a rate of 0.01, 12 epochs;",
    "  chosen: the smallest rate within one standard error of the best, then the fewest epochs",
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
