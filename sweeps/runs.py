"""The runs of a sweep: what sweeps/Snakefile starts, and how far it is.

    python sweeps/runs.py sweeps/table1.yaml        how many runs, how many are done, an estimate of the time left
    python sweeps/runs.py sweeps/table1.yaml check  nothing, or what is wrong in the file

Needs PyYAML only; Snakemake's environment has it.
"""

import functools
import hashlib
import math
import os
import re
import shlex
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("trainers", "presets", "seeds", "shots")  # of a sweep's file; each becomes a variable of the scripts
TEXTS = ("output", "data", "options", "prec", "cfg")
KEYS = {"protocol", "datasets", *LISTS, *TEXTS}
NUMBERS = {"seeds": "0|[1-9][0-9]*", "shots": "[1-9][0-9]*"}
TEMPLATES = "configs/templates.yaml"
RECENT = 20  # results that the estimate looks at
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it, takes a tenth of the time


@dataclass
class Run:
    """One run: where it leaves its result, the command that makes it, its config files (the dataset's is the last), the
    training that it tests."""

    result: str
    command: str
    files: tuple[str, ...]
    after: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """What decides whether the result is up to date. Snakemake spends a millisecond on every input of every run."""
        return [recipe(self.files), *self.after]


@functools.cache
def load(file: str) -> dict:
    """What a YAML file says. ValueError if it is no YAML, or has something else than keys."""
    try:
        found = yaml.load((ROOT / file).read_text(encoding="utf-8"), LOADER)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found or {}, dict):
        raise ValueError(f"{file} has no lines 'key: value'")
    return found or {}


def read(sweep: str) -> dict:
    """What a sweep's file says. ValueError names the file and what is wrong in it."""
    config = load(sweep)
    if not config:
        raise ValueError(f"{sweep} has no lines 'key: value'; sweeps/table1.yaml shows what a sweep has")
    try:
        check(config)
    except ValueError as error:
        raise ValueError(f"{sweep}: {error}") from error
    return config


def check(config: dict) -> None:
    """ValueError names what is wrong in a sweep's file, and what to do."""
    if unknown := config.keys() - KEYS:
        raise ValueError(f"a sweep has no '{min(map(str, unknown))}'; it has: {', '.join(sorted(KEYS))}")
    for key in ("datasets", *LISTS):
        if not isinstance(config.get(key, []), list):
            raise ValueError(f"'{key}' must be a list, such as [a, b], not {config[key]!r}")
    for key, number in NUMBERS.items():
        for word in config.get(key, []):
            if not re.fullmatch(number, str(word)):
                raise ValueError(f"'{key}' must be a list of whole numbers, such as [1, 2]; {word!r} is none")
    for key in ("protocol", *TEXTS):
        if isinstance(config.get(key), (list, dict)):
            raise ValueError(f"'{key}' must be one text, not {config[key]!r}")


def settings(config: dict) -> dict[str, str]:
    """The variables for the scripts that are the same in the whole sweep."""
    return {key.upper(): os.path.expanduser(str(config[key])) for key in TEXTS if config.get(key)}


@functools.cache
def with_bases(file: str) -> tuple[str, ...]:
    """A config file, and those it is based on."""
    path = os.path.relpath(ROOT / file, ROOT)
    bases = load(path).get("_BASE_") or []
    found = [path]
    for base in [bases] if isinstance(bases, str) else bases:
        found += with_bases(os.path.normpath(os.path.join(os.path.dirname(path), base)))
    return tuple(dict.fromkeys(found))


def prompts(dataset: str) -> dict:
    """What configs/templates.yaml has for the dataset of a config file: the rows of the others are left out."""
    keys = {"like", "default", load(dataset)["DATASET"]["NAME"]}
    table = load(TEMPLATES)
    return table | {
        "uses": {use: {key: rows[key] for key in rows if key in keys} for use, rows in table["uses"].items()}
    }


def digest(content: bytes) -> str:
    """A short name for a content."""
    return hashlib.sha256(content).hexdigest()[:16]


@functools.cache
def recipe(files: tuple[str, ...]) -> str:
    """The file that stands for all that runs with these config files read."""
    return f".snakemake/recipes/{digest(' '.join(files).encode())}"


@functools.cache
def content(files: tuple[str, ...]) -> tuple[str, int]:
    """What this file must hold, and its time in ns. A touched file changes neither.

    A new one is as old as the newest file that is read. Later the time of the change itself counts (ctime): a file that
    takes the place of another may be older than both.
    """
    lines = {}
    for path in dict.fromkeys(path for file in files for path in with_bases(file)):
        lines[f"{path} {digest((ROOT / path).read_bytes())}"] = (ROOT / path).stat()
    lines[f"{TEMPLATES} {digest(repr(prompts(files[-1])).encode())}"] = (ROOT / TEMPLATES).stat()
    file = ROOT / recipe(files)
    if file.exists():
        before = file.read_text().splitlines()
        changed = [stat.st_ctime_ns for line, stat in lines.items() if line not in before]
        time = max([file.stat().st_mtime_ns, *changed])
    else:
        time = max(stat.st_mtime_ns for stat in lines.values())
    return "\n".join(lines), time


def write_recipes(found: dict[str, Run]) -> None:
    """Brings the files `recipe` of these runs up to date. Jobs that look at one find it whole at any time."""
    folder = ROOT / os.path.dirname(recipe(()))
    folder.mkdir(parents=True, exist_ok=True)
    for files in {run.files for run in found.values()}:
        text, time = content(files)
        file = ROOT / recipe(files)
        if file.exists() and file.read_text() == text:
            continue
        new = folder / f".{uuid.uuid4().hex}"
        new.write_text(text)
        os.utime(new, ns=(time, time))
        new.replace(file)


def listed(config: dict) -> list[list[str]]:
    """What sweeps/runs.sh prints, split into fields."""
    words = {key.upper(): " ".join(map(str, config[key])) for key in LISTS if config.get(key)}
    names = [str(name) for name in config.get("datasets", [])]
    script = subprocess.run(
        ["bash", str(ROOT / "sweeps/runs.sh"), str(config.get("protocol", "")), *names],
        cwd=ROOT,
        env=os.environ | settings(config) | words,
        capture_output=True,
        text=True,
    )
    if script.returncode:
        raise ValueError(script.stderr.strip().removeprefix("Error: "))
    return [line.split("\t") for line in script.stdout.splitlines()]


def runs(config: dict) -> dict[str, Run]:
    """{folder: its run}. Raises ValueError for a file that is no sweep."""
    check(config)
    found, trained = {}, {}
    for stage, dataset, seed, shots, trainer, preset, folder, *files in listed(config):
        folder = os.path.normpath(folder)
        variables = settings(config) | {"TRAINER": trainer, "PRESET": preset, "SHOTS": shots}
        words = [seed] if stage == "xd_train" else [dataset, seed]
        assigned = [f"{name}={value}" for name, value in variables.items()]
        command = ["env", *assigned, "bash", f"scripts/protocols/{stage}.sh", *words]
        reads = (*files, f"configs/datasets/{dataset}.yaml")
        run = Run(f"{folder}/result.json", shlex.join(command), reads)
        same = (trainer, preset, shots, seed, dataset if stage.startswith("base2new") else "")
        if stage.endswith("_train"):
            trained[same] = run.result
        elif stage.endswith("_test"):
            if same not in trained:
                raise ValueError(
                    f"{dataset} is tested with {shots} shots, and nothing is trained with these; give 'shots'"
                )
            run.after.append(trained[same])
        found[folder] = run
    return found


def ends(found: dict[str, Run]) -> list[int]:
    """When the finished runs ended, in ns: those whose result is there and no older than what it was made from."""
    files = [(run, ROOT / run.result) for run in found.values()]
    times = {run.result: file.stat().st_mtime_ns for run, file in files if file.exists()}
    made = {run.result: [content(run.files)[1], *(times.get(file, math.inf) for file in run.after)] for run, _ in files}
    return sorted(time for result, time in times.items() if time >= max(made[result]))


def progress(found: dict[str, Run]) -> str:
    """One line: counts, and the time left at the pace of the newest results."""
    times = ends(found)
    left = len(found) - len(times)
    line = f"{len(times):,} of {len(found):,} runs are done, {left:,} are left"
    recent = times[-RECENT:]
    if len(recent) < 2 or not left:
        return line
    seconds = (recent[-1] - recent[0]) / 1e9 / (len(recent) - 1) * left
    time = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
    return f"{line}; at the pace of the last {len(recent)} that takes about {time}"


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["check"]):
        sys.exit("usage: python sweeps/runs.py sweeps/table1.yaml [check]")
    try:
        sweep = read(sys.argv[1])
        if sys.argv[2:] != ["check"]:
            print(progress(runs(sweep)))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
