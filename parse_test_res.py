"""Read many runs, print tables: mean and spread over seeds, harmonic mean, training time, peak memory.

    python parse_test_res.py output/               every experiment below output/, as tables
    python parse_test_res.py EXPERIMENT            one experiment: a folder that holds seed1, seed2, ...
    python parse_test_res.py FOLDER --multi-exp    each experiment in FOLDER, and their average

The last two print the lines of CoOp's script of this name. A run is read from its result.json (full
precision) or, where there is none, from its newest log.txt. A run that is missing or broken is listed and
left out, never counted as zero.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read or bad arguments.
"""

import argparse
import csv
import json
import math
import os
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

PUBLISHED = Path(__file__).parent / "configs" / "published.csv"

# Where runs lie (the layout of PromptSRC's scripts); the first pattern that fits the end of the path decides.
DATASET, TRAINER, CONFIG = (rf"(?P<{name}>[^/]+)" for name in ("dataset", "trainer", "config"))
SHOTS, SEED = r"(?P<shots>\d+)", r"seed(?P<seed>\d+)$"
LAYOUTS = [
    ("base2new", rf"/(?P<part>train_base|test_new)/{DATASET}/shots_{SHOTS}/{TRAINER}/{CONFIG}/{SEED}"),
    ("few_shot", rf"/(?P<part>few_shot)/{DATASET}/{TRAINER}/{CONFIG}_{SHOTS}shots/{SEED}"),
    ("cross_dataset", rf"/(?P<part>evaluation)/{TRAINER}/{CONFIG}_{SHOTS}shots/{DATASET}/{SEED}"),
    ("cross_dataset", rf"/(?P<part>(?P<dataset>imagenet))/{TRAINER}/{CONFIG}_{SHOTS}shots/{SEED}"),
]
COLUMN = {"train_base": "Base", "test_new": "New"}  # every other part: "Accuracy"
TWIN = {"train_base": "test_new", "test_new": "train_base"}
TEST_ONLY = ("test_new", "evaluation")
COSTS = ("Train s", "Extract s", "Peak MB")  # training includes extraction


class Broken(Exception):
    """A run folder without a usable result; the message says why."""


@dataclass(frozen=True)
class Run:
    """One run folder, read. The path decides where both it and result.json know something."""

    file: Path  # what was read
    where: Path  # the folder in which the layout starts
    protocol: str
    part: str
    config: str
    value: float  # percent
    dataset: str = "-"
    trainer: str = "-"
    shots: int = -1
    seed: int = -1
    backbone: str = ""
    costs: dict = field(default_factory=dict)

    @property
    def column(self):
        return str(self.shots) if self.protocol == "few_shot" else COLUMN.get(self.part, "Accuracy")


# --- reading ------------------------------------------------------------------------------------------


def find_runs(top):
    """Folders at or below `top` that hold a result or a log, and seed folders that should."""
    found = []
    for folder, below, files in os.walk(top):
        below[:] = sorted(name for name in below if not name.startswith("."))
        has_output = any(name == "result.json" or name.startswith("log.txt") for name in files)
        if has_output or re.fullmatch(SEED, os.path.basename(folder)):
            found.append(Path(folder))
            if found[-1] != top:  # a run holds no runs; the root may, if it was once used as an output folder
                below.clear()
    return found


def locate(folder, top):
    """What the path says about a run."""
    for protocol, pattern in LAYOUTS:
        if match := re.search(pattern, folder.as_posix()):
            known = match.groupdict() | {"shots": int(match["shots"]), "seed": int(match["seed"])}
            return known | {"protocol": protocol, "where": Path(folder.as_posix()[: match.start()] or "/")}
    seed = re.fullmatch(SEED, folder.name)
    experiment = os.path.relpath(folder.parent if seed else folder, top)
    known = {"protocol": "other", "part": "other", "where": top, "config": experiment}
    return known | ({"seed": int(seed["seed"])} if seed else {})


def read_result(file, keyword):
    """result.json -> fields of a Run, and `subsample`."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["accuracy"] is None:
            raise Broken("result.json has no accuracy: trained, not tested")
        values = {
            "accuracy": record["accuracy"],
            "error": 100 - record["accuracy"],
            "macro_f1": record["macro_f1"],
        }
        extract, train = record["seconds"]["extract"], record["seconds"]["train"]
        costs = dict(zip(COSTS, (train + extract, extract, record["peak_memory_mb"]), strict=True))
        known = {key: record[key] for key in ("dataset", "trainer", "shots", "seed", "backbone", "subsample")}
    except (ValueError, TypeError):
        raise Broken("result.json is truncated or not what a run writes") from None
    except KeyError as error:
        raise Broken(f"result.json has no {error}") from None
    value = values[keyword] if keyword in values else read_log(file.parent, keyword, test_only=True)["value"]
    if not math.isfinite(value):
        raise Broken(f"result.json says {keyword} is {value}")
    return known | {"file": file, "value": value, "costs": costs}


def read_log(folder, keyword, test_only):
    """The last `* keyword: 89.3%` after training (or, test only: evaluation) was over, from the newest log.

    A repeated run leaves log.txt-<time> beside log.txt; these names sort by time.
    """
    logs = sorted(folder.glob("log.txt*"))
    if not logs:
        raise Broken(f"no log.txt with '{keyword}'")
    lines = [line.strip() for line in logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()]
    test_only = test_only or "eval_only: True" in lines
    signals = ("=> result",) if test_only else ("Finish training", "Finished training")
    start = next((at for at, line in enumerate(lines) if line in signals), len(lines))
    number = re.compile(rf"\* {re.escape(keyword)}: (\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)%")
    values = [float(match[1]) for line in lines[start:] if (match := number.search(line))]
    if not values:
        raise Broken(f"unfinished? {logs[-1].name} has no '{keyword}' after '{signals[0]}'")
    backbone = re.search(r"Loading CLIP \(backbone: (.+?)\)", "\n".join(lines))
    return {"file": logs[-1], "value": values[-1], "backbone": backbone[1] if backbone else ""}


def read_run(folder, top, keyword, test_log):
    """Raises Broken for a run that has no result, or one that contradicts its path."""
    place = locate(folder, top)
    if (folder / "result.json").is_file():
        record = read_result(folder / "result.json", keyword)
    elif not any(folder.glob("log.txt*")):
        raise Broken("neither result.json nor log.txt")
    else:
        record = read_log(folder, keyword, test_log or place["part"] in TEST_ONLY)
    subsample = record.pop("subsample", None)
    if subsample and place["protocol"] != "other":
        expected = {"train_base": "base", "test_new": "new"}.get(place["part"], "all")
        said = {"trainer": record["trainer"], "seed": record["seed"], "subsample": subsample}
        for key, path_says in {**place, "subsample": expected}.items():
            if key in said and said[key] != path_says:
                raise Broken(f"result.json says {key} {said[key]}, the path says {path_says}")
    return Run(**(record | place))


def read_all(folders, top, keyword, test_log):
    runs, problems = [], {}
    for folder in folders:
        try:
            runs.append(read_run(folder, top, keyword, test_log))
        except (Broken, OSError) as error:
            problems[folder] = str(error)
    return runs, problems


def find_missing(runs):
    """{folder: why} of runs that should be there: base-to-new's other half, seeds that others have."""
    missing, seeds = {}, defaultdict(lambda: defaultdict(set))
    for run in [run for run in runs if run.protocol != "other"]:
        folder = run.file.parent
        if run.part in TWIN:
            twin = run.where / TWIN[run.part] / folder.relative_to(run.where / run.part)
            missing[twin] = f"missing, but its {run.part} run is there"
        seeds[run.where, run.protocol][folder.parent].add(run.seed)
    for experiments in seeds.values():
        fullest = max(experiments.values(), key=len)
        for folder, have in experiments.items():
            for seed in fullest - have:
                missing.setdefault(folder / f"seed{seed}", f"missing, but another experiment has seed {seed}")
    return {folder: why for folder, why in missing.items() if not folder.is_dir()}


def read_folder(folder):
    """All runs at or below it -> (runs, {folder: why it is missing or broken})."""
    top = Path(os.path.abspath(folder))
    runs, problems = read_all(find_runs(top), top, "accuracy", test_log=False)
    return runs, problems | find_missing(runs)


# --- averaging ----------------------------------------------------------------------------------------


class Stat(NamedTuple):
    mean: float
    spread: float | None  # None for a single run, and for an average of datasets
    n: int


def spread_name(ci95):
    return "half of the 95% interval, 1.96 s / sqrt(n)" if ci95 else "sample standard deviation (n - 1)"


def describe(values, ci95=False):
    """Spread: sample standard deviation s (n - 1), or half of the 95% interval, 1.96 s / sqrt(n)."""
    n = len(values)
    scale = 1.96 / math.sqrt(n) if ci95 else 1
    return Stat(statistics.fmean(values), scale * statistics.stdev(values) if n > 1 else None, n)


def group(items, key):
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(sorted(groups.items()))


def over_seeds(runs, ci95):
    """The runs of one row -> {column: Stat}, with H seed by seed and the costs of the training runs."""
    cells = group(runs, lambda run: run.column)
    row = {column: describe([run.value for run in cell], ci95) for column, cell in cells.items()}
    base, new = ({run.seed: run.value for run in cells.get(column, [])} for column in ("Base", "New"))
    if paired := sorted(base.keys() & new.keys()):
        row["H"] = describe([statistics.harmonic_mean([base[seed], new[seed]]) for seed in paired], ci95)
    for name in COSTS if runs[0].protocol != "few_shot" else ():
        known = [run.costs.get(name) for run in runs if run.part not in TEST_ONLY]
        if known := [cost for cost in known if cost is not None]:
            row[name] = describe(known)
    return row


def over_datasets(rows):
    """Rows -> the row of their means; H is that of the averaged Base and New, as the papers have it."""
    names = set.intersection(*(set(row) for row in rows))
    row = {name: Stat(statistics.fmean(row[name].mean for row in rows), None, len(rows)) for name in names}
    if "H" in row:
        row["H"] = row["H"]._replace(mean=statistics.harmonic_mean([row["Base"].mean, row["New"].mean]))
    return row


def kind(protocol, dataset):
    """The average a dataset counts in: the shifted ImageNets have their own, the source is alone."""
    if protocol != "cross_dataset" or not dataset.startswith("imagenet"):
        return ""
    return "source" if dataset == "imagenet" else " ImageNet variants"


def averages(protocol, rows):
    """A row for each trainer and config, over the datasets for which none of its columns is empty."""
    found = {}
    for (trainer, config), labels in group(rows, lambda label: label[1:]).items():
        columns = {name for label in labels for name in rows[label]} - set(COSTS)
        full = [label for label in labels if columns <= set(rows[label])]
        for which, members in group(full, lambda label: kind(protocol, label[0])).items():
            if len(members) > 1:
                label = (f"Average of {len(members)}{which}", trainer, config)
                found[label] = over_datasets([rows[member] for member in members])
    return dict(sorted(found.items()))


@dataclass
class Table:
    """One protocol in one place. Rows and averages are {(dataset, trainer, config): {column: Stat}}."""

    protocol: str
    where: Path
    backbone: str
    shots: int  # -1 where each column or row has its own
    rows: dict
    averages: dict

    @property
    def columns(self):
        if self.protocol == "few_shot":
            return sorted({column for row in self.rows.values() for column in row}, key=int)
        return ["Base", "New", "H"] if self.protocol == "base2new" else ["Accuracy"]


def build_tables(runs, ci95):
    def place(run):
        shots = run.shots if run.protocol in ("base2new", "cross_dataset") else -1
        return run.protocol, run.where, run.backbone, shots

    tables = []
    for key, members in group(runs, place).items():
        protocol = key[0]
        experiments = group(members, lambda run: (run.dataset, run.trainer, run.config))
        rows = {label: over_seeds(experiment, ci95) for label, experiment in experiments.items()}
        rows = dict(sorted(rows.items(), key=lambda item: kind(protocol, item[0][0]) != "source"))
        tables.append(Table(*key, rows, averages(protocol, rows) if protocol != "other" else {}))
    return tables


# --- printing -----------------------------------------------------------------------------------------


class Published:
    """The papers' values (all for ViT-B/16), looked up by our names."""

    def __init__(self):
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            keys = ("protocol", "method", "dataset", "shots", "metric")
            self.rows = {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}

    def find(self, table, label, column):
        """The row of the file that belongs beside a cell of ours, or {}."""
        if table.backbone not in ("ViT-B/16", ""):
            return {}
        shots, metric = (column, "Accuracy") if table.protocol == "few_shot" else (str(table.shots), column)
        method = label[1] + ("†" if "_cached" in label[2] else "")  # the paper's mark for cached features
        return self.rows.get((table.protocol, method, label[0], shots, metric), {})

    def averages(self, protocol, dataset):
        """{(method, metric): value} of one line of averages."""
        keys = (protocol, dataset)
        return {(m, metric): float(row["value"]) for (p, m, d, _, metric), row in self.rows.items() if (p, d) == keys}


def shown(path):
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def percent(stat):
    if stat is None:
        return "-"
    return f"{stat.mean:.2f}" + (f" ±{stat.spread:.2f}" if stat.spread is not None else "")


def cost(stat):
    return "-" if stat is None else f"{stat.mean:.{1 if stat.mean < 100 else 0}f}"


def train_seconds(row):
    extract = row.get("Extract s")
    return cost(row.get("Train s")) + (f" ({cost(extract)})" if extract and extract.mean > 0 else "")


def seeds_behind(row, columns):
    """3, or 3/2/2 where the columns rest on different numbers of seeds."""
    counts = [str(row[name].n) for name in columns if name in row]
    return "/".join(counts if len(set(counts)) > 1 else counts[:1])


def texts(table, published):
    """The table as lines of {column: text}."""
    for label, row in (table.rows | table.averages).items():
        line = dict(zip(("Dataset", "Trainer", "Config"), label, strict=True))
        for column in table.columns:
            line[column] = percent(row.get(column))
            if published:
                paper = published.find(table, label, column)
                line[f"{column} paper"] = paper.get("value", "-") + ("*" if paper.get("note") else "")
        if table.protocol != "few_shot":
            line |= {"Train s": train_seconds(row), "Peak MB": cost(row.get("Peak MB"))}
        yield line | {"n": "" if label in table.averages else seeds_behind(row, table.columns)}


def render(table, markup, published):
    """Heading and table. A dataset or config that is the same in all lines is named in the heading only."""
    lines = list(texts(table, published))
    same = [name for name in ("Dataset", "Config") if len({line[name] for line in lines}) == 1]
    shots = f"{table.shots} shots" if table.shots >= 0 else ""
    constant = [lines[0][name] for name in same]
    heading = ", ".join(filter(None, [table.protocol, *constant, shots, table.backbone, shown(table.where)]))
    header = [name for name in lines[0] if name not in same]
    align = ["left" if name in ("Dataset", "Trainer", "Config") else "right" for name in header]
    two_storeys = [name.replace(" paper", "\npaper") if markup == "simple" else name for name in header]
    body = [[line[name] for name in header] for line in lines]
    return heading, tabulate(body, two_storeys, tablefmt=markup, disable_numparse=True, colalign=align)


def notes(tables, ci95, published):
    """What a reader must know about the numbers above."""
    if tables:
        yield f"mean ± {spread_name(ci95)} over n seeds; a single run has no spread"
    if any(table.protocol == "base2new" for table in tables):
        yield "H: mean over seeds; in an average row: harmonic mean of its Base and New, as in the papers"
    if any(name in row for table in tables for row in table.rows.values() for name in COSTS):
        yield "Train s: feature extraction, in brackets, included; Peak MB: peak memory in training"
    for table in tables if published else ():
        for label in table.rows:
            for column in table.columns:
                if note := published.find(table, label, column).get("note"):
                    yield f"* {label[1]}, {label[0]}, {column}: {note}"


def csv_lines(tables, published):
    """Tidy, at full precision: one number a line, the same columns for every protocol."""
    where = ["protocol", "folder", "backbone", "shots", "dataset", "trainer", "config"]
    yield [*where, "metric", "mean", "spread", "n", "paper"]
    for table in tables:
        for label, row in (table.rows | table.averages).items():
            for name in [name for name in (*table.columns, *COSTS) if name in row]:
                shots, metric = (name, "Accuracy") if table.protocol == "few_shot" else (table.shots, name)
                paper = published.find(table, label, name).get("value") if published else None
                yield [table.protocol, table.where, table.backbone, shots, *label, metric, *row[name], paper]


def write_csv(target, lines):
    if target == "-":
        csv.writer(sys.stdout, lineterminator="\n").writerows(lines)
        return
    beside = Path(f"{target}.tmp")  # renamed when whole, so that a full disk costs no older file
    with open(beside, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    os.replace(beside, target)


def print_tables(tables, args):
    published = Published() if args.paper else None
    if args.csv:
        write_csv(args.csv, csv_lines(tables, published))
    if args.csv == "-":
        return
    markup = args.markup or "simple"
    heading_mark, note_mark = {"simple": ("", ""), "pipe": ("### ", "- ")}.get(markup, ("% ", "% "))
    for table in tables:
        heading, text = render(table, markup, published)
        print(f"{heading_mark}{heading}\n\n{text}\n")
    for note in notes(tables, args.ci95, published):
        print(f"{note_mark}{note}")


def print_summaries(runs, args):
    """The lines of CoOp's script, for each experiment."""
    means = []
    for directory, members in group(runs, lambda run: run.file.parent.parent).items():
        for run in members:
            print(f"file: {shown(run.file)}. {args.keyword}: {run.value:.2f}%. ")
        stat = describe([run.value for run in members], args.ci95)
        means.append(stat.mean)
        spread = f" +- {stat.spread:.2f}%" if stat.spread is not None else ""
        print("===", f"Summary of directory: {shown(directory)}", sep="\n")
        print(f"* {args.keyword}: {stat.mean:.2f}%{spread}", "===", sep="\n")
        print(f"+- {spread_name(args.ci95)}, n = {stat.n}" if spread else "a single run has no spread")
    if args.multi_exp:
        print("Average performance", f"* {args.keyword}: {statistics.fmean(means):.2f}%", sep="\n")


def finish(found, problems, nothing):
    """Names what is missing or broken; -> the exit code. `nothing` is the error if nothing was found at all."""
    print_problems(problems)
    if not found and not problems:
        print(f"Error: {nothing}", file=sys.stderr)
        return 2
    return 1 if problems else 0


def print_problems(problems):
    sys.stdout.flush()  # so that they come last where both streams go to one file, too
    if problems:
        print(f"\nMissing or broken, and not in the numbers above ({len(problems)}):", file=sys.stderr)
    for folder, reason in sorted(problems.items()):
        print(f"  {shown(folder)}: {reason}", file=sys.stderr)


# --- command line -------------------------------------------------------------------------------------


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("directory", type=Path, help="root of experiments, or the folder of one")
    parser.add_argument("--ci95", action="store_true", help="spread: half of the 95%% confidence interval")
    parser.add_argument("--test-log", action="store_true", help="the logs are those of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="summarise each experiment and average them")
    parser.add_argument("--keyword", default="accuracy", help="or: error, macro_f1, average (per class)")
    parser.add_argument("--csv", metavar="FILE", help="tables as numbers to FILE; -: to the screen instead")
    markup = parser.add_mutually_exclusive_group()
    markup.add_argument("--markdown", dest="markup", action="store_const", const="pipe")
    markup.add_argument("--latex", dest="markup", action="store_const", const="latex_booktabs")
    parser.add_argument("--paper", action="store_true", help=f"published values beside ours ({PUBLISHED.name})")
    args = parser.parse_args(argv)
    args.wants_tables = bool(args.csv or args.markup or args.paper)
    if args.multi_exp and args.wants_tables:
        parser.error("--multi-exp prints no tables: without it, the folder's experiments become tables")
    if args.paper and args.keyword != "accuracy":
        parser.error("--paper knows accuracies only: leave out --keyword")
    return args


def main(argv=None):
    args = parse_args(argv)
    top = Path(os.path.abspath(args.directory))
    folders = find_runs(top)
    if not folders:
        print(f"Error: no result.json and no log.txt in or below {args.directory}", file=sys.stderr)
        return 2
    runs, problems = read_all(folders, top, args.keyword, args.test_log)
    one_experiment = all(folder.parent == top for folder in folders)
    if args.multi_exp or (one_experiment and not args.wants_tables):
        if runs:
            print_summaries(runs, args)
    else:
        problems |= find_missing(runs)
        try:
            print_tables(build_tables(runs, args.ci95), args)
        except OSError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
    print_problems(problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
