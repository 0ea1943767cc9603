"""A run that was killed, and the same command again."""

import errno
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.engine import build_trainer, checkpoint
from dassl.engine.result import write_result
from dassl.utils import UserError, set_random_seed
from tests.dassl.conftest import assert_same, interrupted, weights


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_resumes_to_the_same_bytes(cfg, tmp_path, workers, optimizer):
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", workers, "OPTIM.NAME", optimizer])
    whole = build_trainer(cfg)
    whole.train()
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    set_random_seed(1)
    killed = interrupted(cfg, epoch=2, batch=1)
    set_random_seed(99)
    resumed = build_trainer(cfg)
    resumed.train()
    assert_same(weights(whole), weights(resumed))
    assert killed.rates[:8] + resumed.rates == whole.rates
    assert resumed.steps == whole.steps == 16  # extra_state
    assert resumed.train_seconds > killed.train_seconds > 0
    files = [f"{folder}/net/model.pth.tar-4" for folder in (tmp_path / "run", tmp_path / "killed")]
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert_same(first["state_dict"], second["state_dict"])
    assert first["scheduler"] == second["scheduler"] and first["meta"] == second["meta"]


def test_a_run_killed_between_training_and_test_is_only_tested(cfg):
    whole = build_trainer(cfg)
    whole.test = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        whole.train()
    again = build_trainer(cfg)
    again.train()
    assert again.rates == [] and again.evaluator.total == 12
    assert_same(weights(whole), weights(again))


def test_resume_may_look_into_another_folder(cfg, tmp_path, capsys):
    interrupted(cfg, epoch=1, batch=0)
    cfg.RESUME, cfg.OUTPUT_DIR = cfg.OUTPUT_DIR, str(tmp_path / "next")
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.start_epoch == 1
    assert f"Found checkpoint at {cfg.RESUME} (will resume training)" in capsys.readouterr().out


def test_nothing_to_resume_is_an_error(cfg, tmp_path):
    cfg.RESUME = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match='Nothing to resume in "'):
        build_trainer(cfg).train()


def test_progress_of_its_own_comes_before_what_another_folder_has(cfg, tmp_path):
    interrupted(cfg, epoch=1, batch=0)
    cfg.RESUME, cfg.OUTPUT_DIR = cfg.OUTPUT_DIR, str(tmp_path / "next")
    interrupted(cfg, epoch=3, batch=0)
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.start_epoch == 3


def files_of(cfg):
    """All files of a run but TensorBoard's, which are named after the time."""
    paths = Path(cfg.OUTPUT_DIR).rglob("*")
    return [path for path in paths if path.is_file() and "tensorboard" not in path.parts]


@pytest.mark.parametrize(
    "options", [["OPTIM.MAX_EPOCH", 1], ["TRAIN.CHECKPOINT_FREQ", 1], ["TEST.FINAL_MODEL", "best_val"]]
)
def test_a_kill_between_the_first_checkpoint_and_the_end_of_its_epoch_loses_nothing(
    cfg, tmp_path, monkeypatch, options
):
    cfg.merge_from_list(options)
    build_trainer(cfg).train()
    whole = {path.name: path.read_bytes() for path in files_of(cfg)}
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    set_random_seed(1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_resume", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
        build_trainer(cfg).train()
    assert list(Path(cfg.OUTPUT_DIR, "net").iterdir())  # the checkpoint is there
    set_random_seed(1)
    again = build_trainer(cfg)
    again.train()
    assert again.start_epoch == 0
    files = {path.name: path for path in files_of(cfg)}
    assert files.keys() == whole.keys()
    for name in whole:
        if name.startswith("model"):
            assert files[name].read_bytes() == whole[name]


class Killed(BaseException):
    """Stands for SIGKILL."""


def killed_at_rename(cfg, number, monkeypatch):
    """Run `cfg` until the rename with this number, which does not happen any more; whether there was one."""
    renames = itertools.count()
    rename = os.replace

    def replace(source, target):
        if next(renames) == number:
            raise Killed
        rename(source, target)

    set_random_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            write_result(run(cfg))
        except Killed:
            return True
    return False


def run(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def test_a_kill_before_any_file_gets_its_name_changes_no_byte(cfg, tmp_path, monkeypatch):
    cfg.merge_from_list(["OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1])
    write_result(run(cfg))
    whole = {path.name: path.read_bytes() for path in files_of(cfg)}
    number = 0
    while True:
        cfg.OUTPUT_DIR = str(tmp_path / f"killed{number}")
        if not killed_at_rename(cfg, number, monkeypatch):
            break
        set_random_seed(1)
        write_result(run(cfg))
        files = {path.name: path for path in files_of(cfg)}
        assert files.keys() == whole.keys()
        assert all(
            files[name].read_bytes() == whole[name] for name in whole if name.startswith(("model", "checkpoint"))
        )
        number += 1
    assert number == 8  # resume.pt three times, two checkpoints, twice what names them, result.json


def damage(cfg, change):
    """What `change` makes of an unfinished run's resume.pt, then the message of the run that finds it."""
    interrupted(cfg, epoch=1, batch=1)
    path = f"{cfg.OUTPUT_DIR}/resume.pt"
    state = torch.load(path, weights_only=True)
    torch.save(change(state), path)
    with pytest.raises(UserError) as caught:
        build_trainer(cfg).train()
    assert path in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


PARTS = [
    "config",
    "epoch",
    "models",
    "optims",
    "scheds",
    "scaler",
    "best_result",
    "random",
    "seconds",
    "peak_memory_mb",
    "extra",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_resume_file_without_a_part_is_named(cfg, part):
    message = damage(cfg, lambda state: {key: value for key, value in state.items() if key != part})
    assert "damaged" in message and part in message


@pytest.mark.parametrize("part", ["config", "epoch", "models", "optims", "scheds", "best_result", "random", "seconds"])
@pytest.mark.parametrize("value", [None, 7.5j, "text", [], {}])
def test_a_resume_file_with_a_part_of_another_kind_is_named(cfg, part, value):
    assert damage(cfg, lambda state: {**state, part: value})


@pytest.mark.parametrize("whole", [None, [], "text", torch.zeros(2)])
def test_a_resume_file_that_is_none_is_named(cfg, whole):
    assert damage(cfg, lambda state: whole)


@pytest.mark.parametrize("shape", [(1,), (3, 768, 2), (768, 3), ()])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momentum_of_another_shape_is_no_crash(cfg, shape, optimizer):
    cfg.OPTIM.NAME = optimizer
    buffer = "momentum_buffer" if optimizer == "sgd" else "exp_avg_sq"

    def change(state):
        state["optims"]["net"]["state"][0][buffer] = torch.zeros(shape)
        return state

    assert f"{buffer} of the shape {shape} for weights of (3, 768)" in damage(cfg, change)


def test_an_unfinished_run_with_other_options_is_not_continued(cfg):
    interrupted(cfg, epoch=1, batch=0)
    before = Path(cfg.OUTPUT_DIR, "resume.pt").read_bytes()
    cfg.merge_from_list(["OPTIM.LR", 0.5, "TRAIN.PRINT_FREQ", 1, "DATALOADER.NUM_WORKERS", 1, "VERBOSE", False])
    with pytest.raises(UserError) as caught:
        build_trainer(cfg).train()
    message = str(caught.value)
    assert "(OPTIM.LR 0.01 -> 0.5);" in message and "--output-dir" in message and "\n" not in message
    assert Path(cfg.OUTPUT_DIR, "resume.pt").read_bytes() == before


def test_the_best_result_survives_a_resume(cfg):
    cfg.TEST.FINAL_MODEL = "best_val"
    killed = interrupted(cfg, epoch=2, batch=0)
    resumed = build_trainer(cfg)
    resumed.before_train()
    assert resumed.best_result == killed.best_result > 0


@pytest.mark.parametrize("resume", [False, True])
def test_models_of_a_finished_run_are_not_taken_for_a_new_one(cfg, tmp_path, resume):
    build_trainer(cfg).train()
    os.remove(f"{cfg.OUTPUT_DIR}/resume.pt")  # as a finished run does, whose result.json somebody removed
    folder = cfg.OUTPUT_DIR
    if resume:
        cfg.RESUME, cfg.OUTPUT_DIR = folder, str(tmp_path / "next")
    cfg.OPTIM.LR = 0.5
    with pytest.raises(UserError) as caught:
        build_trainer(cfg).train()
    assert f'remove "{folder}/net" to train anew' in str(caught.value)


def test_the_best_model_goes_along_into_another_folder(cfg, tmp_path):
    cfg.TEST.FINAL_MODEL = "best_val"
    killed = interrupted(cfg, epoch=2, batch=0)
    best = torch.load(f"{cfg.OUTPUT_DIR}/net/model-best.pth.tar", weights_only=True)["state_dict"]
    cfg.RESUME, cfg.OUTPUT_DIR = cfg.OUTPUT_DIR, str(tmp_path / "next")
    resumed = build_trainer(cfg)
    test = resumed.test
    resumed.test = lambda split=None: 0.0 if split else test()  # no later epoch is better
    resumed.train()
    assert resumed.best_result == killed.best_result
    assert_same(best, weights(resumed))


def test_a_run_of_several_gpus_goes_on_with_one(cfg, monkeypatch):
    state, found = checkpoint.random_state(), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", found.extend)
    checkpoint.set_random_state(state | {"cuda": ["first", "second"]})
    assert found == ["first"]


def test_upstream_checkpoints_without_a_resume_file_are_continued(cfg, capsys):
    cfg.TRAIN.CHECKPOINT_FREQ = 2
    interrupted(cfg, epoch=3, batch=0)
    os.remove(f"{cfg.OUTPUT_DIR}/resume.pt")
    file = f"{cfg.OUTPUT_DIR}/net/model.pth.tar-2"
    state = torch.load(file, weights_only=True)
    del state["meta"]  # which upstream doesn't write
    torch.save(state, file)
    resumed = build_trainer(cfg)
    resumed.train()
    assert resumed.start_epoch == 2 and "Previous epoch: 2" in capsys.readouterr().out
    assert resumed.rates == pytest.approx([1e-2 * (1 + np.cos(np.pi / 4)) / 2] * 4 + [1e-2 / 2] * 4)


def test_a_full_disk_keeps_the_last_resume_file_and_names_it(cfg, monkeypatch):
    interrupted(cfg, epoch=1, batch=0)
    before = Path(cfg.OUTPUT_DIR, "resume.pt").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="resume.pt") as caught:
        build_trainer(cfg).train()
    assert caught.value.errno == errno.ENOSPC
    assert Path(cfg.OUTPUT_DIR, "resume.pt").read_bytes() == before
