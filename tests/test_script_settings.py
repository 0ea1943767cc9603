"""Which runs the scripts take for finished, where defaults lie, what printed commands do, and misspelt names."""

import os
import shutil
import time

import pytest

from tests.shell import ROOT, Shell


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def project(tmp_path):
    """A copy of what the scripts read, so that their defaults don't lead into this project."""
    for name in ("scripts", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, symlinks=True)
    return tmp_path / "project"


def after(calls, flag):
    """What stands behind a flag in each of the calls that have it."""
    return [call.split(f"{flag} ")[-1].split()[0] for call in calls if f"{flag} " in call]


# Where things lie


ONE_EACH = {"SEEDS": "1", "TRAINERS": "CoOp", "PRESETS": "recommended", "RATES": "0.1", "EPOCHS": "6"}


@pytest.mark.parametrize(
    "script, words, folder",
    [
        ("demo.sh", [], "output/demo"),
        ("compare.sh", ["emoji"], "output/compare"),
        ("choose.sh", ["emoji"], "output/choose/0.1x6"),
        ("skip/ablate_components.sh", [], "output/ablate/components"),
        ("coop/reproduce_base2new.sh", ["dtd"], "output/base2new"),
    ],
)
def test_without_OUTPUT_runs_and_tables_are_in_the_projects_folder(shell, project, script, words, folder):
    done = shell.command("bash", project / "scripts" / script, *words, **ONE_EACH, OUTPUT="")
    assert done.returncode == 0, done.stderr
    runs = [*after(shell.calls, "--output-dir"), *after(shell.calls, "--model-dir")]
    assert len(runs) >= 1 and all(run.startswith(f"{project}/{folder}/") for run in runs)
    (table,) = [call for call in shell.calls[-1:] if "--output-dir" not in call]
    assert f" {project}/{folder}".removesuffix("/0.1x6") in table
    shell.calls_file.unlink()
    if not script.startswith("coop/"):  # asks train.py each time
        shell.command("bash", project / "scripts" / script, *words, **ONE_EACH, OUTPUT="")
        assert after(shell.calls, "--output-dir") == []


def test_without_MODELS_the_curve_is_that_of_the_projects_models(shell, project):
    for script in ("choose.sh", "curve.sh"):
        done = shell.command("bash", project / "scripts" / script, "emoji", **ONE_EACH, OUTPUT="", PREC="fp32")
        assert done.returncode == 0, done.stderr
    models = f"{project}/output/choose/0.1x6/base2new/train_base/"
    assert all(model.startswith(models) for model in after(shell.calls, "--model-dir")[1:])
    assert len(after(shell.calls, "--model-dir")) == 3  # ZeroshotCLIP's own, and two of choose.sh
    shell.calls_file.unlink()
    shell.command("bash", project / "scripts/curve.sh", "emoji", **ONE_EACH, OUTPUT="", PREC="fp32")
    assert after(shell.calls, "--output-dir") == []


def test_a_tilde_is_home_in_the_projects_folder_too(shell, project):
    words = ["scripts/skip/base2new_train.sh", "dtd", "1"]
    done = shell.start("bash", *words, cwd=project, OUTPUT="~/o", DATA="~/d", HOME=shell.folder)
    done.communicate()
    assert f"--root {shell.folder}/d " in shell.calls[0] and f"--output-dir {shell.folder}/o/base2new" in shell.calls[0]
    shell.start("bash", *words, cwd=project, OUTPUT="o", DATA="d").communicate()
    assert "--root d " in shell.calls[1] and "--output-dir o/base2new" in shell.calls[1]


# What is finished


def asked(shell, script, *words, **settings):
    """The folders that train.py is asked for."""
    shell.calls_file.unlink(missing_ok=True)
    done = shell(script, *words, **settings)
    assert done.returncode == 0, done.stderr
    return after(shell.calls, "--output-dir")


def test_a_run_by_other_settings_is_not_taken_for_finished(shell):
    words = ("compare.sh", "emoji")
    one = {"TRAINERS": "ZeroshotCLIP", "SEEDS": "1", "OPTIONS": "TEST.SPLIT val"}
    both = asked(shell, *words, **one, PREC="fp32")
    assert len(both) == 2 and asked(shell, *words, **one, PREC="fp32") == []
    for other in ({"PREC": "bf16"}, {"PREC": "fp32", "OPTIONS": "OPTIM.MAX_EPOCH 1"}, {}):
        assert asked(shell, *words, **one | other) == both
    shell(*words, **one, PREC="fp16", FAIL_ON="train.py")  # it refuses other settings
    assert asked(shell, *words, **one) == []  # what is noted stays


def test_a_plain_run_notes_nothing_and_one_with_words_for_train_py_is_another(shell):
    (folder,) = asked(shell, "coop/few_shot.sh", "dtd", "1", "4")
    assert os.listdir(shell.output / folder) == ["result.json"]
    one = {"TRAINERS": "CoOp", "SEEDS": "1", "SHOTS": "4"}
    assert shell("list.sh", "few_shot", "dtd", **one).stdout == ""
    asked(shell, "coop/few_shot.sh", "dtd", "1", "4", "OPTIM.LR", "1")
    assert "few_shot.sh dtd 1 4" in shell("list.sh", "few_shot", "dtd", **one).stdout
    asked(shell, "coop/few_shot.sh", "dtd", "1", "4")
    assert os.listdir(shell.output / folder) == ["result.json"]


def test_train_py_says_where_settings_cannot_be_written(shell):
    shell.output.write_text("a file")  # so no folder can be made below it
    done = shell("coop/few_shot.sh", "dtd", "1", "4", PREC="fp32", FAIL_ON="train.py")
    assert len(shell.calls) == 1 and done.stderr == "Error: said so\n"


def test_settings_are_noted_before_the_result_and_a_failing_run_takes_its_own_back(shell):
    seen = shell.folder / "seen"
    look = f'if [[ $* = *train.py* ]]; then cat "$OUTPUT"/few_shot/dtd/CoOp/*/seed1/settings.txt >{seen}; fi\n'
    shell.python.write_text(shell.python.read_text().replace('echo "epoch', look + 'echo "epoch'))
    words = ("coop/few_shot.sh", "dtd", "1", "4")
    fails = {"FAIL_ON": "train.py", "PREC": "bf16"}
    assert shell(*words, **fails).returncode == 1 and not list(shell.output.rglob("seed1"))
    (folder,) = asked(shell, *words, PREC="fp32")
    assert seen.read_text() == " PREC=fp32\n"
    (shell.output / folder / "result.json").unlink()  # as if it were at work still
    assert shell(*words, **fails).returncode == 1
    assert (shell.output / folder / "settings.txt").read_text() == " PREC=fp32\n"
    asked(shell, *words)
    assert os.listdir(shell.output / folder) == ["result.json"] and seen.read_text() == ""


def test_a_config_of_ones_own_is_looked_at_for_changes(shell):
    own = shell.folder / "own.yaml"
    shutil.copy(ROOT / "configs/trainers/CoOp/vit_b16.yaml", own)
    settings = {"CFG": "./own.yaml", "TRAINERS": "CoOp", "SEEDS": "1", "PRESETS": "recommended"}
    both = asked(shell, "compare.sh", "dtd", **settings)
    assert len(both) == 2 and asked(shell, "compare.sh", "dtd", **settings) == []
    later = time.time() + 10
    os.utime(own, (later, later))
    assert asked(shell, "compare.sh", "dtd", **settings) == both


@pytest.mark.parametrize("protocol, verbs", [("base2new", 2), ("xd", 2)])
def test_a_test_is_not_finished_when_its_model_was_trained_anew(shell, protocol, verbs):
    settings = {"TRAINERS": "CoOp", "SEEDS": "1"}
    (line,) = shell("list.sh", protocol, "dtd", **settings).stdout.splitlines()
    assert line.count("&& bash") == verbs
    assert shell.command("bash", "-c", line, OUTPUT="", DATA="").returncode == 0
    assert shell("list.sh", protocol, "dtd", **settings).stdout == ""
    (model,) = [shell.output / folder for folder in after(shell.calls, "--model-dir")]
    later = time.time() + 10
    os.utime(model / "result.json", (later, later))
    (line,) = shell("list.sh", protocol, "dtd", **settings).stdout.splitlines()
    assert line.count("&& bash") == 1 and "_test.sh dtd 1" in line


# Commands that are printed


@pytest.mark.parametrize(
    "script, words",
    [
        ("coop/reproduce_base2new.sh", ["emoji"]),
        ("skip/reproduce_few_shot.sh", ["custom"]),
        ("skip/ablate_components.sh", ["emoji"]),
        ("compare.sh", ["emoji"]),
        ("choose.sh", ["emoji"]),
    ],
)
def test_the_command_of_a_failed_run_does_the_same_run(shell, script, words):
    out = shell.folder / "it's out"
    settings = {"OUTPUT": out, "PRESET": "paper", "PREC": "fp32", "OPTIONS": "DATASET.TEMPLATE 'a {}'", "SHOTS": 2}
    settings |= {"IMAGES": "my pics", "TEMPLATE": "it's a {}", "TRAINERS": "CoOp", "SEEDS": "1", "PRESETS": "matched"}
    done = shell(script, *words, **settings, RATES="0.1", FAIL_ON="train.py", CFG="vit_b16")
    assert done.returncode == 1
    (tried, *_) = [call for call in shell.calls if "train.py" in call]
    (line, *_) = done.stderr[done.stderr.index("These runs failed") :].splitlines()[1:]
    shell.calls_file.unlink()
    again = shell.command("bash", "-c", line, OUTPUT="", DATA="", PYTHON="")
    assert again.returncode == 0, again.stderr
    assert shell.calls == [tried]


def test_curve_names_choose_where_a_model_is_missing(shell):
    models = shell.folder / "its models"
    settings = ONE_EACH | {"PREC": "fp32", "RATES": "0.1 1"}
    assert shell("choose.sh", "emoji", **settings | {"RATES": "1"}, OUTPUT=models).returncode == 0
    done = shell("curve.sh", "emoji", **settings, MODELS=models)
    assert done.returncode == 1 and "base2new_train.sh" not in done.stderr
    (line,) = done.stderr[done.stderr.index("These runs failed") :].splitlines()[1:]
    assert f"bash {ROOT}/scripts/choose.sh emoji" in line
    shell.calls_file.unlink()
    assert shell.command("bash", "-c", line, OUTPUT="", DATA="", PYTHON="").returncode == 0
    assert len(after(shell.calls, "--output-dir")) == 1
    shell.calls_file.unlink()
    assert shell("curve.sh", "emoji", **settings, MODELS=models).returncode == 0
    assert [call for call in after(shell.calls, "--output-dir") if not call.startswith("0.1x6/")] == []


# Misspelt names


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"TRAINERS": "CoOp CoOpp"}, "there is no trainer CoOpp; there are: CLIPAdapter "),
        ({"PRESETS": "mached"}, "there is no preset mached; there are: recommended cached "),
        ({"CFG": "typo"}, "there is no CFG typo; there are: vit_b16 embedded "),
        ({"CFG": "/no/file.yaml"}, "there is no file /no/file.yaml"),
        ({"TRAINERS": "CoOp", "PRESETS": "paper"}, "none of these methods has such a recipe: TRAINERS=CoOp "),
    ],
)
@pytest.mark.parametrize("script", ["compare.sh", "choose.sh", "curve.sh", "list.sh"])
def test_a_misspelt_name_is_one_line(shell, script, setting, said):
    settings = {"TRAINERS": "CoOp", "PRESETS": "matched", "SEEDS": "1", "RATES": "1"} | setting
    words = ["base2new", "dtd"] if script == "list.sh" else ["dtd"]
    done = shell(script, *words, **settings)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not any("--trainer CoOp" in call for call in shell.calls)


def test_an_unknown_dataset_is_one_line(shell):
    for words in (["compare.sh", "eurosatt"], ["choose.sh", "eurosatt"], ["list.sh", "base2new", "dtd", "eurosatt"]):
        done = shell(*words)
        assert (done.returncode, done.stdout, shell.calls, done.stderr.count("\n")) == (2, "", [], 1)
        assert done.stderr.startswith("Error: there is no dataset eurosatt; there are: caltech101 custom dtd emoji ")


@pytest.mark.parametrize("name", ["vit_b16", "embedded", "vit_b16_matched", "embedded_cached", "cached", "vit_b16_c4"])
def test_names_of_recipes_are_known(shell, project, name):
    recipes = project / "configs/trainers/CLIPAdapter"
    shutil.copy(recipes / "vit_b16.yaml", recipes / "vit_b16_c4.yaml")  # a user's own
    words = ("few_shot", "emoji")
    done = shell.command("bash", project / "scripts/list.sh", *words, TRAINERS="CLIPAdapter SkipTuning", CFG=name)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 5, done.stderr
