"""The command lines that the scripts of the protocols produce, recorded by a stand-in for Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.shell import ROOT, STAND_IN, VIT, Shell, command

SCRIPTS = sorted(ROOT.glob("scripts/**/*.sh")) + [ROOT / ".ci/run"]
TARGETS = "caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
TARGETS = TARGETS.split()
VARIANTS = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_script_is_valid_bash(script):
    assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""


def test_a_python_without_pytorch_is_one_line(shell):
    for settings in ({"NO_TORCH": 1}, {"PYTHON": "/nowhere/python"}):
        run = shell("skip/base2new_train.sh", "eurosat", "2", **settings)
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
        assert "is no Python with PyTorch; set PYTHON to one that has what requirements.txt lists" in run.stderr
    assert shell.calls == []


def test_base2new_train_uses_the_base_classes_and_promptsrc_layout(shell):
    assert shell("skip/base2new_train.sh", "eurosat", "2").returncode == 0
    folder = "base2new/train_base/eurosat/shots_16/SkipTuning/vit_b16/seed2"
    assert shell.calls == [command("eurosat", 2, VIT["base2new"], folder, "base")]


def test_base2new_test_reads_the_matching_training_and_tests_new_classes(shell):
    run = "eurosat/shots_16/SkipTuning/vit_b16/seed2"
    shell.finish(f"base2new/train_base/{run}")
    assert shell("skip/base2new_test.sh", "eurosat", "2").returncode == 0
    flags = f"--eval-only --model-dir base2new/train_base/{run} "
    assert shell.calls == [command("eurosat", 2, VIT["base2new"], f"base2new/test_new/{run}", "new", flags)]


def test_few_shot_takes_shots_as_argument_and_all_classes(shell):
    assert shell("skip/few_shot.sh", "dtd", "1", "4").returncode == 0
    folder = "few_shot/dtd/SkipTuning/vit_b16_few_shot_4shots/seed1"
    assert shell.calls == [command("dtd", 1, VIT["few_shot"], folder, "all", shots=4)]


def test_xd_train_is_on_imagenet(shell):
    assert shell("skip/xd_train.sh", "3").returncode == 0
    folder = "imagenet/SkipTuning/vit_b16_xd_16shots/seed3"
    assert shell.calls == [command("imagenet", 3, VIT["xd"], folder, "all")]


def test_xd_test_reads_the_imagenet_training(shell):
    shell.finish("imagenet/SkipTuning/vit_b16_xd_16shots/seed3")
    assert shell("skip/xd_test.sh", "sun397", "3").returncode == 0
    flags = "--eval-only --model-dir imagenet/SkipTuning/vit_b16_xd_16shots/seed3 "
    folder = "evaluation/SkipTuning/vit_b16_xd_16shots/sun397/seed3"
    assert shell.calls == [command("sun397", 3, VIT["xd"], folder, "all", flags)]


def test_the_embedded_dataset_gets_its_own_config_and_all_the_shots_it_has(shell):
    shell("skip/base2new_train.sh", "emoji", "1")
    folder = "base2new/train_base/emoji/shots_4/SkipTuning/embedded/seed1"
    assert shell.calls == [command("emoji", 1, "embedded overlays/base2new", folder, "base", shots=4)]


def test_environment_sets_config_shots_and_trainer(shell):
    shell("skip/base2new_train.sh", "dtd", "1", CFG="mine", SHOTS=4, TRAINER="FinetuneCLIP")
    folder = "base2new/train_base/dtd/shots_4/FinetuneCLIP/mine/seed1"
    assert shell.calls == [command("dtd", 1, "mine overlays/base2new", folder, "base", trainer="FinetuneCLIP", shots=4)]


def test_the_folder_of_a_method_names_its_trainer(shell):
    assert shell("clip_adapter/base2new_train.sh", "eurosat", "2", PRESET="matched").returncode == 0
    folder = "base2new/train_base/eurosat/shots_16/CLIPAdapter/vit_b16_matched/seed2"
    files = "vit_b16 overlays/base2new overlays/matched"
    assert shell.calls == [command("eurosat", 2, files, folder, "base", trainer="CLIPAdapter")]


def test_a_method_has_a_folder_of_its_name_with_the_protocols_and_no_ablation_of_skip_tuning():
    trainers = {path.name.lower() for path in (ROOT / "configs/trainers").iterdir()}
    folders = {path.name: path for path in (ROOT / "scripts").iterdir() if path.is_symlink()}
    assert len(folders) >= 16 and {name.replace("_", "") for name in folders} <= trainers - {"skiptuning"}
    verbs = {path.name for path in (ROOT / "scripts/protocols").iterdir()}
    for folder in folders.values():
        assert folder.readlink() == Path("protocols")
    assert {name for name in verbs if name.startswith("ablate")} == {"ablate_lr.sh", "ablate_choices.sh"}
    assert verbs <= {path.name for path in (ROOT / "scripts/skip").iterdir()}


def recipe_of(call):
    return call.split("--config-file ")[1].split(" --output-dir")[0].replace("configs/", "").replace(".yaml", "")


def test_a_preset_is_the_methods_own_file_or_the_overlay(shell):
    shell("skip/few_shot.sh", "dtd", "1", PRESET="paper")
    shell("cocoop/base2new_train.sh", "emoji", "1", PRESET="matched")
    shell("dept/xd_train.sh", "1", PRESET="coop")
    shell("skip/base2new_train.sh", "emoji", "1", PRESET="recommended")
    own = "trainers/SkipTuning/vit_b16 overlays/few_shot trainers/SkipTuning/paper"
    matched = "trainers/CoCoOp/vit_b16 overlays/embedded overlays/base2new overlays/matched"
    coop = "trainers/DePT/vit_b16 overlays/xd trainers/DePT/coop"
    recommended = "trainers/SkipTuning/embedded overlays/base2new"
    assert [recipe_of(call) for call in shell.calls] == [own, matched, coop, recommended]
    folders = [call.split("--output-dir ")[1].split()[0] for call in shell.calls]
    assert folders == [
        "few_shot/dtd/SkipTuning/vit_b16_paper_few_shot_16shots/seed1",
        "base2new/train_base/emoji/shots_4/CoCoOp/embedded_matched/seed1",
        "imagenet/DePT/vit_b16_coop_xd_16shots/seed1",
        "base2new/train_base/emoji/shots_4/SkipTuning/embedded/seed1",
    ]


def test_CFG_is_a_file_of_the_trainer_a_whole_name_or_a_path(shell):
    (shell.folder / "my own.yaml").touch()
    shell("skip/few_shot.sh", "custom", "1", CFG="embedded", PRESET="matched", DATA="pics")
    shell("skip/base2new_train.sh", "dtd", "1", CFG="vit_b16_paper")
    shell("skip/base2new_train.sh", "dtd", "1", CFG="./my own.yaml")
    assert recipe_of(shell.calls[0]) == "trainers/SkipTuning/embedded overlays/few_shot overlays/matched"
    assert recipe_of(shell.calls[1]) == "trainers/SkipTuning/vit_b16 overlays/base2new trainers/SkipTuning/paper"
    assert recipe_of(shell.calls[2]) == f"{shell.folder}/./my own overlays/base2new"
    assert "few_shot/custom/SkipTuning/embedded_matched_16shots/seed1 " in shell.calls[0]
    assert "base2new/train_base/dtd/shots_16/SkipTuning/vit_b16_paper/seed1 " in shell.calls[1]
    assert "base2new/train_base/dtd/shots_16/SkipTuning/my own/seed1 " in shell.calls[2]


def test_what_follows_the_arguments_goes_to_train_py_and_options_keep_their_spaces(shell):
    shell.python.write_text(STAND_IN.replace('echo "$*"', "printf '<%s>' \"$@\""))
    shell("skip/base2new_train.sh", "dtd", "1", "OPTIM.LR", "1", OPTIONS="DATASET.TEMPLATE 'an image of a {}.' SEED 2")
    assert shell.calls[0].endswith("<DATASET.TEMPLATE><an image of a {}.><SEED><2><OPTIM.LR><1>")
    shell.calls_file.unlink()
    shell("skip/few_shot.sh", "dtd", "1", "4", "--no-train", "OPTIM.LR", "1")
    assert "<--no-train><OPTIM.LR><1><DATASET.NUM_SHOTS><4>" in shell.calls[0]
    shell.calls_file.unlink()
    shell("skip/xd_train.sh", "1", "OPTIM.LR", "1", OPTIONS="TRAINER.COOP.CTX_INIT ''")
    assert shell.calls[0].endswith("<TRAINER.COOP.CTX_INIT><><OPTIM.LR><1>")


def test_a_quote_that_is_not_closed_is_one_line(shell):
    done = shell("skip/base2new_train.sh", "dtd", "1", OPTIONS="DATASET.TEMPLATE 'an image")
    assert (done.returncode, shell.calls, len(done.stderr.splitlines())) == (2, [], 1)
    assert "OPTIONS: DATASET.TEMPLATE 'an image" in done.stderr


@pytest.mark.parametrize("script", ["demo.sh", "skip/few_shot.sh", "skip/ablate_omega.sh", "list.sh"])
def test_another_shell_than_bash_is_one_line(shell, script):
    if not shutil.which("dash"):
        pytest.skip("needs dash, a shell that is not bash")
    done = shell.command("dash", ROOT / "scripts" / script, "dtd", "1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"bash {ROOT}/scripts/{script} dtd 1" in done.stderr


def test_a_CDPATH_changes_nothing(shell):
    (shell.folder / "elsewhere/scripts/skip").mkdir(parents=True)
    done = shell.command(
        "bash", "scripts/skip/base2new_train.sh", "dtd", 1, cwd=ROOT, CDPATH=f"{shell.folder}/elsewhere:."
    )
    assert done.returncode == 0 and len(shell.calls) == 1, done.stderr


def test_paths_are_seen_from_where_the_script_was_called_and_a_tilde_is_home(shell):
    shell("skip/base2new_train.sh", "dtd", "1", DATA="~/d", OUTPUT="o", HOME=shell.folder)
    assert f"--root {shell.folder}/d " in shell.calls[0] and f"--output-dir {shell.folder}/o/base2new" in shell.calls[0]
    shell("skip/reproduce_base2new.sh", "dtd", SEEDS="1", DATA="d", OUTPUT="o")
    assert all(f"--root {shell.folder}/d " in call for call in shell.calls[1:3])
    assert shell.calls[3] == f"parse_test_res.py {shell.folder}/o/base2new"


def test_commands_that_are_printed_work_where_the_script_was_called(shell):
    done = shell.command("bash", "scripts/skip/base2new_test.sh", "dtd", "2", cwd=ROOT)
    assert done.stderr.strip().endswith(": bash scripts/skip/base2new_train.sh dtd 2")
    done = shell("skip/base2new_test.sh", "dtd", "2")
    assert done.stderr.strip().endswith(f": bash {ROOT}/scripts/skip/base2new_train.sh dtd 2")


def test_scripts_of_a_method_call_and_name_those_beside_them(shell):
    done = shell("coop/base2new_test.sh", "dtd", "2")
    assert f"bash {ROOT}/scripts/coop/base2new_train.sh dtd 2" in done.stderr
    done = shell("coop/reproduce_base2new.sh", "dtd", SEEDS="1", FAIL_ON="train_base")
    assert f"  {shell.settings}bash {ROOT}/scripts/coop/base2new_train.sh dtd 1" in done.stderr.splitlines()
    assert all("--trainer CoOp " in call for call in shell.calls[:-1])


@pytest.mark.parametrize("script", ["base2new_train.sh", "few_shot.sh"])
def test_the_embedded_dataset_comes_with_the_embedded_config(shell, script):
    shell(f"skip/{script}", "emoji", "1")
    assert "--config-file configs/trainers/SkipTuning/embedded.yaml " in shell.calls[0]


def own_pictures(shell, stage, images, names="", template="", flags=""):
    """What a script should call for the dataset custom: its notes on the pictures go with the results."""
    folder = "few_shot/custom/SkipTuning/vit_b16_few_shot_16shots/seed1"
    flags += f"DATASET.IMAGES {images} DATASET.CLASSNAMES {names} DATASET.TEMPLATE {template} "
    if stage != "few_shot":
        folder = f"base2new/{stage}/custom/shots_16/SkipTuning/vit_b16/seed1"
    files = VIT["few_shot"] if stage == "few_shot" else VIT["base2new"]
    classes = {"few_shot": "all", "train_base": "base", "test_new": "new"}[stage]
    return command("custom", 1, files, folder, classes, flags).replace("--root /d", f"--root {shell.output}")


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
    assert done.stderr.strip().endswith(f"bash {ROOT}/scripts/skip/{script} {usage}".strip())


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
    assert f"bash {ROOT}/scripts/skip/{first}" in done.stderr and len(done.stderr.splitlines()) == 1


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
        f"  {shell.settings}bash {ROOT}/scripts/skip/base2new_train.sh dtd 1",
        f"  {shell.settings}bash {ROOT}/scripts/skip/base2new_test.sh dtd 1",
    ]


def test_reproduce_stops_at_ctrl_c(shell):
    done = shell("skip/reproduce_base2new.sh", "dtd", "eurosat", FAIL_ON="dtd", FAIL_CODE=130)
    assert (done.returncode, len(shell.calls)) == (130, 1)


def test_reproduce_fails_when_the_table_is_incomplete(shell):
    assert shell("skip/reproduce_few_shot.sh", "dtd", SEEDS="1", FAIL_ON="parse_test_res").returncode == 1


def test_reproduce_few_shot_runs_five_shot_counts(shell):
    assert shell("skip/reproduce_few_shot.sh", "dtd", SEEDS="1").returncode == 0
    folders = [f"few_shot/dtd/SkipTuning/vit_b16_few_shot_{shots}shots/seed1" for shots in (1, 2, 4, 8, 16)]
    assert [call.split("--output-dir ")[1].split()[0] for call in shell.calls[:-1]] == folders


def test_reproduce_xd_trains_once_per_seed_and_tests_on_fourteen_datasets(shell):
    assert shell("skip/reproduce_xd.sh", SEEDS="1").returncode == 0
    tested = [call.split("configs/datasets/")[1].split(".yaml")[0] for call in shell.calls if "eval-only" in call]
    assert tested == TARGETS + VARIANTS
    assert sum("train.py" in call for call in shell.calls) == 15


def test_every_dataset_of_the_reproductions_has_a_config():
    for name in ["emoji", "imagenet", *TARGETS, *VARIANTS]:
        assert (ROOT / f"configs/datasets/{name}.yaml").is_file()


def test_prec_sets_the_option_of_whichever_trainer_runs(shell):
    shell("coop/base2new_train.sh", "emoji", "1", PREC="bf16")
    shell("skip/base2new_train.sh", "emoji", "1", PREC="bf16", TRAINER="FinetuneCLIP", OPTIONS="SEED 7")
    assert shell.calls[0].endswith(" TRAINER.COOP.PREC bf16")
    assert shell.calls[1].endswith(" TRAINER.FINETUNECLIP.PREC bf16 SEED 7")
