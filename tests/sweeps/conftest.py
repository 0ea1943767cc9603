"""A copy of the project whose runs are stand-ins, and a sweep in it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SNAKEMAKE = Path(os.environ.get("SNAKEMAKE", ROOT / ".venv-sweep/bin/snakemake"))
COPIED, LINKED = ("sweeps", "scripts", "configs"), ("parse_test_res.py", "results", "dassl")
SWEEP = {"protocol": "base2new", "datasets": ["dtd", "eurosat"], "trainers": ["CoOp", "SkipTuning"], "seeds": [1, 2]}
RUNS = 2 * 2 * 2 * 2


class Project:
    def __init__(self, folder: Path):
        self.folder, self.output, self.calls_file = folder, folder / "out", folder / "calls"
        folder.mkdir()
        for name in COPIED:
            shutil.copytree(ROOT / name, folder / name, symlinks=True)
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/sweeps/stand_in.py "$@"\n')
        python.chmod(0o755)
        (folder / "small.yaml").write_text(yaml.safe_dump(SWEEP | {"output": "out"}))
        self.env = os.environ | {"PYTHON": str(python), "CALLS": str(self.calls_file), "SNAKEMAKE": str(SNAKEMAKE)}

    def start(self, *words, **env) -> subprocess.Popen:
        """A command in the project, in a process group of its own; its output goes to the file `out.txt`."""
        with open(self.folder / "out.txt", "w") as out:
            env = self.env | {key: str(value) for key, value in env.items()}
            options = {"cwd": self.folder, "env": env, "stdin": subprocess.DEVNULL, "start_new_session": True}
            return subprocess.Popen([str(word) for word in words], stdout=out, stderr=out, **options)

    def sweep(self, *words, **env) -> subprocess.Popen:
        return self.start("bash", "sweeps/run.sh", "small.yaml", *words, **env)

    def done(self, process: subprocess.Popen) -> tuple[int, str]:
        """-> (exit code, what it said)."""
        return process.wait(timeout=300), (self.folder / "out.txt").read_text()

    def calls(self, what: str = "start") -> list[list[str]]:
        """[GPU, process, folder] of every run that started, or ended."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(what)]

    def until(self, number: int, what: str = "end") -> None:
        """Waits for so many calls."""
        while len(self.calls(what)) < number:
            time.sleep(0.05)

    def results(self) -> dict[str, bytes]:
        return {str(file.relative_to(self.output)): file.read_bytes() for file in self.output.rglob("result.json")}


@pytest.fixture
def project(tmp_path):
    """A Project; what it started is gone at the end."""
    if not os.environ.get("SWEEP_TEST"):
        pytest.skip("takes minutes; run by: make sweep-test")
    if not SNAKEMAKE.exists():
        pytest.skip("needs: make sweep-setup")
    made = Project(tmp_path / "project")
    started = []
    start = made.start
    made.start = lambda *words, **env: started.append(start(*words, **env)) or started[-1]
    yield made
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
