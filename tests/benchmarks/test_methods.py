"""The table of methods' costs: what it measures is what it says, on a CLIP small enough for a test."""

import json

import pytest
import torch

from benchmarks import methods as bench
from benchmarks.model import SHOTS
from results.published import Published
from tests.benchmarks.conftest import BASE_CLASSES

CLASSES = 5


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "STEADY", (0, 1))
        return bench.run(small_shape, bench.METHODS, "fp32", tmp_path_factory.mktemp("bench"), [CLASSES], rounds=1)


def test_every_method_has_its_figures(result):
    rows = result["rows"][CLASSES]
    assert list(rows) == list(bench.METHODS)
    for row in rows.values():
        assert all(row[key] > 0 for key in ("images", "epochs", "steps", "ms", "run_s", "peak_mb", "learned"))


def test_recipes_are_the_official_ones(result):
    """Batch size, epochs and steps of 5 classes with 16 shots, from the methods' papers and code."""
    rows = result["rows"][CLASSES]
    found = {name: tuple(row[key] for key in ("images", "epochs", "steps")) for name, row in rows.items()}
    assert found["CoOp"] == (32, 200, 200 * 2)
    assert found["CoCoOp"] == (1, 10, 10 * 80)
    assert found["PromptSRC"] == found["SkipTuning"] == (4, 20, 20 * 20)
    assert found["CLIPLoRA"] == (32, 4000, 8000)  # 500 steps for each shot


def test_a_run_is_its_steps_and_the_images_that_are_encoded_beside_them(result):
    rows = result["rows"][CLASSES]
    images = CLASSES * SHOTS
    for name, views in (
        ("CoOp", 200),
        ("CLIPAdapter", 100),
        ("CLIPAdapter†", 1),
        ("SkipTuning†", 1),
        ("TipAdapterF", 30),
    ):
        row = rows[name]
        expected = row["steps"] * row["ms"] / 1e3 + views * images / row["images_per_second"]
        assert row["run_s"] == pytest.approx(expected + row["once_s"]), name
    maple = rows["MaPLe"]
    assert maple["run_s"] == pytest.approx(maple["steps"] * maple["ms"] / 1e3 + maple["once_s"])


def test_table_has_the_papers_ratios(result):
    lines = bench.table(result).splitlines()
    (coop,) = [line.split() for line in lines if line.split()[:1] == ["CoOp"]]
    assert "4.96x" in coop and "7.93x" in coop and torch.__version__ in lines[0]


@pytest.mark.parametrize(
    "method", ["CoOp", "CoCoOp", "ProGrad", "KgCoOp", "MaPLe", "PromptSRC", "TCP", "DePT", "CoPrompt"]
)
def test_paper_style_estimate_reproduces_the_papers_memory(method):
    """Table 1, averaged over the base classes of eleven datasets, with the batch sizes measured there."""
    images = {"CoCoOp": 1, "MaPLe": 4, "PromptSRC": 4, "DePT": 4, "CoPrompt": 4}.get(method, 32)
    mean = sum(BASE_CLASSES) / len(BASE_CLASSES)
    published = Published().averages("base2new", "Average of 11")[method, "estimated memory MB"]
    assert bench.METHODS[method].memory(images, mean) == pytest.approx(published, rel=0.015)


def test_command_writes_json_and_never_over_a_file(tmp_path, monkeypatch, capsys, result):
    monkeypatch.setattr(bench, "run", lambda *args: result)
    file = tmp_path / "figures.json"
    assert bench.main(["--json", str(file)]) == 0
    assert json.loads(file.read_text())["rows"][str(CLASSES)]["CoOp"]["images"] == 32
    assert bench.main(["--json", str(file)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_methods_that_do_not_exist_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--methods", "CoOpp"])
    assert "CoOpp" in capsys.readouterr().err
