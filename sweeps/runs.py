"""The runs of a sweep: what sweeps/Snakefile starts, and how far it is.

    python sweeps/runs.py sweeps/table1.yaml        how many runs, how many are done, an estimate of the time left

Needs PyYAML only; Snakemake's environment has it.
"""

import functools
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("trainers", "presets", "seeds", "shots")  # of a sweep's file; each becomes a variable of the scripts
TEXTS = ("output", "data", "options", "prec", "cfg")
KEYS = {"protocol", "datasets", *LISTS, *TEXTS}
RECENT = 20  # results that the estimate looks at


@dataclass
class Run:
    """One run: where it leaves its result, the command that makes it, the files it reads, the training it tests."""

    result: str
    command: str
    reads: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """What decides whether the result is up to date: of what it reads the newest file stands for all.

        Snakemake spends a millisecond on every input of every run.
        """
        return [newest(tuple(self.reads)), *self.after]


def read(path: str) -> dict:
    """What a sweep's file says. ValueError if it is no YAML, or has no keys."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} has no lines 'key: value'; sweeps/table1.yaml shows what a sweep has")
    return config


def check(config: dict) -> None:
    """ValueError names what is wrong in a sweep's file, and what to do."""
    if unknown := config.keys() - KEYS:
        raise ValueError(f"a sweep has no '{min(map(str, unknown))}'; it has: {', '.join(sorted(KEYS))}")
    for key in ("datasets", *LISTS):
        if not isinstance(config.get(key, []), list):
            raise ValueError(f"'{key}' must be a list, such as [a, b], not {config[key]!r}")


def settings(config: dict) -> dict[str, str]:
    """The variables for the scripts that are the same in the whole sweep."""
    return {key.upper(): os.path.expanduser(str(config[key])) for key in TEXTS if config.get(key)}


@functools.cache
def newest(paths: tuple[str, ...]) -> str:
    """The file that was changed last."""
    return max(paths, key=lambda path: (ROOT / path).stat().st_mtime_ns)


@functools.cache
def with_bases(file: str) -> tuple[str, ...]:
    """A config file, and those it is based on."""
    path = os.path.relpath(ROOT / file, ROOT)
    bases = (yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) or {}).get("_BASE_") or []
    found = [path]
    for base in [bases] if isinstance(bases, str) else bases:
        found += with_bases(os.path.normpath(os.path.join(os.path.dirname(path), base)))
    return tuple(dict.fromkeys(found))


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
        run = Run(f"{folder}/result.json", shlex.join(command))
        for file in (*files, f"configs/datasets/{dataset}.yaml", "configs/templates.yaml"):
            run.reads += [path for path in with_bases(file) if path not in run.reads]
        same = (trainer, preset, shots, seed, dataset if stage.startswith("base2new") else "")
        if stage.endswith("_train"):
            trained[same] = run.result
        elif stage.endswith("_test"):
            run.after.append(trained[same])
        found[folder] = run
    return found


def progress(found: dict[str, Run], now: float | None = None) -> str:
    """One line: counts, and the time left at the pace of the newest results."""
    paths = [ROOT / run.result for run in found.values()]
    ends = sorted(path.stat().st_mtime for path in paths if path.exists())
    line = f"{len(ends):,} of {len(found):,} runs are done"
    recent = ends[-RECENT:]
    if len(recent) < 2 or len(ends) == len(found):
        return line
    seconds = ((now or time.time()) - recent[0]) / (len(recent) - 1) * (len(found) - len(ends))
    left = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
    return f"{line}; at the pace of the last {len(recent)}, about {left} are left"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python sweeps/runs.py sweeps/table1.yaml")
    try:
        print(progress(runs(read(sys.argv[1]))))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
