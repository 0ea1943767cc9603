"""The command lines that the scripts and the Makefile produce, recorded by a stand-in for Python."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("scripts/**/*.sh")) + [ROOT / ".ci/run"]
TARGETS = "caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
TARGETS = TARGETS.split()
VARIANTS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]

# Records its arguments, "trains" by leaving a result.json, fails or is interrupted where the test says so.
STAND_IN = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
if [[ -n ${FAIL_ON:-} && "$*" == *$FAIL_ON* ]]; then echo "Error: said so" >&2; exit "${FAIL_CODE:-1}"; fi
if [[ "$*" == *"-m venv"* ]]; then mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"; fi
if [ -n "${WAIT:-}" ]; then trap "exit 130" INT; touch "$WAIT"; for i in {1..200}; do sleep 0.1; done; fi
echo "epoch [1/1] batch [1/1] loss 1.0"
echo "* accuracy: 50.0%"
while (($#)); do
  if [ "$1" = --output-dir ]; then mkdir -p "$2" && touch "$2/result.json"; fi
  shift
done
"""


class Shell:
    """Runs scripts from a folder that is not the project's and keeps the stand-in's calls, a string each."""

    def __init__(self, folder):
        self.folder, self.output, self.calls_file = folder, folder / "out", folder / "calls"
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def __call__(self, script, *args, **env):
        return self.command("bash", ROOT / "scripts" / script, *args, **env)

    def command(self, *words, **env):
        process = self.start(*words, **env)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words, **env):
        settings = {"PATH": os.environ["PATH"], "CALLS": self.calls_file, "PYTHON": self.python, "DATA": "/d"}
        settings |= {"OUTPUT": self.output} | env
        return subprocess.Popen(
            [str(word) for word in words],
            env={key: str(value) for key, value in settings.items()},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )

    @property
    def calls(self):
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        return text.replace(f"{self.output}/", "").splitlines()

    def finish(self, folder):
        (self.output / folder).mkdir(parents=True)
        (self.output / folder / "result.json").touch()


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def command(dataset, seed, cfg, folder, classes, flags="", trainer="SkipTuning", shots=16):
    return (
        f"train.py --root /d --seed {seed} --trainer {trainer} "
        f"--dataset-config-file configs/datasets/{dataset}.yaml "
        f"--config-file configs/trainers/{trainer}/{cfg}.yaml "
        f"--output-dir {folder} {flags}DATASET.NUM_SHOTS {shots} DATASET.SUBSAMPLE_CLASSES {classes}"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_is_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""


def test_base2new_train_uses_the_base_classes_and_promptsrc_layout(shell):
    assert shell("skip/base2new_train.sh", "eurosat", "2").returncode == 0
    folder = "base2new/train_base/eurosat/shots_16/SkipTuning/vit_b16/seed2"
    assert shell.calls == [command("eurosat", 2, "vit_b16", folder, "base")]


def test_base2new_test_reads_the_matching_training_and_tests_new_classes(shell):
    run = "eurosat/shots_16/SkipTuning/vit_b16/seed2"
    shell.finish(f"base2new/train_base/{run}")
    assert shell("skip/base2new_test.sh", "eurosat", "2").returncode == 0
    flags = f"--eval-only --model-dir base2new/train_base/{run} "
    assert shell.calls == [command("eurosat", 2, "vit_b16", f"base2new/test_new/{run}", "new", flags)]


def test_few_shot_takes_shots_as_argument_and_all_classes(shell):
    assert shell("skip/few_shot.sh", "dtd", "1", "4").returncode == 0
    folder = "few_shot/dtd/SkipTuning/vit_b16_few_shot_4shots/seed1"
    assert shell.calls == [command("dtd", 1, "vit_b16_few_shot", folder, "all", shots=4)]


def test_xd_train_is_on_imagenet(shell):
    assert shell("skip/xd_train.sh", "3").returncode == 0
    folder = "imagenet/SkipTuning/vit_b16_xd_16shots/seed3"
    assert shell.calls == [command("imagenet", 3, "vit_b16_xd", folder, "all")]


def test_xd_test_reads_the_imagenet_training(shell):
    shell.finish("imagenet/SkipTuning/vit_b16_xd_16shots/seed3")
    assert shell("skip/xd_test.sh", "sun397", "3").returncode == 0
    flags = "--eval-only --model-dir imagenet/SkipTuning/vit_b16_xd_16shots/seed3 "
    folder = "evaluation/SkipTuning/vit_b16_xd_16shots/sun397/seed3"
    assert shell.calls == [command("sun397", 3, "vit_b16_xd", folder, "all", flags)]


def test_the_embedded_dataset_gets_its_own_config_and_all_the_shots_it_has(shell):
    shell("skip/base2new_train.sh", "emoji", "1")
    folder = "base2new/train_base/emoji/shots_5/SkipTuning/embedded/seed1"
    assert shell.calls == [command("emoji", 1, "embedded", folder, "base", shots=5)]


def test_environment_sets_config_shots_and_trainer(shell):
    shell("skip/base2new_train.sh", "dtd", "1", CFG="mine", SHOTS=4, TRAINER="FinetuneCLIP")
    folder = "base2new/train_base/dtd/shots_4/FinetuneCLIP/mine/seed1"
    assert shell.calls == [command("dtd", 1, "mine", folder, "base", trainer="FinetuneCLIP", shots=4)]


def test_the_folder_of_a_method_names_its_trainer(shell):
    assert shell("clip_adapter/base2new_train.sh", "eurosat", "2", PRESET="matched").returncode == 0
    folder = "base2new/train_base/eurosat/shots_16/CLIPAdapter/vit_b16_matched/seed2"
    assert shell.calls == [command("eurosat", 2, "vit_b16_matched", folder, "base", trainer="CLIPAdapter")]


def test_every_folder_of_a_method_has_a_trainer_of_its_name_with_all_presets():
    untrained = {"tip_adapter"}  # nothing whose batch size and epochs could be matched
    trainers = {path.name.lower(): path for path in (ROOT / "configs/trainers").iterdir()}
    for link in (path for path in (ROOT / "scripts").iterdir() if path.is_symlink()):
        presets = {path.stem for path in trainers[link.name.replace("_", "")].glob("*.yaml")}
        recipes = [""] if link.name in untrained else ["", "_matched"]
        for recipe in recipes:
            files = f"embedded{recipe}", *(f"vit_b16{recipe}{protocol}" for protocol in ("", "_few_shot", "_xd"))
            assert presets.issuperset(files), (link.name, files)


def test_scripts_of_a_method_call_and_name_those_beside_them(shell):
    done = shell("coop/base2new_test.sh", "dtd", "2")
    assert "bash scripts/coop/base2new_train.sh dtd 2" in done.stderr
    done = shell("coop/reproduce_base2new.sh", "dtd", SEEDS="1", FAIL_ON="train_base")
    assert "  bash scripts/coop/base2new_train.sh dtd 1" in done.stderr.splitlines()
    assert all("--trainer CoOp " in call for call in shell.calls[:-1])


@pytest.mark.parametrize("script", ["base2new_train.sh", "few_shot.sh"])
def test_the_embedded_dataset_comes_with_the_embedded_config(shell, script):
    shell(f"skip/{script}", "emoji", "1")
    assert "--config-file configs/trainers/SkipTuning/embedded.yaml" in shell.calls[0]


def own_pictures(shell, stage, images, names="", template="", flags=""):
    """What a script should call for the dataset custom: its notes on the pictures go with the results."""
    folder = "few_shot/custom/SkipTuning/vit_b16_few_shot_16shots/seed1"
    flags += f"DATASET.IMAGES {images} DATASET.CLASSNAMES {names} DATASET.TEMPLATE {template} "
    if stage != "few_shot":
        folder = f"base2new/{stage}/custom/shots_16/SkipTuning/vit_b16/seed1"
    cfg = "vit_b16_few_shot" if stage == "few_shot" else "vit_b16"
    classes = {"few_shot": "all", "train_base": "base", "test_new": "new"}[stage]
    return command("custom", 1, cfg, folder, classes, flags).replace("--root /d", f"--root {shell.output}")


def test_own_pictures_names_and_prompt_are_seen_from_where_the_script_was_called(shell):
    shell("skip/few_shot.sh", "custom", "1", IMAGES="my pics", CLASSNAMES="n.yaml", TEMPLATE="a sketch of a {}.")
    assert shell.calls == [
        own_pictures(shell, "few_shot", f"{shell.folder}/my pics", f"{shell.folder}/n.yaml", "a sketch of a {}.")
    ]


def test_own_pictures_may_be_in_DATA_and_stay_the_same_in_base_to_new(shell):
    shell("skip/base2new_train.sh", "custom", "1", DATA="pics")
    shell("skip/base2new_test.sh", "custom", "1", DATA="pics")
    model = "--eval-only --model-dir base2new/train_base/custom/shots_16/SkipTuning/vit_b16/seed1 "
    assert shell.calls == [
        own_pictures(shell, "train_base", f"{shell.folder}/pics"),
        own_pictures(shell, "test_new", f"{shell.folder}/pics", flags=model),
    ]


def test_a_script_started_by_a_script_sees_own_pictures_in_the_same_place(shell):
    shell("skip/reproduce_few_shot.sh", "custom", DATA="pics", SEEDS="1")
    assert all(f"DATASET.IMAGES {shell.folder}/pics DATASET" in call for call in shell.calls[:5])


@pytest.mark.parametrize(
    "script, args, usage",
    [
        ("base2new_train.sh", ["eurosat"], "DATASET SEED"),
        ("base2new_test.sh", [], "DATASET SEED"),
        ("few_shot.sh", ["eurosat", "1", "4", "5"], "DATASET SEED [SHOTS]"),
        ("xd_train.sh", [], "SEED"),
        ("xd_test.sh", ["--help"], "DATASET SEED"),
        ("reproduce_base2new.sh", ["--help"], "[DATASET ...]"),
        ("reproduce_xd.sh", ["eurosat"], ""),
    ],
)
def test_wrong_arguments_end_with_a_usage_line(shell, script, args, usage):
    done = shell(f"skip/{script}", *args)
    assert (done.returncode, shell.calls, len(done.stderr.splitlines())) == (2, [], 1)
    assert done.stderr.strip().endswith(f"bash scripts/skip/{script} {usage}".strip())


@pytest.mark.parametrize(
    "script, args, first",
    [
        ("base2new_test.sh", ["dtd", "2"], "base2new_train.sh dtd 2"),
        ("xd_test.sh", ["dtd", "2"], "xd_train.sh 2"),
    ],
)
def test_testing_before_training_says_which_command_is_missing(shell, script, args, first):
    done = shell(f"skip/{script}", *args)
    assert (done.returncode, shell.calls) == (1, [])
    assert f"bash scripts/skip/{first}" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_failing_run_gives_the_script_its_exit_code(shell):
    assert shell("skip/few_shot.sh", "dtd", "1", FAIL_ON="dtd", FAIL_CODE=130).returncode == 130


def test_reproduce_base2new_runs_eleven_datasets_with_three_seeds_then_the_table(shell):
    assert shell("skip/reproduce_base2new.sh").returncode == 0
    assert shell.calls[-1] == "parse_test_res.py base2new"
    assert len(shell.calls) == 11 * 3 * 2 + 1
    for dataset in ["imagenet", *TARGETS]:
        for seed in (1, 2, 3):
            for split in ("train_base", "test_new"):
                folder = f"--output-dir base2new/{split}/{dataset}/shots_16/SkipTuning/vit_b16/seed{seed} "
                assert sum(folder in call for call in shell.calls) == 1


def test_reproduce_base2new_goes_on_after_a_failure_and_lists_it(shell):
    done = shell(
        "skip/reproduce_base2new.sh",
        "dtd",
        "eurosat",
        SEEDS="1 2",
        FAIL_ON="train_base/dtd/shots_16/SkipTuning/vit_b16/seed1 ",
    )
    assert done.returncode == 1
    assert sum("train.py" in call for call in shell.calls) == 7  # all but the test that has no model
    assert shell.calls[-1] == "parse_test_res.py base2new"
    listed = done.stderr[done.stderr.index("These runs failed") :].splitlines()[1:]
    assert listed == [
        "  bash scripts/skip/base2new_train.sh dtd 1",
        "  bash scripts/skip/base2new_test.sh dtd 1",
    ]


def test_reproduce_stops_at_ctrl_c(shell):
    done = shell("skip/reproduce_base2new.sh", "dtd", "eurosat", FAIL_ON="dtd", FAIL_CODE=130)
    assert (done.returncode, len(shell.calls)) == (130, 1)


def test_reproduce_fails_when_the_table_is_incomplete(shell):
    assert shell("skip/reproduce_few_shot.sh", "dtd", SEEDS="1", FAIL_ON="parse_test_res").returncode == 1


def test_reproduce_few_shot_runs_five_shot_counts(shell):
    assert shell("skip/reproduce_few_shot.sh", "dtd", SEEDS="1").returncode == 0
    folders = [f"few_shot/dtd/SkipTuning/vit_b16_few_shot_{shots}shots/seed1" for shots in (1, 2, 4, 8, 16)]
    assert [call.split()[12] for call in shell.calls[:-1]] == folders


def test_reproduce_xd_trains_once_per_seed_and_tests_on_fourteen_datasets(shell):
    assert shell("skip/reproduce_xd.sh", SEEDS="1").returncode == 0
    tested = [call.split("configs/datasets/")[1].split(".yaml")[0] for call in shell.calls if "eval-only" in call]
    assert tested == TARGETS + VARIANTS
    assert sum("train.py" in call for call in shell.calls) == 15


def test_every_dataset_of_the_reproductions_has_a_config():
    for name in ["emoji", "imagenet", *TARGETS, *VARIANTS]:
        assert (ROOT / f"configs/datasets/{name}.yaml").is_file()


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
    shell("demo.sh", TRAINER="Other", CFG="Other")
    assert len(shell.calls) == 20 and not any("Other" in call for call in shell.calls)


@pytest.fixture
def project(shell):
    """A folder with the Makefile, requirements and an empty demo script."""
    for name in ("Makefile", "requirements.txt", "requirements-test.txt"):
        shutil.copy(ROOT / name, shell.folder)
    (shell.folder / "scripts").mkdir()
    (shell.folder / "scripts/demo.sh").write_text('echo "demo with $PYTHON"\n')
    return shell


def make(project, target, python=None):
    return project.command("make", target, f"PYTHON={python or project.python}")


def test_make_demo_sets_up_its_environment_once(project):
    assert "demo with .venv/bin/python" in make(project, "demo").stdout
    installs = [call for call in project.calls if "-r requirements.txt" in call]
    assert len(installs) == 1
    project.calls_file.unlink()
    assert "demo with .venv/bin/python" in make(project, "demo").stdout and project.calls == []


def test_make_installs_again_when_requirements_change(project):
    make(project, "test")
    project.calls_file.unlink()
    later = (project.folder / ".venv/test.stamp").stat().st_mtime + 10
    os.utime(project.folder / "requirements-test.txt", (later, later))
    make(project, "test")
    assert [call.split()[-1] for call in project.calls] == ["requirements-test.txt", "pytest"]


def test_make_refuses_an_old_python(project):
    done = make(project, "demo", python="false")
    assert done.returncode != 0 and "Python 3.10 or newer is needed" in done.stderr
    assert not (project.folder / ".venv").exists()


def test_make_passes_on_the_exit_code_of_the_tests(project):
    project.python.write_text(STAND_IN.replace("${FAIL_ON:-}", "${FAIL_ON:=-m pytest}"))
    assert make(project, "test").returncode != 0


def test_make_clean_keeps_results(project):
    make(project, "demo")
    (project.folder / "output").mkdir()
    assert make(project, "clean").returncode == 0
    assert (project.folder / "output").exists() and not (project.folder / ".venv").exists()


def test_prec_sets_the_option_of_whichever_trainer_runs(shell):
    shell("coop/base2new_train.sh", "emoji", "1", PREC="bf16")
    shell("skip/base2new_train.sh", "emoji", "1", PREC="bf16", TRAINER="FinetuneCLIP", OPTIONS="SEED 7")
    assert shell.calls[0].endswith(" TRAINER.COOP.PREC bf16")
    assert shell.calls[1].endswith(" TRAINER.SKIPTUNING.PREC bf16 SEED 7")


def test_compare_runs_every_recipe_of_every_method_and_seed_and_prints_the_papers_tables(shell):
    done = shell("compare.sh", "emoji", SEEDS="1 2", TRAINERS="CLIPAdapter ZeroshotCLIP")
    assert done.returncode == 0, done.stderr
    *calls, table = shell.calls
    assert table == f"-m results.comparison {shell.output}"
    trained = [call.split("--output-dir ")[1].split()[0] for call in calls if "--eval-only" not in call]
    recipes = ["CLIPAdapter/embedded", "CLIPAdapter/embedded_matched", "CLIPAdapter/embedded_cached"]
    recipes.append("ZeroshotCLIP/embedded")
    folder = "base2new/train_base/emoji/shots_5"
    assert trained == [f"{folder}/{recipe}/seed{seed}" for seed in "12" for recipe in recipes]
    assert len(calls) == 2 * len(trained)  # each tested on the new classes, too


def test_compare_takes_all_methods_and_goes_on_where_it_was(shell):
    shell("compare.sh", "eurosat", SEEDS="1")
    assert {call.split("--trainer ")[1].split()[0] for call in shell.calls[:-1]} == {
        folder.name for folder in (ROOT / "configs/trainers").iterdir()
    }
    before = len(shell.calls)
    shell("compare.sh", "eurosat", SEEDS="1")
    assert len(shell.calls) == before + 1
