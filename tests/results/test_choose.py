"""The rule that chooses learning rates, and base against new over them, from planted runs."""

import json
import math
import re
import shutil

import pytest

from results import choose, curve


@pytest.fixture
def plant(tmp_path, plant_run):
    """plant(rate, base, new, ...): one seed's two runs at a rate; `tested` says on which split."""

    def plant(rate, base, new=50.0, tested="val", **settings):
        files = plant_run(tmp_path / str(rate), base, new, **settings)
        for file in files:
            file.write_text(json.dumps(json.loads(file.read_text()) | {"tested": tested}))
        return files

    return plant


@pytest.fixture
def search(plant, tmp_path, capsys):
    """Runs results.choose on what was planted, without the tests on new classes: exit code, cells, what was written."""

    def search():
        for file in list(tmp_path.rglob("test_new/**/result.json")):
            file.unlink()
            file.parent.rmdir()
        code = choose.main([str(tmp_path)])
        written = capsys.readouterr()
        rows = [re.split(r"\s{2,}", line.strip()) for line in written.out.splitlines()]
        return code, {row[0]: row[1:] for row in rows if len(row) > 3}, written

    return search


def test_the_smallest_rate_within_one_standard_error_of_the_best_is_chosen():
    accuracies = {(0.1, 0): [60.0, 64.0], (0.01, 0): [60.5, 60.5], (0.001, 0): [59.0, 60.5]}  # best 62, its error 2
    assert choose.choose(accuracies, 100) == (0.01, 0)
    assert choose.choose(accuracies | {(0.001, 0): [60.0, 60.0]}, 100) == (0.001, 0)  # just within it


def test_of_several_numbers_of_epochs_at_that_rate_the_fewest_within_it_are_chosen():
    accuracies = {(0.1, 6): [60.0, 64.0], (0.01, 6): [50.0, 50.0], (0.01, 12): [60.5, 60.5], (0.01, 24): [61.0, 61.0]}
    assert choose.choose(accuracies, 100) == (0.01, 12)
    assert choose.choose(accuracies | {(0.001, 24): [60.0, 60.0]}, 100) == (0.001, 24)  # the rate comes first


def test_with_one_seed_it_is_the_standard_error_of_a_share_of_the_images():
    accuracies = {0.3: [49.0], 0.1: [50.0], 0.03: [45.1], 0.01: [44.9]}  # best 50 of 100 images: sqrt(0.25 / 100)
    accuracies = {(rate, 0): values for rate, values in accuracies.items()}
    assert choose.choose(accuracies, 100) == (0.03, 0)
    assert choose.choose(accuracies, 10_000) == (0.1, 0)
    assert choose.choose(accuracies, math.inf) == (0.1, 0)


def test_every_method_has_its_row_its_trials_and_its_choice(plant, search):
    for seed in (1, 2):
        plant(0.001, 40.0, seed=seed)
        plant(0.01, 45.0, seed=seed)
        plant(0.01, 20.0 + seed, seed=seed, trainer="CoOp")
    code, rows, written = search()
    assert code == 0, written.err
    assert rows["SkipTuning"] == ["recommended", "40.00 ±0.00", "45.00 ±0.00", "2", "0.01"]
    assert rows["CoOp"][-2:] == ["1", "0.01"]


def test_a_trial_is_a_rate_and_epochs(plant, search):
    for trial, base in {"0.01x12": 45.0, "0.001x12": 40.0, "0.01x6": 41.0, "0.001x6": 20.0}.items():
        plant(trial, base)
    code, rows, written = search()
    assert code == 0, written.err
    assert rows["Method"][1:] == ["0.001x6", "0.01x6", "0.001x12", "0.01x12", "Trials", "Chosen"]
    assert rows["SkipTuning"][1:] == ["20.00", "41.00", "40.00", "45.00", "4", "0.01x12"]
    plant("0.01y12", 50.0)
    code, rows, written = search()
    assert (code, rows["SkipTuning"][-2:]) == (1, ["4", "0.01x12"])
    assert "not named after a learning rate (0.01) or one and epochs (0.01x12)" in written.err


def test_test_images_and_new_classes_have_no_say(plant, search, tmp_path, capsys):
    plant(0.01, 45.0)
    plant(0.1, 99.0, tested="test")
    code, rows, written = search()
    assert (code, rows["SkipTuning"][-1]) == (1, "0.01")
    assert "tested on the test images" in written.err
    plant(0.03, 30.0, new=99.0)
    assert choose.main([str(tmp_path)]) == 1  # with the run on new classes
    written = capsys.readouterr()
    assert "not a training on the base classes" in written.err and "99" not in written.out


def test_configs_of_one_preset_are_no_seeds_of_one_method(plant, search):
    plant(0.01, 50.0, config="a")
    plant(0.01, 90.0, config="b")
    code, _, written = search()
    assert code == 0, written.err
    lines = [re.split(r"\s{2,}", line.strip())[:3] for line in written.out.splitlines() if "SkipTuning" in line]
    assert lines == [["SkipTuning", "recommended (a)", "50.00"], ["SkipTuning", "recommended (b)", "90.00"]]


def test_rates_without_all_seeds_are_named(plant, search):
    for seed in (1, 2, 3):
        plant(0.1, 40.0 + seed, seed=seed)
    plant(0.01, 43.0)
    code, _, written = search()
    assert code == 1
    assert "SkipTuning at rate 0.01 lacks seeds that others have (2, 3): search again" in written.err


def test_a_run_that_is_there_twice_is_named_and_counts_no_more(plant, search, tmp_path):
    plant(0.01, 45.0)
    first, _ = plant(0.1, 90.0)
    shutil.copytree(tmp_path / "0.1", tmp_path / "0.1/again")
    code, rows, written = search()
    assert (code, rows["SkipTuning"][-2:]) == (1, ["1", "0.01"])
    assert written.err.count("the same experiment and seed as") == 2 and str(first.parent) in written.err


def test_a_folder_without_runs_names_the_command_for_it(tmp_path, capsys):
    assert choose.main([str(tmp_path)]) == 2
    assert "scripts/choose.sh" in capsys.readouterr().err
    assert curve.main([str(tmp_path)]) == 2
    assert "scripts/curve.sh" in capsys.readouterr().err


def test_new_accuracy_at_equal_base_lies_on_the_line_between_neighbouring_rates():
    points = [(50.0, 40.0), (60.0, 38.0), (64.0, 30.0)]
    assert curve.new_at(points, 55.0) == pytest.approx(39.0)
    assert curve.new_at(points, 60.0) == 38.0
    assert curve.new_at(points, 62.0) == pytest.approx(34.0)
    assert curve.new_at(points, 65.0) is None
    assert curve.new_at([*points, (55.0, 20.0)], 60.0) == 38.0  # it comes by again, and is worse there


def test_levels_are_round_and_reached_by_two_curves():
    curves = [[(50.0, 1.0), (61.0, 1.0)], [(52.0, 1.0), (58.5, 1.0)], [(49.5, 1.0), (51.0, 1.0)]]
    assert curve.levels(curves) == [50, 52, 54, 56, 58]
    diverged = [[*points, (0.7, 0.7)] for points in curves]
    assert curve.levels(diverged) == [50, 52, 54, 56, 58]
    assert curve.levels(curves[:1]) == []


def test_tables_have_the_points_in_order_and_new_at_equal_base(plant, tmp_path, capsys):
    for rate, base, new in ((0.01, 60.0, 38.0), (0.001, 50.0, 40.0)):
        plant(rate, base, new, tested="test")
        plant(rate, base, new - 4, tested="test", trainer="CoOp")
    plant(0, 45.0, 41.0, tested="test", trainer="ZeroshotCLIP")
    assert curve.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("SkipTuning")][:2] == ["0.001", "0.01"]
    at_equal_base = [line.split()[1:] for line in lines if line.startswith("CoOp")][2]
    assert at_equal_base == ["41.0", "36.0", "35.0", "34.0"]  # at 45, 50, 55 and 60
    assert any(re.match(r"ZeroshotCLIP +0 +45.00", line) for line in lines)
    assert list(tmp_path.glob("*.png"))


def test_a_plot_leaves_out_what_has_diverged_and_the_two_that_the_paper_compares_stand_out():
    figure = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
    points = [("ZeroshotCLIP", 50, 50), ("CoOp", 56, 48), ("CoOp", 1, 1), ("SkipTuning", 60, 52), ("IVLP", 36, 30)]
    rows = [{"method": name, "base": [base, None], "new": [new, None]} for name, base, new in points]
    curve.paint(figure, {"rows": [*rows, {"method": "TCP", "base": [55.0, None], "new": None}]})
    (axes,) = figure.axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((35, 61), (29, 53))
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["CoOp"].get_xydata().tolist() == [[50, 50], [56, 48], [1, 1]]
    assert lines.keys() == {"CoOp", "SkipTuning", "IVLP"}
    assert lines["SkipTuning"].get_linewidth() > 2 * lines["CoOp"].get_linewidth()


def test_several_numbers_of_epochs_are_several_curves_from_zero_shot_clip(plant, tmp_path, capsys):
    plant(0, 45.0, 41.0, tested="test", trainer="ZeroshotCLIP")
    for epochs, new in ((6, 38.0), (12, 40.0)):
        for rate, base in ((0.01, 60.0), (0.001, 50.0)):
            plant(f"{rate}x{epochs}", base, new, tested="test")
    assert curve.main([str(tmp_path)]) == 0
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    points = [line[:3] for line in lines if line[0].startswith("SkipTuning") and len(line) == 6]
    assert points == [
        [f"SkipTuning, {epochs} epochs", rate, base]
        for epochs in (6, 12)
        for rate, base in (("0.001", "50.00"), ("0.01", "60.00"))
    ]
    assert ["SkipTuning, 12 epochs", "41.0", "40.0", "40.0", "40.0"] in lines  # at 45, 50, 55 and 60
    for rate in ("0.001", "0.01"):
        shutil.rmtree(tmp_path / f"{rate}x12")
    assert curve.main([str(tmp_path)]) == 0
    assert " epochs" not in capsys.readouterr().out  # nothing to tell apart


def test_two_recipes_of_one_trainer_are_two_curves(plant, tmp_path, capsys):
    for rate, base in ((0.01, 60.0), (0.001, 50.0)):
        plant(rate, base, tested="test")
        plant(rate, base + 5, tested="test", config="embedded_matched")
        plant(rate, base, tested="test", trainer="CoOp", config="embedded_matched")
    assert curve.main([str(tmp_path)]) == 0
    lines = [re.split(r"\s{2,}", line.strip())[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["SkipTuning (embedded)", "0.01", "60.00"] in lines
    assert ["SkipTuning (embedded_matched)", "0.01", "65.00"] in lines and ["CoOp", "0.01", "60.00"] in lines
