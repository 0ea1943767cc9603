"""The command lines of the scripts that start many runs: the demo, the comparison, and the list for a cluster."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

import trainers
from dassl.config import get_cfg_default
from sweeps.runs import runs
from tests.shell import ROOT, Shell, command


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def test_demo_runs_three_methods_with_three_seeds_and_prints_the_table(shell):
    done = shell("demo.sh")
    assert done.returncode == 0, done.stderr
    assert len(shell.calls) == 3 * 3 * 2 + 2
    assert shell.calls[-1] == f"parse_test_res.py {shell.output} --html results.html"
    lines = done.stdout.splitlines()
    assert lines[4] == "[5/18] SkipTuning, seed 1, base classes: 50.0%"
    assert lines[17] == "[18/18] SkipTuning, seed 3, new classes: 50.0%"


def test_demo_a_second_time_prints_the_table_at_once(shell):
    shell("demo.sh")
    shell.calls_file.unlink()
    assert shell("demo.sh").returncode == 0
    assert shell.calls[1:] == [f"parse_test_res.py {shell.output} --html results.html"]


def test_demo_leaves_nothing_in_the_folder_of_temporary_files(shell):
    (shell.folder / "tmp").mkdir()
    assert shell("demo.sh", TMPDIR=shell.folder / "tmp").returncode == 0
    assert list((shell.folder / "tmp").iterdir()) == []


def test_demo_without_the_pages_libraries_says_how_to_get_one(shell):
    done = shell("demo.sh", FAIL_ON="find_spec")
    assert done.returncode == 0 and shell.calls[-1] == f"parse_test_res.py {shell.output}"
    assert f"As a page with figures: {shell.python} -m pip install plotly itables" in done.stdout.splitlines()[-1]


def test_demo_shows_the_error_of_a_failing_run_and_stops(shell):
    done = shell("demo.sh", FAIL_ON="FinetuneCLIP")
    assert done.returncode == 1 and "Error: said so" in done.stderr
    assert sum("train.py" in call for call in shell.calls) == 3


def test_demo_says_after_ctrl_c_how_to_go_on(shell):
    waiting = shell.folder / "waiting"
    process = shell.start("bash", ROOT / "scripts/demo.sh", WAIT=waiting)
    while not waiting.exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "same command" in err
    assert len(shell.calls) == 1


def test_demo_keeps_its_settings_whatever_the_environment_says(shell):
    shell("demo.sh", TRAINER="Other", CFG="Other", PRESET="Other")
    assert len(shell.calls) == 20 and not any("Other" in call for call in shell.calls)
    assert all("DATASET.NUM_SHOTS 2 " in call for call in shell.calls[:-2])
    assert all(call.endswith(" OPTIM.MAX_EPOCH 3 TRAIN.MEASURE_MEMORY True") for call in shell.calls[:-2])


def test_compare_runs_every_recipe_of_every_method_and_seed_and_prints_the_papers_tables(shell):
    done = shell("compare.sh", "emoji", SEEDS="1 2", TRAINERS="CLIPAdapter ZeroshotCLIP")
    assert done.returncode == 0, done.stderr
    *calls, table = shell.calls
    assert table == f"-m results.comparison {shell.output}"
    trained = [call.split("--output-dir ")[1].split()[0] for call in calls if "--eval-only" not in call]
    recipes = ["CLIPAdapter/embedded", "CLIPAdapter/embedded_cached", "ZeroshotCLIP/embedded"]  # all have one recipe
    folder = "base2new/train_base/emoji/shots_4"
    assert trained == [f"{folder}/{recipe}/seed{seed}" for seed in "12" for recipe in recipes]
    assert len(calls) == 2 * len(trained)  # each tested on the new classes, too


def test_the_sweep_of_the_embedded_dataset_is_what_compare_runs(shell):
    settings = yaml.safe_load((ROOT / "sweeps/emoji.yaml").read_text())
    assert settings["seeds"] == [1, 2, 3] and settings["output"] == "output/compare"  # as is by default
    shell("compare.sh", "emoji", SEEDS="1")
    folders = [call.split("--output-dir ")[1].split()[0] for call in shell.calls[:-1]]
    found = runs(settings | {"seeds": [1], "output": str(shell.output)})  # it would refuse other settings
    assert sorted(found) == sorted(f"{shell.output}/{folder}" for folder in folders)
    assert {run.command.split("OPTIONS=")[1].split("'")[0] for run in found.values()} == {
        "TRAIN.MEASURE_MEMORY True TEST.SAVE_LOGITS True"
    }


def test_compare_takes_all_methods_and_goes_on_where_it_was(shell):
    shell("compare.sh", "eurosat", SEEDS="1")
    assert {call.split("--trainer ")[1].split()[0] for call in shell.calls[:-1]} == {
        folder.name for folder in (ROOT / "configs/trainers").iterdir()
    }
    before = len(shell.calls)
    shell("compare.sh", "eurosat", SEEDS="1")
    assert len(shell.calls) == before + 1


def test_choose_trains_on_base_classes_at_every_rate_and_tests_on_validation_images_only(shell):
    settings = {"TRAINERS": "CoOp TipAdapter", "RATES": "0.1 1", "EPOCHS": "", "SEEDS": "1 2"}
    done = shell("choose.sh", "emoji", **settings)
    assert done.returncode == 0, done.stderr
    *calls, table = shell.calls
    assert table == f"-m results.choose {shell.output}"
    folder = "base2new/train_base/emoji/shots_4/CoOp/embedded"  # TipAdapter has no rate
    found = [call.split("--output-dir ")[1].split()[0] for call in calls]
    assert found == [f"{rate}/{folder}/seed{seed}" for seed in "12" for rate in ("0.1", "1")]
    assert all("SUBSAMPLE_CLASSES base TEST.SPLIT val OPTIM.LR " in call for call in calls)
    assert not any("OPTIM.MAX_EPOCH" in call for call in calls)
    shell("choose.sh", "emoji", **settings)
    assert len(shell.calls) == len(calls) + 2  # only the table, once more


def test_choose_tries_epochs_too_by_default_on_emoji(shell):
    shell("choose.sh", "emoji", TRAINERS="PromptSRC", RATES="0.1 1", SEEDS="1")
    found = [re.search(r"OPTIM.*(?= --|$)", call)[0] for call in shell.calls[:-1]]
    gpa = "TRAINER.PROMPTSRC.GPA_MEAN {}e-2 TRAINER.PROMPTSRC.GPA_STD {}e-2"  # 15 and 1 of 20 epochs in the paper
    assert found == [
        f"OPTIM.LR {rate} OPTIM.MAX_EPOCH {epochs} {gpa.format(*numbers)}"
        for epochs, numbers in ((6, (450, 30)), (12, (900, 60)))
        for rate in ("0.1", "1")
    ]
    assert {call.split("--output-dir ")[1].split("/")[0] for call in shell.calls[:-1]} == {
        "0.1x6", "1x6", "0.1x12", "1x12"
    }  # fmt: skip
    shell.calls_file.unlink()
    shell("choose.sh", "dtd", TRAINERS="CoOp", RATES="0.1", SEEDS="1")
    (call, _) = shell.calls
    assert "OPTIM.MAX_EPOCH" not in call and "--output-dir 0.1/" in call


def test_epochs_that_are_no_numbers_are_one_line(shell):
    for script in ("choose.sh", "curve.sh"):
        done = shell(script, "emoji", TRAINERS="CoOp", EPOCHS="6 twelve")
        assert (done.returncode, shell.calls) == (2, [])
        assert done.stderr == "Error: EPOCHS are whole numbers, such as '6 12', not '6 twelve'\n"


def test_choose_has_no_rates_for_what_finds_its_own(shell):
    shell("choose.sh", "emoji", RATES="0.1", EPOCHS="", SEEDS="1")
    found = {call.split("--trainer ")[1].split()[0] for call in shell.calls[:-1]}
    every = {folder.name for folder in (ROOT / "configs/trainers").iterdir()}
    assert every - found == {"LPpp", "TipAdapter", "ZeroshotCLIP"}


def test_curve_tests_the_models_of_choose_on_both_halves(shell):
    settings = {"TRAINERS": "CoOp", "RATES": "0.1", "EPOCHS": "6 12", "SEEDS": "1"}
    models = shell.folder / "models"
    shell("choose.sh", "emoji", **settings, OUTPUT=models)
    shell.calls_file.unlink()
    done = shell("curve.sh", "emoji", **settings, MODELS=models)
    assert done.returncode == 0, done.stderr
    *calls, table = shell.calls
    assert table == f"-m results.curve {shell.output}"
    assert ["--trainer ZeroshotCLIP" in call for call in calls] == [True] * 2 + [False] * 4
    for call in calls[2:]:
        model = Path(call.split("--model-dir ")[-1].split()[0]).relative_to(models)
        assert "--eval-only" in call and "TEST.SPLIT" not in call
        trial = model.parts[0]
        assert call.split("--output-dir ")[1].startswith(f"{trial}/base2new/") and trial in ("0.1x6", "0.1x12")
    assert [call.split("SUBSAMPLE_CLASSES ")[1].split()[0] for call in calls[2:]] == ["base", "new"] * 2


def listed(shell, *args, **env):
    done = shell("list.sh", *args, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_list_prints_a_line_for_each_run_that_does_what_the_scripts_do(shell):
    settings = {"TRAINERS": "CoOp ZeroshotCLIP", "PRESETS": "recommended matched", "SEEDS": "1 2"}
    lines = listed(shell, "base2new", "emoji", "dtd", **settings, OPTIONS="DATASET.TEMPLATE 'it is {}'")
    assert len(lines) == (2 + 3) * 2 and shell.calls == []  # nothing to match for ZeroshotCLIP or on emoji
    assert shell.command("bash", "-c", lines[0], OUTPUT="", DATA="").returncode == 0
    train, test = shell.calls
    folder = "base2new/train_base/emoji/shots_4/CoOp/embedded/seed1"
    files = "vit_b16 overlays/embedded overlays/base2new"
    expected = command("emoji", 1, files, folder, "base", trainer="CoOp", shots=4)
    assert train == f"{expected} DATASET.TEMPLATE it is {{}}"
    assert "--eval-only" in test and "test_new/emoji/" in test
    assert listed(shell, "base2new", "emoji", "dtd", **settings, OPTIONS="DATASET.TEMPLATE 'it is {}'") == lines[1:]


def test_list_has_the_papers_datasets_and_shots_by_default(shell):
    assert len(listed(shell, "base2new", SEEDS="1")) == 11
    lines = listed(shell, "few_shot", SEEDS="1")
    assert len(lines) == 11 * 5 and lines[11].endswith("few_shot.sh imagenet 1 2")
    (line,) = listed(shell, "xd", SEEDS="3")
    assert line.count("xd_test.sh") == 14 and line.index("xd_train.sh 3 &&") < line.index("xd_test.sh caltech101 3")
    assert (
        shell("list.sh", "fewshot").stderr == "Error: there is no protocol fewshot; choose base2new, few_shot or xd\n"
    )


def test_a_method_has_its_own_choices_and_one_without_any_says_which_have_some(shell):
    done = shell("mmrl/ablate_choices.sh", SEEDS="1", PRESET="matched")
    assert done.returncode == 0, done.stderr
    changed = [call.split("TRAIN.MEASURE_MEMORY True")[1] for call in shell.calls[:-1] if "--eval-only" not in call]
    options = ("READ_OUT class", "READ_OUT both", "FUSION probabilities", "PROJECTION copy")
    assert changed == ["", *(f" TRAINER.MMRL.{option}" for option in options)]
    done = shell("coop/ablate_choices.sh")
    assert done.returncode == 2 and "CoOp has no such choices; SkipTuning, MMRL" in done.stderr


@pytest.mark.parametrize("folder", ["skip", "mmrl", "mmrlpp", "two_sfs", "clip_svd", "lp_pp"])
def test_every_choice_is_an_option_of_its_method(shell, folder):
    assert shell(f"{folder}/ablate_choices.sh", SEEDS="1").returncode == 0
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    found = {call.split("TRAIN.MEASURE_MEMORY True")[1] for call in shell.calls[:-1]}
    assert len(found) > 1
    for options in found:
        cfg.merge_from_list(options.split())
