"""Our commands find our own modules where others have the same names: Hugging Face's datasets, OpenAI's clip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("clip", "dassl", "datasets", "results", "trainers")


@pytest.fixture
def others(tmp_path):
    """A folder of installed packages with our names, none of which may be imported."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'raise ImportError("{name} of somebody else")\n')
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--help"],
        ["predict.py", "--help"],
        ["export.py", "--help"],
        ["parse_test_res.py", "--help"],
        ["swap_in.py", "--help"],
        ["-m", "datasets.fetch", "--help"],
        ["-m", "datasets.doctor", "--help"],
        ["-m", "results.figures", "--help"],
        ["-m", "benchmarks.methods", "--help"],
    ],
    ids=lambda command: command[-2],
)
def test_a_command_imports_ours(command, others):
    folder = ROOT if command[0] == "-m" else others.parent  # scripts run from anywhere
    words = [str(ROOT / word) if word.endswith(".py") else word for word in command]
    environment = os.environ | {"PYTHONPATH": str(others)}
    run = subprocess.run([sys.executable, *words], cwd=folder, env=environment, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert "usage" in run.stdout.lower()
