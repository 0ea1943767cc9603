"""Runs -> tables: means and spreads over seeds and datasets, as text, as CSV, as plain records.

A cell holds runs of one experiment that differ in their seed alone: same trainer, config, shots, backbone, same images
(the split's hash) and same tested split. What differs in any of these stands in another row or table.
"""

import argparse
import csv
import io
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from .published import BACKBONE, Published
from .read import BESIDE, COSTS, TEST_ONLY, Run, absolute

CSV_COLUMNS = (
    *("protocol", "folder", "backbone", "shots", "dataset", "trainer", "config", "metric", "mean", "spread", "n"),
    *("paper", "preset", "tested", "split"),
)

# --- averaging ----------------------------------------------------------------------------------------


class Stat(NamedTuple):
    """One cell."""

    mean: float
    spread: float | None  # None for a single run, and for an average of datasets
    n: int


@dataclass
class Row:
    """One line of a table: an experiment over its seeds, or an average over datasets."""

    dataset: str
    trainer: str
    config: str
    cells: dict[str, Stat]
    preset: str = ""
    tested: str = "test"
    split: str | None = None
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # {column: {seed: value}}
    learned: int | None = None  # parameters; of several runs the most
    trials: int | None = None  # of the recipe, where a run says it
    bins: dict[str, list[dict]] = field(default_factory=dict)  # {column: calibration's bins of each run}
    mark: str = ""  # tells apart what would stand under one dataset's name
    over: tuple[str, ...] = ()  # the datasets of an average

    @property
    def name(self) -> str:
        """The dataset, and what is unusual about it."""
        return f"{self.dataset}{self.mark}" + (f" ({self.tested})" if self.tested != "test" else "")


@dataclass
class Table:
    """One protocol in one place."""

    protocol: str
    where: Path
    backbone: str
    shots: int | None  # -1: all training images; None where each column or row has its own
    rows: list[Row]
    averages: list[Row]
    keyword: str = "accuracy"  # the metric

    @property
    def columns(self) -> list[str]:
        """Of accuracies; costs have columns of their own."""
        if self.protocol == "few_shot":
            found = {column for row in self.rows for column in row.cells}
            return sorted(found, key=lambda column: math.inf if column == "all" else int(column))
        if self.protocol != "base2new":
            return ["Accuracy"]
        return ["Base", "New"] if self.keyword == "error" else ["Base", "New", "H"]

    def has(self, column: str) -> bool:
        """Whether any row has a value there."""
        return any(column in row.cells for row in self.rows)


def spread_name(ci95: bool) -> str:
    """What `describe` calls the spread."""
    return "half of the 95% interval, 1.96 s / sqrt(n)" if ci95 else "sample standard deviation (n - 1)"


def describe(values: Iterable[float], ci95: bool = False) -> Stat:
    """Spread: sample standard deviation s (n - 1), or half of the 95% interval, 1.96 s / sqrt(n)."""
    values = list(values)
    n = len(values)
    scale = 1.96 / math.sqrt(n) if ci95 else 1
    return Stat(statistics.fmean(values), scale * statistics.stdev(values) if n > 1 else None, n)


def group(items: Iterable, key: Callable[..., Hashable]) -> dict:
    """{key: its items}, sorted by key."""
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(sorted(groups.items()))


def over_seeds(runs: list[Run]) -> dict[str, dict[int, float]]:
    """The runs of one row -> {column: {seed: value}}, with H seed by seed and the costs of the training runs."""
    values = {}
    for column, cell in group(runs, lambda run: run.column).items():
        values[column] = {run.seed: run.value for run in cell}
    base, new = values.get("Base", {}), values.get("New", {})
    if paired := sorted(base.keys() & new.keys()):
        values["H"] = {seed: statistics.harmonic_mean([base[seed], new[seed]]) for seed in paired}
    trained = [run for run in runs if run.part not in TEST_ONLY and run.protocol != "few_shot"]
    for name in COSTS:
        known = {run.seed: run.costs[name] for run in trained if run.costs.get(name) is not None}
        if known:
            values[name] = known
    for name in BESIDE:
        known = {run.seed: run.beside[name] for run in runs if name in run.beside and run.protocol != "few_shot"}
        if known:
            values[name] = known
    return values


def make_row(runs: list[Run], split: str, ci95: bool) -> Row:
    """The row of one experiment."""
    values = over_seeds(runs)
    cells = {}
    for column, by_seed in values.items():
        cells[column] = describe(by_seed.values(), ci95 and column not in COSTS)
    bins = defaultdict(list)
    for run in runs:
        if found := (run.record.get("calibration") or {}).get("bins15"):
            bins[run.column].append(found)
    learned, trials = (
        max((run.record[key] for run in runs if run.record.get(key) is not None), default=None)
        for key in ("learned_parameters", "trials")
    )
    return Row(
        runs[0].dataset,
        runs[0].trainer,
        runs[0].config,
        cells,
        preset=max(run.preset for run in runs),
        tested=runs[0].tested,
        split=split or None,
        values=values,
        learned=learned,
        trials=trials,
        bins=dict(bins),
    )


def over_datasets(rows: list[Row]) -> dict[str, Stat]:
    """Cells -> those of their means; H is that of the averaged Base and New, as the papers have it."""
    names = set.intersection(*(set(row.cells) for row in rows))
    cells = {}
    for name in names:
        cells[name] = Stat(statistics.fmean(row.cells[name].mean for row in rows), None, len(rows))
    for name, base, new in (("H", "Base", "New"), ("gen_h", "gen_base", "gen_new")):
        if name in cells:
            cells[name] = cells[name]._replace(mean=statistics.harmonic_mean([cells[base].mean, cells[new].mean]))
    return cells


def kind(protocol: str, dataset: str) -> str:
    """The average a dataset counts in: the shifted ImageNets have their own, the source is alone."""
    if protocol != "cross_dataset" or not dataset.startswith("imagenet"):
        return ""
    return "source" if dataset == "imagenet" else " ImageNet variants"


def averages(protocol: str, rows: list[Row]) -> list[Row]:
    """A row for each trainer and config, over the datasets for which none of its columns is empty.

    A dataset that stands in the table with other images as well is in no average. An average says its datasets where
    another row's are others.
    """
    mixed = {dataset for dataset, splits in splits_of(rows).items() if len(splits - {None}) > 1}
    found = []
    for (trainer, config, tested), members in group(rows, lambda row: (row.trainer, row.config, row.tested)).items():
        columns = {name for row in members for name in row.cells} - {*COSTS, *BESIDE}
        full = [row for row in members if columns <= set(row.cells) and row.dataset not in mixed]
        for which, some in group(full, lambda row: kind(protocol, row.dataset)).items():
            if len(some) > 1:
                name, over = f"Average of {len(some)}{which}", tuple(row.dataset for row in some)
                row = Row(name, trainer, config, over_datasets(some), preset=some[0].preset, tested=tested, over=over)
                found.append(row)
    for which in group(found, lambda row: kind(protocol, row.over[0])).values():
        name_sets(which)
    return sorted(found, key=lambda row: (row.dataset, row.trainer, row.config, row.tested))


def name_sets(rows: list[Row]) -> None:
    """An average that lacks a dataset of another's doesn't compare with it, so it says which it is over, or without."""
    everything = {dataset for row in rows for dataset in row.over}
    for row in rows:
        if lacking := sorted(everything - {*row.over}):
            shorter = ", ".join(row.over) if len(row.over) <= len(lacking) else f"without {', '.join(lacking)}"
            row.dataset += f" ({shorter})"


def splits_of(rows: list[Row]) -> dict[str, set[str | None]]:
    """{dataset: the splits it stands in the table with}; None: older files and logs don't say it."""
    splits = defaultdict(set)
    for row in rows:
        splits[row.dataset].add(row.split)
    return splits


def mark_splits(rows: list[Row]) -> None:
    """Names the split of each row whose dataset stands in the table with several."""
    splits = splits_of(rows)
    for row in rows:
        if len(splits[row.dataset]) > 1:
            row.mark = f" [{(row.split or 'unknown split')[:8]}]"


def build_tables(runs: list[Run], ci95: bool = False, keyword: str = "accuracy") -> list[Table]:
    """Every protocol, place, backbone and number of shots is a table. ci95: the spread is half of the 95% interval."""

    def place(run: Run) -> tuple:
        one = run.shots is not None and run.protocol in ("base2new", "cross_dataset")
        return run.protocol, run.where, run.backbone, run.shots if one else math.inf

    def experiment(run: Run) -> tuple:
        return run.dataset, run.trainer, run.config, run.tested, run.split or ""

    tables = []
    for (protocol, where, backbone, shots), members in group(runs, place).items():
        rows = [make_row(found, key[-1], ci95) for key, found in group(members, experiment).items()]
        for row in rows if keyword == "error" else ():
            row.cells.pop("H", None)  # a harmonic mean rewards an error of 0 in one half
        rows.sort(key=lambda row: kind(protocol, row.dataset) != "source")
        mark_splits(rows)
        means = averages(protocol, rows) if protocol != "other" else []
        shared = None if shots == math.inf else shots
        tables.append(Table(protocol, where, backbone, shared, rows, means, keyword))
    return tables


# --- records --------------------------------------------------------------------------------------------


def paper_value(table: Table, row: Row, column: str, published: Published | None) -> dict[str, str]:
    """The line of the papers' file that belongs beside a cell of ours, or {}."""
    if published is None or table.backbone not in (BACKBONE, "") or row.tested != "test":
        return {}
    if any(name not in published.datasets for name in row.over if not kind(table.protocol, name)):
        return {}  # an average over as many datasets, but others
    shots, metric = (column, "Accuracy") if table.protocol == "few_shot" else (str(table.shots), column)
    method = row.trainer + ("†" if row.preset == "cached" else "")  # the paper's mark for cached features
    dataset = row.dataset.partition(" (")[0]  # an average may say its datasets
    return published.find(table.protocol, method, dataset, shots, metric)


def cell_records(tables: Iterable[Table], published: Published | None = None) -> list[dict]:
    """One plain dictionary for each cell: CSV_COLUMNS, `seeds` {seed: value} and the paper's `note`.

    Costs and BESIDE included. Percent, seconds and MB, at full precision.
    """
    records = []
    for table in tables:
        place = {"protocol": table.protocol, "folder": str(table.where), "backbone": table.backbone}
        place["keyword"] = table.keyword
        for row in table.rows + table.averages:
            known = place | {"shots": table.shots, "dataset": row.dataset, "trainer": row.trainer, "config": row.config}
            known |= {"preset": row.preset, "tested": row.tested, "split": row.split}
            for column in [name for name in (*table.columns, *COSTS, *BESIDE) if name in row.cells]:
                named = {"metric": column}
                if table.protocol == "few_shot":
                    named = {"metric": "Accuracy", "shots": -1 if column == "all" else int(column)}
                paper = paper_value(table, row, column, published)
                beside = {"paper": paper.get("value"), "note": paper.get("note"), "seeds": row.values.get(column, {})}
                records.append(known | named | row.cells[column]._asdict() | beside)
    return records


def csv_text(tables: Iterable[Table], published: Published | None = None) -> str:
    """Tidy, at full precision: one number a line, whose metric says another keyword than accuracy (Base macro_f1)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in cell_records(tables, published):
        if record["keyword"] != "accuracy" and record["metric"] not in (*COSTS, *BESIDE):
            record["metric"] = f"{record['metric']} {record['keyword']}".removeprefix("Accuracy ")
        writer.writerow(record)
    return text.getvalue()


def write_text(target: str, text: str) -> None:
    """Write a file whole or not at all. What is there and no regular file, such as a pipe or a device, is written to.

    `~` is expanded. Raises OSError.
    """
    path = Path(os.path.expanduser(target))
    content = text.encode("utf-8", "surrogateescape")
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            file.write(content)
        return
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No such file or directory: {path.parent}")
    from dassl.utils import write_atomic  # here, as it takes PyTorch along

    write_atomic(path.resolve(), content)


# --- printing -------------------------------------------------------------------------------------------


def shown(path: Path) -> str:
    """A path as seen from the current folder, if it is below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def shots_name(shots: int | None) -> str:
    """For a title; "" where the number differs within a table."""
    return "" if shots is None else "all images" if shots == -1 else f"{shots} shots"


def memory_column(table: Table) -> str:
    """The tensors' peak where any row measured it, else the peak of the process."""
    return "RSS MB" if table.has("RSS MB") and not table.has("Peak MB") else "Peak MB"


def mean(row: Row, column: str) -> float | None:
    """Of one cell; None where there is none."""
    return row.cells[column].mean if column in row.cells else None


def accuracy_cells(row: Row, columns: Iterable[str]) -> dict[str, list | None]:
    """{column in small letters: [mean, spread]} for a figure; None where there is none."""
    found = {}
    for name in columns:
        stat = row.cells.get(name)
        found[name.lower()] = None if stat is None else [stat.mean, stat.spread]
    return found


def cost_cells(row: Row, memory: str) -> dict[str, object]:
    """Training time with the extraction in it, and the peak of memory, for a figure."""
    return {"train_s": [mean(row, "Train s"), mean(row, "Extract s")], "memory_mb": mean(row, memory)}


def seeds_behind(row: Row, columns: Iterable[str]) -> str:
    """3, or 3/2/2 where the columns rest on different numbers of seeds."""
    counts = [str(row.cells[name].n) for name in columns if name in row.cells]
    return "/".join(counts if len(set(counts)) > 1 else counts[:1])


def figure(table: Table, published: Published | None = None) -> dict:
    """The table for `layout`. A dataset or config that is the same in all lines is named in the title only."""
    memory = memory_column(table)
    columns = [["dataset", "Dataset", "text"], ["trainer", "Trainer", "text"], ["config", "Config", "text"]]
    for name in table.columns:
        columns.append([name.lower(), name, "percent"])
        if published:
            columns.append([f"paper_{name.lower()}", f"{name}\npaper", "number"])
    if table.protocol != "few_shot":
        columns += [["train_s", "Train s", "cost"], ["memory_mb", memory, "cost"]]
    lines = []
    for row in table.rows + table.averages:
        line = {"dataset": row.name, "trainer": row.trainer, "config": row.config}
        line |= accuracy_cells(row, table.columns) | cost_cells(row, memory)
        for name in table.columns if published else ():
            paper = paper_value(table, row, name, published)
            mark = "*" if paper.get("note") else ""
            line[f"paper_{name.lower()}"] = f"{paper['value']}{mark}" if paper else None
        lines.append(line | {"n": seeds_behind(row, table.columns) if row.values else ""})
    return titled(table, table.protocol, [*columns, ["n", "n", "number"]], lines)


def titled(table: Table, what: str, columns: list, lines: list[dict]) -> dict:
    """A figure of these columns and lines. What is the same in all lines stands in the title only."""
    same = [key for key in ("dataset", "config") if len({line[key] for line in lines}) == 1]
    constant = [lines[0][key] for key in same]
    metric = table.keyword if table.keyword != "accuracy" else ""
    title = ", ".join(filter(None, [what, metric, *constant, shots_name(table.shots), table.backbone]))
    return {"title": title, "columns": [column for column in columns if column[0] not in same], "rows": lines}


def notes(tables: list[Table], ci95: bool = False, published: Published | None = None) -> Iterator[str]:
    """What a reader must know about the numbers above."""
    if tables:
        yield f"mean ± {spread_name(ci95)} over n seeds; a single run has no spread"
    if any("H" in table.columns for table in tables):
        yield "H: mean over seeds; in an average row: harmonic mean of its Base and New, as in the papers"
    if any(table.has(name) for table in tables for name in COSTS):
        peak = "; Peak MB: peak memory in training" if any(table.has("Peak MB") for table in tables) else ""
        yield f"Train s: feature extraction, in brackets, included{peak}"
    if any(memory_column(table) == "RSS MB" for table in tables):
        yield "RSS MB: the most memory that the process ever had, libraries included (TRAIN.MEASURE_MEMORY was off)"
    if any(row.tested != "test" for table in tables for row in table.rows):
        yield "(val): tested on the validation images, not on the test images"
    for table in tables if published else ():
        for row in table.rows:
            for column in table.columns:
                if note := paper_value(table, row, column, published).get("note"):
                    yield f"* {row.trainer}, {row.dataset}, {column}: {note}"


def print_problems(problems: dict[Path, str]) -> None:
    """What is missing or broken, on stderr."""
    sys.stdout.flush()  # so that they come last where both streams go to one file, too
    if problems:
        print(f"\nMissing or broken, and the numbers above do without ({len(problems)}):", file=sys.stderr)
    for folder, reason in sorted(problems.items()):
        print(f"  {shown(folder)}: {reason}", file=sys.stderr)


def finish(found: object, problems: dict[Path, str], nothing: str) -> int:
    """Names what is missing or broken; -> the exit code. `nothing` is the error if nothing was found at all."""
    print_problems(problems)
    if not found and not problems:
        print(f"Error: {nothing}", file=sys.stderr)
        return 2
    return 1 if problems else 0


def folder_of(module: str, description: str, example: str, argv: list[str] | None) -> Path:
    """The folder that a command line of ours with nothing else names, as the user means it."""
    any_console()
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description, formatter_class=form)
    parser.add_argument("folder", type=Path, help=f"such as {example}")
    return absolute(parser.parse_args(argv).folder)


def any_console(*streams: TextIO) -> None:
    """Characters that a console can't show become question marks instead of an error."""
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
