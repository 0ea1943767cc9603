"""train.py: whole runs with the embedded model and dataset, and how bad input ends."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

ROOT = Path(__file__).parents[1]
DATASET_FILE = ["--dataset-config-file", "configs/datasets/emoji.yaml"]
EMBEDDED = [
    "--trainer",
    "SkipTuning",
    "--config-file",
    "configs/trainers/SkipTuning/embedded.yaml",
    *DATASET_FILE,
]
SMALL = [
    "DATASET.NUM_SHOTS",
    "1",
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    "32",
    "DATALOADER.NUM_WORKERS",
    "0",
    "TRAIN.PRINT_FREQ",
    "1",
]
# the fewest blocks that learn
TWO_EPOCHS = [*SMALL, "OPTIM.MAX_EPOCH", "2", "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.SKIPTUNING.OMEGA", "11"]


@pytest.fixture(autouse=True)
def in_project_folder(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def run(capsys):
    """Runs train.py in this process: its exit code and what it wrote."""

    def run(*argv):
        capsys.readouterr()
        code = train.main([str(word) for word in argv])
        written = capsys.readouterr()
        return SimpleNamespace(code=code, out=written.out, err=written.err)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished two-epoch training on the base classes."""
    folder = tmp_path_factory.mktemp("train") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert train.main([*EMBEDDED, "--output-dir", str(folder), *TWO_EPOCHS]) == 0
    return folder


@pytest.fixture(scope="module")
def tested(finished):
    """The folder of an evaluation of those weights on the same classes."""
    folder = finished.with_name("tested")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert train.main([*EMBEDDED, "--output-dir", str(folder), *evaluation(finished)]) == 0
    return folder


def evaluation(model_dir):
    return ["--eval-only", "--model-dir", str(model_dir), *TWO_EPOCHS]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder, epoch=2):
    path = folder / f"learnable_params/model.pth.tar-{epoch}"
    return torch.load(path, weights_only=True)["state_dict"]


# Whole runs


def test_config_yaml_holds_what_ran_and_serves_as_config_file(run, tmp_path):
    (tmp_path / "some.yaml").write_text("OVERRIDES: {Emoji: {OPTIM: {MAX_EPOCH: 7}}, ImageNet: {SEED: 5}}\n")
    argv = ["--trainer", "ZeroshotCLIP", *DATASET_FILE, "--config-file", tmp_path / "some.yaml", "--no-train"]
    opts = ["MODEL.BACKBONE.NAME", "ViT-XS/16-icons", "INPUT.SIZE", "(64, 64)", *SMALL]
    assert run(*argv, "--output-dir", tmp_path / "run", *opts).code == 0
    record = (tmp_path / "run/config.yaml").read_text()
    assert "OPTIM.MAX_EPOCH: 7\n" in record and "OVERRIDES" not in record
    again, _ = train.merge([tmp_path / "run/config.yaml"], [])
    assert (again.OPTIM.MAX_EPOCH, again.SEED, again.TRAINER.NAME) == (7, 1, "ZeroshotCLIP")


def test_a_run_leaves_log_config_weights_and_result(finished):
    names = {str(path) for path in contents(finished)}
    assert {"log.txt", "config.yaml", "result.json", "learnable_params/model.pth.tar-2"} <= names
    assert "resume.pt" not in names
    result = json.loads((finished / "result.json").read_text())
    assert (result["trainer"], result["subsample"], result["shots"]) == ("SkipTuning", "base", 1)
    assert (result["seed"], result["config"]) == (1, "embedded")
    assert result["accuracy"] == pytest.approx(100 * result["correct"] / result["total"])


def test_the_log_starts_with_the_settings_that_are_not_the_defaults(finished):
    log = (finished / "log.txt").read_text()
    assert "OPTIM.MAX_EPOCH: 2 (default: 10)" in log.split("Loading trainer")[0]
    assert "SUBSAMPLE_CLASSES: 'base' (default: 'all')" in log
    assert "PIXEL_MEAN" not in log.split("Loading trainer")[0] or "default: [0.485" in log


def test_the_same_command_again_leaves_a_finished_run_as_it_is(finished, run):
    before = contents(finished)
    done = run(*EMBEDDED, "--output-dir", finished, "--root", "elsewhere", *TWO_EPOCHS)
    assert done.code == 0 and done.out.startswith(f"Finished before: {finished}/result.json, accuracy: ")
    assert contents(finished) == before


def test_other_settings_in_the_folder_of_a_finished_run_are_refused(finished, run):
    before = contents(finished)
    done = run(*EMBEDDED, "--output-dir", finished, "--seed", 2, *TWO_EPOCHS)
    assert done.code == 1 and "SEED 1 -> 2" in done.err and "another --output-dir" in done.err
    assert len(done.err.splitlines()) == 1 and contents(finished) == before


def test_other_settings_in_the_folder_of_an_unfinished_run_are_refused(finished, run, tmp_path):
    shutil.copy(finished / "config.yaml", tmp_path)
    (tmp_path / "resume.pt").touch()
    before = contents(tmp_path)
    done = run(*EMBEDDED, "--output-dir", tmp_path, *TWO_EPOCHS, "OPTIM.MAX_EPOCH", 3)
    assert done.code == 1 and "OPTIM.MAX_EPOCH 2 -> 3" in done.err
    assert contents(tmp_path) == before


def test_another_command_is_refused_while_one_is_at_work_in_the_folder(run, tmp_path):
    with train.FolderLock(tmp_path, "another command"):
        done = run(*EMBEDDED, "--output-dir", tmp_path, *TWO_EPOCHS)
    assert done.code == 1 and "choose another --output-dir" in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "config.yaml").exists()


def test_what_a_kill_right_behind_the_result_left_goes_with_the_next_command(finished, run, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path / "run")
    for name in (".lock", "resume.pt"):
        (tmp_path / "run" / name).touch()
    assert "Finished before" in run(*EMBEDDED, "--output-dir", tmp_path / "run", *TWO_EPOCHS).out
    assert contents(tmp_path / "run") == before


def test_a_command_that_waited_for_the_same_one_announces_its_result(finished, run, tmp_path, monkeypatch):
    class Waited(train.FolderLock):
        def __enter__(self):
            shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
            return super().__enter__()

    monkeypatch.setattr(train, "FolderLock", Waited)
    done = run(*EMBEDDED, "--output-dir", tmp_path, *TWO_EPOCHS)
    assert done.code == 0 and done.out.startswith("Finished before: ")


def test_eval_only_tests_the_weights_of_the_training(finished, tested):
    ours, theirs = (json.loads((folder / "result.json").read_text()) for folder in (tested, finished))
    assert (ours["correct"], ours["total"]) == (theirs["correct"], theirs["total"])
    assert not (tested / "learnable_params").exists()


def test_eval_only_with_other_weights_is_another_run(finished, tested, run):
    assert run(*EMBEDDED, "--output-dir", tested, *evaluation(finished)).code == 0
    done = run(*EMBEDDED, "--output-dir", tested, *evaluation("elsewhere"))
    assert done.code == 1 and "EVAL.MODEL_DIR" in done.err


def test_a_test_is_done_again_when_its_model_was_trained_anew(finished, tested, run, tmp_path):
    test = tmp_path / "tested"
    shutil.copytree(tested, test)
    argv = [*EMBEDDED, "--output-dir", test]
    assert "Finished before" in run(*argv, *evaluation(finished)).out
    old = (finished / "result.json").stat().st_mtime - 1
    os.utime(test / "result.json", (old, old))
    before = contents(test)
    refused = run(*argv, "--seed", 2, *evaluation(finished))
    assert refused.code == 1 and "SEED 1 -> 2" in refused.err and contents(test) == before
    done = run(*argv, *evaluation(finished))
    assert done.code == 0 and f"Testing again: {finished} was trained anew" in done.out and "* accuracy" in done.out
    assert "Finished before" in run(*argv, *evaluation(finished)).out


def test_a_finished_test_is_known_again_where_both_folders_were_moved(finished, tested, run, tmp_path):
    for folder in (finished, tested):
        shutil.copytree(folder, tmp_path / "moved" / folder.name)
    record = tmp_path / "moved/tested/config.yaml"
    record.write_text(record.read_text().replace(str(finished), f"/nowhere/{finished.name}"))
    argv = [*EMBEDDED, "--output-dir", tmp_path / "moved/tested"]
    assert "Finished before" in run(*argv, *evaluation(tmp_path / "moved" / finished.name)).out
    assert "belongs to a run with other options (EVAL.MODEL_DIR" in run(*argv, *evaluation(finished)).err
    loaded = train.load_trainer(tmp_path / "moved/tested")
    assert torch.equal(loaded.logits(images(2)), train.load_trainer(finished).logits(images(2)))


def test_another_spelling_of_a_path_is_the_same_run(finished, tested, run, monkeypatch, tmp_path):
    argv = [*EMBEDDED, "--output-dir", tested]
    monkeypatch.setenv("HOME", str(finished.parent))
    for spelled in (
        f"{finished}/",
        f"{finished.parent}/./{finished.name}",
        f"~/{finished.name}",
        os.path.relpath(finished),
    ):
        assert "Finished before" in run(*argv, *evaluation(spelled)).out


def test_load_epoch_picks_the_checkpoint(finished, run, tmp_path):
    flags = ["--eval-only", "--model-dir", finished, "--load-epoch", 1]
    done = run(*EMBEDDED, "--output-dir", tmp_path, *flags, *TWO_EPOCHS)
    assert done.code == 1 and "model.pth.tar-1" in done.err


def test_zero_shot_needs_no_weights_and_no_model_dir(run, tmp_path):
    argv = ["--trainer", "ZeroshotCLIP"]
    argv += ["--config-file", "configs/trainers/ZeroshotCLIP/vit_b16.yaml", "configs/overlays/embedded.yaml"]
    opts = [*SMALL, "DATASET.SUBSAMPLE_CLASSES", "new"]
    done = run(*argv, *DATASET_FILE, "--output-dir", tmp_path, "--eval-only", *opts)
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "result.json").read_text())["learned_parameters"] == 0


def test_no_train_builds_everything_and_writes_no_result(run, tmp_path):
    done = run(*EMBEDDED, "--output-dir", tmp_path, "--no-train", *TWO_EPOCHS)
    assert done.code == 0 and "Loading trainer: SkipTuning" in done.out
    assert "epoch [" not in done.out and not (tmp_path / "result.json").exists()


def test_an_unseeded_run_resumes_with_the_seed_that_it_drew(run, tmp_path, monkeypatch):
    argv = [*EMBEDDED, "--output-dir", tmp_path, "--seed", -1, *TWO_EPOCHS]
    trainer = TRAINER_REGISTRY.get("SkipTuning")

    def press(self):
        if self.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "run_epoch", press)
        assert run(*argv).code == 130
    seed = train.read_yaml(tmp_path / "config.yaml")["SEED"]
    done = run(*argv)
    assert done.code == 0 and f"Setting fixed seed: {seed}\n" in done.out and "epoch [2/2]" in done.out
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == seed
    assert run(*argv).out.startswith("Finished before: ")


def test_a_training_may_name_its_precision_when_it_goes_on(tmp_path):
    """resume.pt knows which one it was; only that one goes on."""
    argv = [*EMBEDDED, "--output-dir", str(tmp_path), *TWO_EPOCHS]
    first, named, other = (
        train.configure(train.parse([*argv, *opts]))[0]
        for opts in ([], ["TRAINER.SKIPTUNING.PREC", "bf16"], ["OPTIM.LR", "0.5"])
    )
    train.claim(first)
    (tmp_path / "resume.pt").touch()
    train.claim(named)
    assert train.read_yaml(tmp_path / "config.yaml")["TRAINER.SKIPTUNING.PREC"] == "bf16"
    with pytest.raises(UserError, match=r"other options \(OPTIM.LR"):
        train.claim(other)


def test_config_yaml_says_how_many_epochs_the_steps_were(run, tmp_path):
    argv = [*EMBEDDED, "--output-dir", tmp_path, "--no-train", *TWO_EPOCHS, "OPTIM.STEPS_PER_SHOT", 14]
    assert run(*argv).code == 0
    assert train.read_yaml(tmp_path / "config.yaml")["OPTIM.MAX_EPOCH"] == 3  # 14 steps, 6 batches in an epoch
    assert run(*argv).code == 0  # the same run


def test_flags_for_tests_do_not_start_a_training_and_nothing_is_not_resumed(finished, run, tmp_path):
    argv = [*EMBEDDED, "--output-dir", tmp_path / "run", *TWO_EPOCHS]
    for flags in (["--model-dir", finished], ["--load-epoch", 2], ["--resume", tmp_path / "no"], ["--resume", ROOT]):
        done = run(*flags, *argv)
        assert done.code == 1 and flags[0] in done.err and len(done.err.splitlines()) == 1
        assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_weights(finished, run, tmp_path, monkeypatch):
    argv = [*EMBEDDED, "--output-dir", str(tmp_path / "run"), *TWO_EPOCHS]
    trainer = TRAINER_REGISTRY.get("SkipTuning")
    forward_backward = trainer.forward_backward

    def press(self, batch):
        if (self.epoch, self.batch_idx) == (1, 1):
            signal.raise_signal(signal.SIGINT)
        return forward_backward(self, batch)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward_backward", press)
        stopped = run(*argv)
    signal.signal(signal.SIGINT, handler)
    assert stopped.code == 130 and "the same command" in stopped.err and "Traceback" not in stopped.err
    assert (tmp_path / "run/resume.pt").exists() and not (tmp_path / "run/result.json").exists()

    done = run(*argv)
    assert done.code == 0 and "epoch [1/2]" not in done.out and "epoch [2/2]" in done.out
    resumed, whole = weights(tmp_path / "run"), weights(finished)
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


# Bad input


def test_an_output_folder_that_cannot_be_written_is_found_at_the_start(run, tmp_path):
    (tmp_path / "file").write_text("precious")
    done = run(*EMBEDDED, "--output-dir", tmp_path / "file/run", *SMALL)
    assert done.code == 1 and "choose another --output-dir" in done.err and len(done.err.splitlines()) == 1
    assert "Loading trainer" not in done.out and (tmp_path / "file").read_text() == "precious"


def test_a_full_disk_is_reported_in_one_line(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "result.json")

    monkeypatch.setattr(train, "build_trainer", full)
    done = run(*EMBEDDED, "--output-dir", tmp_path)
    assert done.code == 1 and "No space left on device" in done.err and "the same command" in done.err
    assert len(done.err.splitlines()) == 1


def test_an_unexpected_error_leaves_its_traceback_in_the_log(run, tmp_path, monkeypatch):
    def broken(cfg):
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(train, "build_trainer", broken)
    stdout = sys.stdout
    done = run(*EMBEDDED, "--output-dir", tmp_path)
    assert done.code == 1 and "RuntimeError: a bug in two lines" in done.err and len(done.err.splitlines()) == 1
    assert "in broken" in (tmp_path / "log.txt").read_text()
    assert sys.stdout is stdout


def images(count):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_load_trainer_gives_the_logits_of_the_run_without_a_dataset(finished, tested):
    trainer = train.load_trainer(finished, options=["DATASET.ROOT", "nowhere"])
    classnames = json.loads((finished / "result.json").read_text())["classnames"]
    logits = trainer.logits(images(4))
    assert logits.shape == (4, len(classnames)) and not logits.requires_grad
    assert torch.equal(train.load_trainer(tested, device="cpu").logits(images(4)).cpu(), logits.cpu())
    few = train.load_trainer(finished, classnames[3:5])
    torch.testing.assert_close(few.logits(images(4)), logits[:, 3:5])


def test_load_trainer_wants_a_finished_run(finished, tmp_path):
    with pytest.raises(UserError, match=f"do you mean {finished}"):
        train.load_trainer(finished.parent)
    with pytest.raises(UserError, match="name the output folder"):
        train.load_trainer(tmp_path)
    shutil.copy(finished / "config.yaml", tmp_path)
    with pytest.raises(UserError, match="is not finished"):
        train.load_trainer(tmp_path)


def test_help_shows_every_flag_and_a_command(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    text = capsys.readouterr().out
    flags = "root output-dir resume seed source-domains target-domains transforms config-file dataset-config-file"
    flags += " trainer backbone head eval-only model-dir load-epoch no-train device"
    assert end.value.code == 0 and all(f"--{flag} " in text for flag in flags.split())
    assert "python train.py --trainer" in text and "$DATA" in text


def test_the_command_line_knows_no_method_by_name():
    text = (ROOT / "train.py").read_text()
    assert not [name for name in TRAINER_REGISTRY.registered_names() if name in text]


def test_a_config_file_that_is_missing_is_compared_with_a_few_names(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / f"conv{number}").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        train.existing("configs/trainers/CoOp/vit_b16.yaml")
    assert str(error.value).endswith(
        "has no such entry; check the path. There are "
        + ("conv0, conv1, conv10, conv100, conv101, conv102, conv103, conv104 and 292 more")
    )
    (tmp_path / "Config").mkdir()
    with pytest.raises(UserError, match=r"do you mean Config\?"):
        train.existing("configs/trainers/CoOp/vit_b16.yaml")


def test_parse_raises_what_main_reports():
    with pytest.raises(UserError, match="before the first pair"):
        train.parse(["OPTIM.LR", "0.1", "--seed", "2"])
