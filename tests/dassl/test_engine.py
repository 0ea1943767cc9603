import errno
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dassl.data import ClassNames, DataManager
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerX, TrainerXU, build_trainer
from dassl.engine.checkpoint import check_identity, identity
from dassl.engine.record import split_hash, write_result
from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter  # noqa: F401 (forks take them here)
from dassl.modeling import build_backbone
from dassl.utils import UserError, set_random_seed


def weights(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def interrupted(cfg, epoch, batch):
    trainer = build_trainer(cfg)
    trainer.stop_at = (epoch, batch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


# The loop and its log --------------------------------------------------------------------------------


def test_a_run_prints_what_scripts_grep_in_upstreams_order(cfg, capsys):
    build_trainer(cfg).train()
    out = capsys.readouterr().out
    number = r"\d+\.\d{3} \(\d+\.\d{3}\)"
    line = (
        rf"^epoch \[1/4\] batch \[2/4\] time {number} data {number}"
        r" loss \d+\.\d{4} \(\d+\.\d{4}\) lr 1\.0000e-05 eta 0:00:\d\d$"
    )
    assert re.search(line, out, re.M)
    assert "batch [4/4]" in out and "lr 1.0000e-02" in out  # the last line of an epoch shows the next rate
    order = [
        "Loading trainer: Tiny",
        "Loading dataset: Squares",
        "Loading evaluator: Classification",
        "No checkpoint found, train from scratch",
        "epoch [1/4]",
        f"Checkpoint saved to {cfg.OUTPUT_DIR}/net/model.pth.tar-4",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
        "Elapsed: 0:00:0",
    ]
    places = [out.index(text) for text in order]
    assert places == sorted(places)


def test_the_scheduler_steps_only_when_the_trainer_says_so(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    expected = [1e-5, 1e-2, 1e-2 * (1 + np.cos(np.pi / 4)) / 2, 1e-2 / 2]
    assert trainer.rates == pytest.approx([rate for rate in expected for _ in range(4)])


def test_best_val_saves_and_deploys_the_best_epoch(cfg, capsys):
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = build_trainer(cfg)
    scores = iter([50.0, 80.0, 80.0, 20.0, 33.0])
    trainer.test = lambda split=None: next(scores)
    trainer.train()
    best = torch.load(f"{cfg.OUTPUT_DIR}/net/model-best.pth.tar", weights_only=True)
    assert (best["epoch"], best["val_result"]) == (2, 80.0)
    assert_same(best["state_dict"], weights(trainer))
    out = capsys.readouterr().out
    assert "Deploy the model with the best val performance" in out and "val_result=80.0" in out


def test_test_ignores_what_forks_pass_and_val_falls_back_to_test(cfg, capsys):
    trainer = build_trainer(cfg)
    accuracy = trainer.test(is_final=True)
    assert accuracy == trainer.evaluator.results["accuracy"] == 100 * trainer.evaluator.correct / 12
    trainer.test(split="val")
    assert trainer.evaluator.total == 6
    trainer.val_loader = None
    trainer.test(split="val")
    assert trainer.evaluator.total == 12
    assert capsys.readouterr().out.count("Evaluate on the *test* set") == 2


def test_the_split_that_is_named_is_the_one_that_is_tested(cfg):
    trainer = build_trainer(cfg)
    for split, total in (("test", 12), ("val", 6)):
        trainer.cfg.TEST.SPLIT = split
        trainer.test()
        assert (trainer.tested, trainer.evaluator.total) == (split, total)
    trainer.val_loader = None
    with pytest.raises(UserError, match="Squares has no validation images; set TEST.SPLIT to test"):
        trainer.test()
    for split in ("train", "tset"):
        with pytest.raises(UserError, match=f"not on '{split}'"):
            trainer.test(split=split)
    with pytest.raises(UserError, match="built without images"):
        build_trainer(cfg, data=ClassNames(["cat", "dog"])).test(split="test")


def test_the_best_epoch_needs_a_validation_set_and_its_right_name(cfg):
    cfg.TEST.FINAL_MODEL = "best"
    with pytest.raises(UserError, match="must be last_step or best_val, not 'best'"):
        build_trainer(cfg).train()
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = build_trainer(cfg)
    trainer.val_loader = None
    with pytest.raises(UserError, match="Squares has no validation images"):
        trainer.train()
    assert not os.path.exists(cfg.OUTPUT_DIR)  # nothing was trained


def test_a_diverged_model_has_no_accuracy(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    trainer.model.bias.data[1] = float("nan")
    with pytest.raises(UserError, match="The scores of 12 of 12 images"):
        trainer.test()


def test_a_trainer_without_models_is_only_tested(cfg):
    class Untrained(TRAINER_REGISTRY.get("Tiny")):
        def build_model(self):
            self.model = torch.nn.Linear(3 * 16 * 16, self.num_classes)

    trainer = Untrained(cfg)
    trainer.train()
    result = write_result(trainer)
    assert result["learned_parameters"] == 0 and result["total"] == 12
    assert result["seconds"]["train"] == 0 and result["peak_memory_mb"] is None


def test_checks_of_upstream_are_kept(cfg):
    trainer = build_trainer(cfg)
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("net", trainer.model)
    with pytest.raises(AttributeError, match="before super"):
        TrainerX.__new__(TrainerX).register_model("a", None)
    with pytest.raises(KeyError):
        trainer.set_model_mode("predict")
    with pytest.raises(FloatingPointError, match="^Loss is infinite or NaN! Lower OPTIM.LR"):
        trainer.model_backward_and_update(torch.tensor(float("nan"), requires_grad=True))
    image, label, domain = trainer.parse_batch_train(next(iter(trainer.train_loader_x)))
    assert image.shape == (4, 3, 16, 16) and label.shape == domain.shape == (4,)
    with pytest.raises(KeyError, match='do you mean "Tiny"'):
        build_trainer(cfg, "tiny")
    for call in (lambda: TrainerXU(cfg), SimpleNet, lambda: build_backbone("resnet18")):
        with pytest.raises(UserError, match="not included"):
            call()


def test_prograd_removes_only_what_works_against_the_general_gradient(cfg):
    trainer = build_trainer(cfg)
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    pair = torch.nn.ParameterDict({"a": a, "b": b})
    trainer._models = {"pair": pair}
    trainer._optims = {"pair": torch.optim.SGD(pair.parameters(), lr=1.0)}
    against = (torch.tensor([1.0, 1.0]) * a).sum() + b[0]
    general = -2 * a[0] + b[0]
    trainer.prograd_backward_and_update(against, general)
    assert a.tolist() == [0.0, -1.0]  # [1, 1] without its part along [-2, 0]
    assert b.tolist() == [-1.0, 0.0]  # no conflict: untouched


# What a trainer is built from ------------------------------------------------------------------------


def test_a_trainer_is_built_from_class_names_without_opening_a_dataset(cfg):
    cfg.DATASET.ROOT = "nowhere"
    cfg.OPTIM.STEPS_PER_SHOT = 5  # nothing is trained: MAX_EPOCH stays
    trainer = build_trainer(cfg, data=ClassNames(["cat", "dog"]))
    assert trainer.dm.dataset.classnames == ["cat", "dog"] and trainer.dm.dataset.train_x == []
    assert (trainer.num_classes, trainer.lab2cname, trainer.max_epoch) == (2, {0: "cat", 1: "dog"}, 4)
    assert trainer.train_loader_x is trainer.val_loader is trainer.test_loader is None
    assert trainer.model_inference(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_a_trainer_that_takes_a_config_only_is_built_as_ever(cfg):
    class Old(TRAINER_REGISTRY.get("Tiny")):
        def __init__(self, cfg):
            super().__init__(cfg)

    TRAINER_REGISTRY.register(Old, force=True)
    assert build_trainer(cfg, "Old").num_classes == 3


@pytest.mark.parametrize(("shots", "batches", "epochs"), [(2, 1, 6), (4, 3, 4), (-1, 4, 1)])
def test_steps_per_shot_decide_the_epochs_and_the_config_says_so(cfg, shots, batches, epochs):
    cfg.merge_from_list(["OPTIM.STEPS_PER_SHOT", 3, "DATASET.NUM_SHOTS", shots])
    cfg.freeze()
    trainer = build_trainer(cfg)
    assert len(trainer.train_loader_x) == batches
    assert trainer.max_epoch == trainer.cfg.OPTIM.MAX_EPOCH == trainer.sched.successor.T_max == epochs
    assert trainer.cfg.is_frozen() and cfg.OPTIM.MAX_EPOCH == 4


def test_epochs_that_follow_from_the_steps_are_no_other_options(cfg):
    cfg.OPTIM.STEPS_PER_SHOT = 3
    record = identity(build_trainer(cfg).cfg)
    check_identity("run", record, cfg)
    cfg.OPTIM.STEPS_PER_SHOT = 4
    with pytest.raises(UserError, match=r"\(OPTIM.STEPS_PER_SHOT 3 -> 4\)"):
        check_identity("run", record, cfg)
    cfg.OPTIM.STEPS_PER_SHOT = 0
    with pytest.raises(UserError, match="OPTIM.MAX_EPOCH 1 -> 4, OPTIM.STEPS_PER_SHOT 3 -> 0"):
        check_identity("run", record, cfg)


# Resuming --------------------------------------------------------------------------------------------


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


def test_upstream_checkpoints_without_a_resume_file_are_continued(cfg, capsys):
    cfg.TRAIN.CHECKPOINT_FREQ = 2
    interrupted(cfg, epoch=3, batch=0)
    os.remove(f"{cfg.OUTPUT_DIR}/resume.pt")
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


# Checkpoints -----------------------------------------------------------------------------------------


def test_checkpoints_have_upstreams_layout_and_say_what_they_are(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    folder = f"{cfg.OUTPUT_DIR}/net"
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-4"]
    assert Path(folder, "checkpoint").read_text() == "model.pth.tar-4\n"
    saved = torch.load(f"{folder}/model.pth.tar-4", weights_only=True)
    assert set(saved) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result", "meta"}
    assert saved["epoch"] == 4 and saved["val_result"] is None
    assert saved["meta"] == {
        "trainer": "Tiny",
        "backbone": "none",
        "dataset": "Squares",
        "subsample": "all",
        "shots": -1,
        "seed": 1,
        "classnames": ["red", "green", "blue"],
        "options": {},
    }


def test_load_model_takes_the_best_then_the_last_or_the_epoch_asked_for(cfg, capsys):
    trainer = build_trainer(cfg)
    for epoch in (1, 9):
        trainer.save_model(epoch, cfg.OUTPUT_DIR)
    trainer.load_model(cfg.OUTPUT_DIR)
    trainer.load_model(cfg.OUTPUT_DIR, epoch=2)
    trainer.save_model(4, cfg.OUTPUT_DIR, val_result=71.26, model_name="model-best.pth.tar")
    trainer.load_model(cfg.OUTPUT_DIR)
    trainer.load_model("")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Load /", "Note that"))]
    ends = ["(epoch=10)", "(epoch=2)", "(epoch=5, val_result=71.3)", "(ignore this if it's done on purpose)"]
    assert all(line.endswith(end) for line, end in zip(lines, ends, strict=True))


def test_a_missing_model_says_what_there_is_and_what_to_do(cfg, tmp_path):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    for directory, epoch, hint in (
        (cfg.OUTPUT_DIR, 5, "--load-epoch 2"),
        (str(tmp_path / "no"), None, "train"),
    ):
        with pytest.raises(FileNotFoundError, match='^No model at "') as caught:
            trainer.load_model(directory, epoch=epoch)
        assert isinstance(caught.value, UserError) and hint in str(caught.value)
        assert "--model-dir" in str(caught.value)


@pytest.mark.parametrize(
    "change, parts",
    [
        ({"backbone": "ViT-B/16"}, ["ViT-B/16", "none", "MODEL.BACKBONE.NAME"]),
        ({"dataset": "EuroSAT", "subsample": "base"}, ["base classes of EuroSAT", "Squares"]),
    ],
)
def test_a_checkpoint_of_another_backbone_or_dataset_is_refused(cfg, change, parts):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    path = f"{cfg.OUTPUT_DIR}/net/model.pth.tar-2"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "meta": {**saved["meta"], **change}}, path)
    with pytest.raises(UserError) as caught:
        trainer.load_model(cfg.OUTPUT_DIR)
    assert all(part in str(caught.value) for part in [*parts, path])
    saved["meta"] |= {"dataset": "ImageNet", "subsample": "all"}  # the cross-dataset protocol
    torch.save(saved, path)
    trainer.load_model(cfg.OUTPUT_DIR)


def test_weights_that_do_not_fit_are_listed(cfg):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    trainer._models["net"] = torch.nn.Sequential(torch.nn.Linear(768, 3))
    with pytest.raises(UserError, match="0.weight is missing; 0.bias is missing; weight is unknown and 1 more"):
        trainer.load_model(cfg.OUTPUT_DIR)
    trainer._models["net"] = torch.nn.Linear(768, 5)
    with pytest.raises(UserError, match=r"weight is \(3, 768\), not \(5, 768\)"):
        trainer.load_model(cfg.OUTPUT_DIR)


# The record ------------------------------------------------------------------------------------------


def test_result_json_holds_every_key_and_ends_the_run(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    trainer.model.bias.requires_grad_(False)
    assert os.path.exists(f"{cfg.OUTPUT_DIR}/resume.pt")
    write_result(trainer, config="vit_b16")
    assert not os.path.exists(f"{cfg.OUTPUT_DIR}/resume.pt")
    result = json.loads(Path(cfg.OUTPUT_DIR, "result.json").read_text())
    keys = "trainer dataset subsample shots seed backbone classnames config accuracy macro_f1 correct total split_hash"
    assert list(result) == [*keys.split(), "seconds", "peak_memory_mb", "learned_parameters", "versions"]
    assert result["accuracy"] == 100 * result["correct"] / result["total"] and result["total"] == 12
    assert result["learned_parameters"] == 3 * 768 and result["config"] == "vit_b16"
    assert result["seconds"]["train"] > 0 and result["seconds"]["test"] > 0 and result["seconds"]["extract"] == 0
    assert set(result["versions"]) == {"python", "torch", "torchvision", "numpy"}


def test_the_split_hash_is_of_relative_paths_labels_and_names(cfg, tmp_path):
    dataset = DataManager(cfg).dataset
    first = split_hash(dataset, cfg.DATASET.ROOT)
    (tmp_path / "data").rename(tmp_path / "moved")
    cfg.DATASET.ROOT = str(tmp_path / "moved")
    moved = DataManager(cfg).dataset
    assert split_hash(moved, cfg.DATASET.ROOT) == first
    moved.train_x[0]._label = 1
    assert split_hash(moved, cfg.DATASET.ROOT) != first


def test_extraction_is_a_clock_of_its_own(cfg, monkeypatch):
    trainer = build_trainer(cfg)
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", iter([100.0, 107.0]).__next__)
        with trainer._clock("train_seconds"):
            trainer.extract_seconds += 5.0
    assert (trainer.train_seconds, trainer.extract_seconds) == (2.0, 5.0)


def test_the_peak_of_training_goes_into_the_record_and_survives_a_resume(cfg):
    cfg.TRAIN.MEASURE_MEMORY = True
    killed = interrupted(cfg, epoch=1, batch=0)
    assert killed.memory.mb > 4 * 3 * 768 / 1e6  # the weights alone
    saved = torch.load(f"{cfg.OUTPUT_DIR}/resume.pt", weights_only=True)
    torch.save({**saved, "peak_memory_mb": 12345.0}, f"{cfg.OUTPUT_DIR}/resume.pt")
    resumed = build_trainer(cfg)
    resumed.train()
    assert write_result(resumed)["peak_memory_mb"] == 12345.0


def test_memory_is_measured_on_request_only(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    assert trainer.memory.mb is None and write_result(trainer)["peak_memory_mb"] is None
