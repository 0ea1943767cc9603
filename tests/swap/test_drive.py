"""The driver over many forks makes an honest row of each."""

import argparse
import json

import pytest

import swap_in
from dassl.utils import UserError
from results.figures import read_figure
from swap import fork as forks
from tests.swap.skeletons import make_fork
from tests.upstream import drive

ARGS = argparse.Namespace(python="python", dassl=None)


@pytest.fixture
def runs(monkeypatch, capsys):
    """swap_in is called in this process, and runs of scripts are made up: {where: (losses, accuracies)}."""
    made_up = {"there": ([1.0, 2.0], ["50.0"]), "here": ([1.0, 2.0], ["50.0"])}

    def call(python, *words):
        capsys.readouterr()
        failed = swap_in.main([str(word) for word in words])
        said = capsys.readouterr()
        if failed:
            raise UserError(said.err.strip())
        return said.out

    def run(root, world, script, *options, **variables):
        if root == forks.HERE:
            return made_up["here"]
        (root / "config.json").write_text(f"written by the fork's own {script}")
        if isinstance(made_up["there"], UserError):
            raise made_up["there"]
        return made_up["there"]

    monkeypatch.setattr(drive, "swap_in", call)
    monkeypatch.setattr(drive, "run_script", run)
    return made_up


def row_of(tmp_path, name="CoOp", five=True):
    clone, _ = make_fork(tmp_path, name)
    (tmp_path / "scratch").mkdir()
    return drive.drive("Owner+repo", clone, tmp_path / "scratch", tmp_path, {}, ARGS, five)


def test_a_row_says_what_was_equal_and_that_all_is_as_before(runs, tmp_path):
    row = row_of(tmp_path)
    assert row | {"commit": ""} == {
        "codebase": "Owner/repo",
        "commit": "",
        "engine": "theirs",
        "scripts": "5",
        "losses": "0.0000",
        "accuracy": "50.0 / 50.0 / 50.0 / 50.0 / 50.0",
        "undone": "yes",
        "note": "`clip._download`",
    }


@pytest.mark.parametrize(
    ("there", "losses", "note"),
    [
        (([1.0, 2.25], ["50.0"]), "0.2500", "`clip._download`"),
        (([1.0], ["50.0"]), "", "base2new_train: 1 losses, 2 here"),
        (([1.0, 2.0], ["49.0"]), "", "base2new_train: accuracy ['49.0'], ['50.0'] here"),
        (UserError("base2new_train: it | broke"), "", "base2new_train: it / broke"),
    ],
)
def test_a_row_says_what_differs(there, losses, note, runs, tmp_path):
    runs["there"] = there
    row = row_of(tmp_path, five=False)
    assert (row["losses"], row["note"], row["undone"]) == (losses, note, "yes")


def test_a_codebase_that_is_refused_has_a_row_with_the_reason(runs, tmp_path):
    clone, root = make_fork(tmp_path, "CoOp")
    (root / "train.py").write_text("def (:")
    (tmp_path / "scratch").mkdir()
    row = drive.drive("Owner+repo", clone, tmp_path / "scratch", tmp_path, {}, ARGS, True)
    assert row["engine"] == row["undone"] == "" and "doesn't parse" in row["note"]


def test_what_undo_leaves_is_in_the_row(runs, tmp_path, monkeypatch):
    call = drive.swap_in

    def leaves(python, path, *words):
        out = call(python, path, *words)
        if "--undo" in words:
            (path / "left").touch()
        return out

    monkeypatch.setattr(drive, "swap_in", leaves)
    assert row_of(tmp_path, five=False)["undone"] == "no: left"


def test_rows_become_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(forks, "HERE", tmp_path)
    (tmp_path / "docs/results").mkdir(parents=True)
    rows = [dict.fromkeys((key for key, *_ in drive.COLUMNS), "x")]
    drive.write(rows)
    file = tmp_path / "docs/results/forks.json"
    assert read_figure(file)["tables"][0]["rows"] == rows and json.loads(file.read_text())["commit"] == ""
