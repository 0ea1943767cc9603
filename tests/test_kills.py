"""The driver that kills runs, with few trials."""

import subprocess
import sys
from pathlib import Path

from tests import kills


def test_runs_that_are_killed_or_started_at_once_end_in_the_same_bytes():
    words = [sys.executable, "-m", "tests.kills", "--trials", "6"]
    run = subprocess.run(words, cwd=Path(__file__).parents[1], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("8 trials, 8 with the same bytes at the end\n")


def test_bytes_that_differ_and_files_too_few_or_many_are_told():
    assert kills.differences({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"2"}) == []
    assert kills.differences({"a": b"1", "b": b"2", "c": b""}, {"a": b"1", "b": b"3", "d": b""}) == ["b", "c", "d"]
