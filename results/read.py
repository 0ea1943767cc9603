"""Runs on disk: a folder with result.json or, for other people's code, a log -> `Run`.

result.json says what was run. The path says it only for logs, and for result.json files that were written before these
said their protocol and preset. Nothing read is believed before it has passed gate.py.
"""

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from .gate import LOG_LIMIT, Broken, is_percent, read_record, read_text

DATASET_CONFIGS = Path(__file__).parents[1] / "configs" / "datasets"

# Where runs lie (the layout of PromptSRC's scripts); the first pattern that fits the end of the path decides.
DATASET, TRAINER, CONFIG = (rf"(?P<{name}>[^/]+)" for name in ("dataset", "trainer", "config"))
SHOTS, SEED = r"(?P<shots>-?\d+)", r"seed(?P<seed>-?\d+)$"
LAYOUTS = [
    ("base2new", rf"/(?P<part>train_base|test_new)/{DATASET}/shots_{SHOTS}/{TRAINER}/{CONFIG}/{SEED}"),
    ("few_shot", rf"/(?P<part>few_shot)/{DATASET}/{TRAINER}/{CONFIG}_{SHOTS}shots/{SEED}"),
    ("cross_dataset", rf"/(?P<part>evaluation)/{TRAINER}/{CONFIG}_{SHOTS}shots/{DATASET}/{SEED}"),
    ("cross_dataset", rf"/(?P<part>(?P<dataset>imagenet))/{TRAINER}/{CONFIG}_{SHOTS}shots/{SEED}"),
]
PRESET = re.compile(r"_(matched|cached|paper|official)(?=_|$)")  # in the name of a config
LOADED = re.compile(r"Loading CLIP \(backbone: (.+?)\)")
PARTS = {"base": "train_base", "new": "test_new"}  # of base-to-new, by the classes that were tested
TWIN = {"train_base": "test_new", "test_new": "train_base"}
SUBSAMPLE = {"train_base": "base", "test_new": "new"}  # every other part: all
TEST_ONLY = ("test_new", "evaluation")  # parts that train nothing
COLUMN = {"train_base": "Base", "test_new": "New"}  # every other part: "Accuracy"
COSTS = ("Train s", "Extract s", "Peak MB", "RSS MB")  # training includes extraction
SCORES = ("mcm", "msp", "max_logit", "energy")  # by which base images are told from new ones
# Numbers beside accuracy, in percent: {name in --csv: head of a column on the page, or "" for none there}
BESIDE = {
    **{"ece15": "ECE", "ece15_base": "ECE base", "ece15_new": "ECE new"},
    **{"ece15_t": "ECE at T", "ece15_t_base": "ECE base at T", "ece15_t_new": "ECE new at T"},  # TEST.TEMPERATURE
    **{"gen_base": "Gen. base", "gen_new": "Gen. new", "gen_h": "Gen. H", "openworld_auc": "OpenworldAUC"},
    **{f"{name}_{score}": "" for score in SCORES for name in ("auroc", "aupr", "fpr95_id", "fpr95_ood")},
    **{"auroc_mcm": "AUROC", "fpr95_id_mcm": "FPR95"},
}


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    file: Path  # what was read
    where: Path  # the folder in which the layout starts
    protocol: str  # base2new, few_shot, cross_dataset or other
    part: str  # train_base or test_new; few_shot; imagenet or evaluation; other
    config: str
    value: float  # of the metric asked for, in percent
    dataset: str = "-"
    trainer: str = "-"
    preset: str = ""
    shots: int | None = None  # -1: all training images
    seed: int = -1
    backbone: str = ""
    tested: str = "test"  # the split that was tested
    split: str | None = None  # hash of the dataset's whole split, where result.json says it
    costs: dict[str, float | None] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)  # BESIDE, what is known of it
    record: dict = field(default_factory=dict)  # the whole of result.json

    @property
    def column(self) -> str:
        """The column of its table that the run counts in."""
        if self.protocol == "few_shot":
            return "all" if self.shots == -1 else str(self.shots)
        return COLUMN.get(self.part, "Accuracy")

    @property
    def experiment(self) -> tuple:
        """What a run shares with those of other seeds and, in base-to-new, with its other half."""
        return self.where, self.protocol, self.dataset, self.trainer, self.config, self.shots


# --- one folder -----------------------------------------------------------------------------------------


def locate(folder: Path, top: Path) -> dict:
    """What the path says about a run."""
    for protocol, pattern in LAYOUTS:
        if match := re.search(pattern, folder.as_posix()):
            known = match.groupdict() | {"shots": int(match["shots"]), "seed": int(match["seed"])}
            known |= {"protocol": protocol, "where": Path(folder.as_posix()[: match.start()] or "/")}
            preset = PRESET.search(known["config"])
            return known | {"preset": preset[1] if preset else ""}
    seed = re.fullmatch(SEED, folder.name)
    experiment = os.path.relpath(folder.parent if seed else folder, top)
    known = {"protocol": "other", "part": "other", "where": top, "config": experiment}
    return known | ({"seed": int(seed["seed"])} if seed else {})


@functools.cache
def dataset_stems() -> dict[str, str]:
    """{name of a dataset as result.json has it: the name that files and folders have}."""
    found = {}
    for file in DATASET_CONFIGS.glob("*.yaml"):
        found[yaml.safe_load(file.read_text(encoding="utf-8"))["DATASET"]["NAME"]] = file.stem
    return found


def place_of(record: dict, path: dict) -> dict:
    """What a result.json says about a run that names its protocol; the path only tells experiments apart."""
    protocol = {"xd": "cross_dataset"}.get(record["protocol"], record["protocol"])
    part = {"base2new": PARTS.get(record["subsample"]), "few_shot": "few_shot"}.get(protocol, "evaluation")
    if protocol == "cross_dataset" and record["dataset"] == "ImageNet":
        part = "imagenet"
    if part is None or SUBSAMPLE.get(part, "all") != record["subsample"]:
        raise Broken(f"result.json says protocol {record['protocol']}, but subsample {record['subsample']}")
    preset = record.get("preset", "")
    place = {"protocol": protocol, "part": part, "preset": preset, "where": path["where"], "config": path["config"]}
    if path.get("seed", 0) < 0:  # SEED -1: each half has drawn its own
        place["seed"] = path["seed"]
    if path["protocol"] == "other":
        files = [Path(file).stem for file in record.get("config_files") or ()]  # the method's own first, then overlays
        own = "embedded" if "embedded" in files else "".join(files[:1])
        place["config"] = "_".join(filter(None, (own, preset))) or "-"
    return place | {"dataset": dataset_stems().get(record["dataset"], record["dataset"])}


def check_path(record: dict, path: dict) -> None:
    """Broken if an older result.json, which doesn't say its protocol, contradicts its path."""
    said = {key: record[key] for key in ("trainer", "seed", "subsample")}
    for key, path_says in {**path, "subsample": SUBSAMPLE.get(path["part"], "all")}.items():
        if key in said and said[key] != path_says:
            raise Broken(f"result.json says {key} {said[key]}, the path says {path_says}")


def read_result(file: Path, path: dict, keyword: str) -> Run:
    """The run of a result.json; `path` is what `locate` says. Raises Broken."""
    record = read_record(file)
    extract, train = record["seconds"]["extract"], record["seconds"]["train"]
    costs = (train + extract, extract, record["peak_memory_mb"], record.get("peak_rss_mb"))
    known = {key: record[key] for key in ("dataset", "trainer", "shots", "seed", "backbone")}
    known |= {"costs": dict(zip(COSTS, costs, strict=True)), "split": record.get("split"), "record": record}
    if record.get("protocol"):
        known |= place_of(record, path)
    else:
        if path["protocol"] != "other":
            check_path(record, path)
        known |= path
    calibration = record.get("calibration") or {}
    half = {"train_base": "_base", "test_new": "_new"}.get(known["part"], "")
    errors = {"ece15": calibration, "ece15_t": calibration.get("temperature") or {}}
    known["beside"] = {f"{name}{half}": found["ece15"] for name, found in errors.items() if "ece15" in found}
    known["tested"] = record.get("tested") or tested_by_log(file.parent)
    values = {"accuracy": record["accuracy"], "error": 100 - record["accuracy"], "macro_f1": record["macro_f1"]}
    value = values[keyword] if keyword in values else read_log(file.parent, keyword, test_only=True)["value"]
    if value is None:
        raise Broken(f"result.json has no {keyword}")
    return Run(file=file, value=value, **known)


def newest_log(folder: Path) -> Path | None:
    """A repeated run leaves log.txt-<time> beside log.txt; these names sort by time."""
    return max(folder.glob("log.txt*"), default=None)


def tested_split(lines: Iterable[str]) -> str:
    """The split that the last test in a log was on."""
    found = [match[1] for line in lines if (match := re.search(r"Evaluate on the \*(\w+)\* set", line))]
    return found[-1] if found else "test"


def tested_by_log(folder: Path) -> str:
    """The same for the newest log in a folder; "test" where there is none."""
    log = newest_log(folder)
    return tested_split(read_text(log, LOG_LIMIT, "replace").splitlines()) if log else "test"


def read_log(folder: Path, keyword: str, test_only: bool) -> dict:
    """Fields of a Run from the newest log: the last `* keyword: 89.3%` after training (test only: evaluation) was over.

    Raises Broken.
    """
    log = newest_log(folder)
    if log is None:
        raise Broken(f"no log.txt with '{keyword}'")
    lines = [line.strip() for line in read_text(log, LOG_LIMIT, "replace").splitlines()]
    test_only = test_only or "eval_only: True" in lines
    signals = ("=> result",) if test_only else ("Finish training", "Finished training")
    start = next((at for at, line in enumerate(lines) if line in signals), len(lines))
    number = re.compile(rf"\* {re.escape(keyword)}: (\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|nan|inf)%")
    values = [float(match[1]) for line in lines[start:] if (match := number.search(line))]
    if not values:
        if lines and lines[-1].startswith("Error: "):
            raise Broken(f"stopped by an error: {lines[-1].removeprefix('Error: ')}")
        raise Broken(f"unfinished? {log.name} has no '{keyword}' after '{signals[0]}'")
    if not is_percent(values[-1]):
        raise Broken(f"{log.name} says {keyword} {values[-1]}, not a number from 0 to 100")
    backbone = next((match[1] for line in lines if (match := LOADED.search(line))), "")
    return {"file": log, "value": values[-1], "backbone": backbone, "tested": tested_split(lines)}


def read_run(folder: Path, top: Path, keyword: str = "accuracy", test_log: bool = False) -> Run:
    """One run folder below `top`. Raises Broken for one that has no result, or one that contradicts itself.

    keyword: the metric; test_log: logs are those of evaluations, without training.
    """
    path = locate(folder, top)
    if os.path.lexists(folder / "result.json"):
        return read_result(folder / "result.json", path, keyword)
    if newest_log(folder) is None:
        raise Broken("neither result.json nor log.txt")
    return Run(**read_log(folder, keyword, test_log or path["part"] in TEST_ONLY), **path)


# --- many folders ---------------------------------------------------------------------------------------


def visible_folders(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk without hidden folders, through links, too: each folder once, by its own name where that is below `top`.

    A name that the reader takes out of the list of folders isn't visited.
    """
    seen, links = set(), [str(top)]
    while links:
        for folder, below, files in os.walk(links.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield folder, below, files
            links += [path for name in below if os.path.islink(path := os.path.join(folder, name))]


def find_runs(top: Path) -> list[Path]:
    """Folders at or below `top` that hold a result or a log, and seed folders that should.

    A run holds no runs, but for `top`, if that was once used as an output folder. A log above runs, such as that of
    nohup, makes no run of its folder.
    """
    found, only_logs = [], set()
    for folder, below, files in visible_folders(top):
        path = Path(folder)
        if "result.json" in files or re.fullmatch(SEED, path.name):
            found.append(path)
            if path != top:
                below.clear()
        elif any(name.startswith("log.txt") for name in files):
            found.append(path)
            only_logs.add(path)
    above = {parent for path in found for parent in path.parents}
    return [path for path in found if path == top or path not in only_logs & above]


def read_all(
    folders: list[Path], top: Path, keyword: str = "accuracy", test_log: bool = False
) -> tuple[list[Run], dict[Path, str]]:
    """-> (runs, {folder: why it is broken})."""
    runs, problems = [], {}
    for folder in folders:
        try:
            runs.append(read_run(folder, top, keyword, test_log))
        except (Broken, OSError) as error:
            problems[folder] = str(error)
    return runs, problems


def find_missing(runs: list[Run]) -> dict[Path, str]:
    """{folder: why} of runs that should be there: base-to-new's other half, seeds and datasets that others have.

    Where the layout doesn't say in which folder they should be, it is the folder of the run that waits for them.
    """
    missing, waiting = {}, {}
    members = defaultdict(lambda: defaultdict(list))
    halves = {(run.experiment, run.seed, run.part) for run in runs if run.part in TWIN}
    for run in [run for run in runs if run.protocol != "other"]:
        folder = run.file.parent
        if run.part in TWIN and (run.experiment, run.seed, TWIN[run.part]) not in halves:
            if folder.is_relative_to(run.where / run.part):
                twin = run.where / TWIN[run.part] / folder.relative_to(run.where / run.part)
                missing[twin] = f"missing, but its {run.part} run is there"
            else:
                waiting[folder] = f"its {TWIN[run.part]} run is missing"
        members[run.where, run.protocol][run.part, run.experiment].append(run)
    for experiments in members.values():
        seeds = {key: {run.seed for run in found} for key, found in experiments.items()}
        fullest = max(seeds.values(), key=len)
        for key, have in seeds.items():
            folder = experiments[key][0].file.parent
            for seed in fullest - have:
                if re.fullmatch(SEED, folder.name):
                    why = f"missing, but another experiment has seed {seed}"
                    missing.setdefault(folder.parent / f"seed{seed}", why)
                else:
                    waiting.setdefault(folder, f"seed {seed} of this is missing, but another experiment has it")
    found = waiting | {folder: why for folder, why in missing.items() if not folder.is_dir()}
    return find_missing_datasets(runs) | found


def find_missing_datasets(runs: list[Run]) -> dict[Path, str]:
    """{folder of an experiment on one dataset: those that it has no run on, but others of the same place have}.

    One line for each experiment, whatever the number of datasets, as grids are often partial on purpose.
    """
    places = defaultdict(lambda: defaultdict(list))
    for run in [run for run in runs if run.protocol != "other"]:
        place = run.where, run.protocol, run.shots, run.backbone, run.tested
        places[place][run.trainer, run.config].append(run)
    lacking = {}
    for experiments in places.values():
        datasets = {run.dataset for members in experiments.values() for run in members}
        for members in experiments.values():
            folder = members[0].file.parent
            if absent := sorted(datasets - {run.dataset for run in members}):
                why = f"the same on {', '.join(absent)} is missing, but another experiment has it"
                lacking[folder.parent if re.fullmatch(SEED, folder.name) else folder] = why
    return lacking


def find_twice(runs: list[Run]) -> dict[Path, str]:
    """{folder: why} of runs that nothing tells apart but their folders: which of them counts is not ours to choose."""
    same = defaultdict(list)
    for run in runs:
        same[run.experiment, run.part, run.backbone, run.tested, run.split, run.seed].append(run.file.parent)
    problems = {}
    for folders in same.values():
        for folder in folders if len(folders) > 1 else ():
            other = next(another for another in folders if another != folder)
            problems[folder] = f"the same experiment and seed as {other}: keep one of them below the folder given"
    return problems


def find_strangers(runs: list[Run]) -> dict[Path, str]:
    """{folder: why} of tests on new classes that make no H with the base half of their seed."""
    halves = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.part in TWIN:
            halves[run.experiment, run.seed][run.part].append(run)
    problems = {}
    for parts in halves.values():
        for new in parts["test_new"]:
            differences = [difference(base, new) for base in parts["train_base"]]
            if differences and all(differences):
                problems[new.file.parent] = f"no H with its base half: {differences[0]}"
    return problems


def difference(base: Run, new: Run) -> str:
    """Why two halves of base-to-new don't belong together; "" if they do. Older files don't say their split."""
    if base.backbone != new.backbone:
        return f"backbone {base.backbone} there, {new.backbone} here"
    if base.tested != new.tested:
        return f"tested on {base.tested} there, on {new.tested} here"
    if base.split and new.split and base.split != new.split:
        return f"other images (split {base.split[:16]} there, {new.split[:16]} here)"
    return ""


def settle_splits(runs: list[Run]) -> list[Run]:
    """Runs of older files, which name no split, get the one that all others of their experiment name."""
    known = defaultdict(set)
    for run in runs:
        known[run.experiment] |= {run.split} - {None}
    settled = []
    for run in runs:
        splits = known[run.experiment]
        settled.append(replace(run, split=min(splits)) if run.split is None and len(splits) == 1 else run)
    return settled


def check_together(runs: list[Run]) -> tuple[list[Run], dict[Path, str]]:
    """What shows only when runs are seen together -> (the runs that count, {folder: problem})."""
    runs = settle_splits(runs)
    twice = find_twice(runs)
    runs = [run for run in runs if run.file.parent not in twice]
    return runs, twice | find_strangers(runs) | find_missing(runs)


def read_folder(folder: str | Path) -> tuple[list[Run], dict[Path, str]]:
    """All runs at or below it that belong into tables -> (runs, {folder: why it is missing, broken or left out})."""
    top = absolute(folder)
    runs, problems = read_all(find_runs(top), top)
    runs, wrong = check_together(runs)
    return runs, wrong | problems


def absolute(folder: str | Path) -> Path:
    """Where the user means: `~` is expanded, the rest is seen from the current folder."""
    return Path(os.path.abspath(os.path.expanduser(folder)))
