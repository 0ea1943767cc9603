"""The runs that the ablation scripts start, recorded by a stand-in for Python."""

import os
import subprocess

import pytest

from tests.shell import ROOT, STAND_IN

MEMORY = " TRAIN.MEASURE_MEMORY True"  # stands before what a point changes
GRIDS = {
    "omega": {value: f"OMEGA {value}" for value in ("0", "2", "4", "6", "8", "10")},
    "ratio": {value: f"R {value}" for value in ("0.1", "0.3", "0.5", "0.7", "0.9", "1.0")},
    "lambda": {value: f"LAMBDA {value}" for value in ("0.01", "0.1", "0.3", "0.5", "0.7", "0.9", "1.0")},
    "precision": {value: f"PREC {value}" for value in ("fp32", "bf16", "amp", "fp16_master", "fp16")},
    "choices": {
        "preset": "",
        "scope_image": "SCOPE image",
        "decay_official": "DECAY official",
        "resample_run": "RESAMPLE run",
        "max_top_0": "MAX_TOP 0",
        "max_top_50": "MAX_TOP 50",
        "views_1": "VIEWS 1",
        "single_class": "BATCHES single_class",
    },
    "components": {"ft": "OMEGA 0 R 1.0", "lskip": "R 1.0", "cskip": "OMEGA 0", "both": ""},
}


@pytest.fixture
def ablate(tmp_path):
    """ablate(what, *arguments, **environment) -> the finished process; .calls() gives and forgets the stand-in's."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(STAND_IN)
    python.chmod(0o755)

    def run(what, *args, **env):
        settings = {"PATH": os.environ["PATH"], "CALLS": calls, "PYTHON": python, "DATA": "/d", "OUTPUT": tmp_path}
        return subprocess.run(
            ["bash", ROOT / f"scripts/skip/ablate_{what}.sh", *args],
            env={key: str(value) for key, value in (settings | env).items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    def forget():
        lines = calls.read_text().replace(f"{tmp_path}/", "").splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines

    run.calls = forget
    return run


@pytest.mark.parametrize("what", GRIDS)
def test_every_point_is_trained_and_tested_with_only_its_options_changed(ablate, what):
    done = ablate(what, SEEDS="1")
    assert done.returncode == 0, done.stderr
    calls = ablate.calls()
    assert calls.pop() == f"-m results.ablation ablate/{what}"
    expected = []
    for name, options in GRIDS[what].items():
        words = options.split()
        tail = "".join(f" TRAINER.SKIPTUNING.{key} {value}" for key, value in zip(words[::2], words[1::2], strict=True))
        for part, classes in (("train_base", "base"), ("test_new", "new")):
            folder = f"ablate/{what}/{name}/base2new/{part}/emoji/shots_4/SkipTuning/embedded/seed1"
            expected.append((folder, f"DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES {classes}{MEMORY}{tail}"))
    found = [(call.split("--output-dir ")[1].split()[0], call[call.index("DATASET.NUM") :]) for call in calls]
    assert found == expected


def test_the_new_classes_are_tested_with_the_model_of_the_same_point(ablate):
    ablate("omega", SEEDS="1")
    for call in [call for call in ablate.calls() if "--eval-only" in call]:
        tested, trained = (call.split(f"{flag} ")[1].split()[0] for flag in ("--output-dir", "--model-dir"))
        assert tested.replace("test_new", "train_base") == trained


def test_dataset_preset_seeds_shots_and_options_of_all_points_can_be_chosen_but_not_the_trainer(ablate):
    ablate("ratio", "dtd", CFG="vit_b16_paper", SEEDS="4 5", SHOTS=8, TRAINER="FinetuneCLIP", OPTIONS="OPTIM.LR 1")
    calls = ablate.calls()
    assert len(calls) == 6 * 2 * 2 + 1
    assert "ablate/ratio/0.1/base2new/train_base/dtd/shots_8/SkipTuning/vit_b16_paper/seed4 " in calls[0]
    files = ("trainers/SkipTuning/vit_b16", "overlays/base2new", "trainers/SkipTuning/paper")
    assert f"--config-file {' '.join(f'configs/{name}.yaml' for name in files)} " in calls[0]
    assert all("OPTIM.LR 1 TRAINER.SKIPTUNING.R " in call for call in calls[:-1])
    assert not any("FinetuneCLIP" in call for call in calls)


def test_a_second_time_only_the_table_is_made(ablate):
    ablate("lambda", SEEDS="1")
    ablate.calls()
    assert ablate("lambda", SEEDS="1").returncode == 0
    assert ablate.calls() == ["-m results.ablation ablate/lambda"]


def test_train_py_is_asked_again_about_results_older_than_a_config(ablate, tmp_path):
    ablate("components", SEEDS="1")
    ablate.calls()
    (old,) = (tmp_path / "ablate/components/lskip").glob("base2new/test_new/**/result.json")
    os.utime(old, (0, 0))
    ablate("components", SEEDS="1")
    (call, _) = ablate.calls()
    assert f"--output-dir {old.parent.relative_to(tmp_path)} " in call


def test_the_points_take_turns_seed_by_seed(ablate):
    ablate("components", SEEDS="1 2")
    folders = [call.split("--output-dir ablate/components/")[1].split("/") for call in ablate.calls()[:-1:2]]
    assert [(folder[0], folder[-1].split()[0]) for folder in folders] == [
        (point, seed) for seed in ("seed1", "seed2") for point in ("ft", "lskip", "cskip", "both")
    ]


def test_a_failing_run_does_not_stop_the_others_and_its_command_is_listed(ablate, tmp_path):
    done = ablate("omega", SEEDS="1", FAIL_ON=f"SUBSAMPLE_CLASSES base{MEMORY} TRAINER.SKIPTUNING.OMEGA 4")
    calls = ablate.calls()
    assert (done.returncode, len(calls)) == (1, 6 * 2 - 1 + 1)  # all but the test that has no model, and the table
    listed = done.stderr[done.stderr.index("These runs failed") :].splitlines()[1:]
    settings = f"OUTPUT={tmp_path}/ablate/omega/4 DATA=/d PYTHON={tmp_path}/python"
    settings += f" OPTIONS='{MEMORY.strip()} TRAINER.SKIPTUNING.OMEGA 4'"
    assert listed == [f"  {settings} bash {ROOT}/scripts/skip/base2new_{part}.sh emoji 1" for part in ("train", "test")]


def test_an_incomplete_table_fails_the_script(ablate):
    assert ablate("omega", SEEDS="1", FAIL_ON="results.ablation").returncode == 1


def test_ctrl_c_stops_the_grid(ablate):
    assert ablate("omega", FAIL_ON="OMEGA 2", FAIL_CODE=130).returncode == 130
    assert not any("OMEGA 4" in call or "ablation" in call for call in ablate.calls())


@pytest.mark.parametrize("args", [["--help"], ["emoji", "dtd"]])
def test_wrong_arguments_end_with_a_usage_line(ablate, args):
    done = ablate("omega", *args)
    assert (done.returncode, ablate.calls()) == (2, [])
    assert done.stderr.strip().endswith(f"bash {ROOT}/scripts/skip/ablate_omega.sh [DATASET]")


def test_learning_rates_are_those_of_the_folders_method_and_can_be_chosen(ablate):
    ablate("lr", SEEDS="1", TRAINER="FinetuneCLIP", RATES="0.1 0.2", PREC="bf16")
    calls = ablate.calls()
    assert [call.split("--trainer ")[1].split()[0] for call in calls[:-1]] == ["FinetuneCLIP"] * 4
    for rate, call in zip(("0.1", "0.1", "0.2", "0.2"), calls, strict=False):
        assert f"ablate/lr/{rate}/" in call and call.endswith(f"TRAINER.FINETUNECLIP.PREC bf16{MEMORY} OPTIM.LR {rate}")
