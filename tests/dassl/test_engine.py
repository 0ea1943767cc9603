import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from dassl.data import ClassNames, DataManager
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerX, TrainerXU, build_trainer
from dassl.engine.checkpoint import check_identity, identity
from dassl.engine.result import images_hash, write_result
from dassl.engine.trainer import AverageMeter, MetricMeter, SummaryWriter  # noqa: F401 (forks take them here)
from dassl.modeling import build_backbone
from dassl.utils import UserError
from tests.dassl.conftest import assert_same, interrupted, weights

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
    trainer = build_trainer(cfg)
    trainer.dm.dataset._val = trainer.dm.dataset.test  # as in ImageNet
    with pytest.raises(UserError, match="Squares has the images of its test as validation images"):
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


@pytest.mark.parametrize(("shots", "batches", "epochs"), [(2, 1, 6), (4, 3, 4), (6, 4, 5), (-1, 4, 5)])
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
    with pytest.raises(UserError, match="OPTIM.MAX_EPOCH 5 -> 4, OPTIM.STEPS_PER_SHOT 3 -> 0"):
        check_identity("run", record, cfg)


@pytest.mark.parametrize("key", ["CACHE_LIMIT", "CACHE_ON_DEVICE"])
def test_where_cached_features_lie_is_no_other_option_also_in_records_that_have_it(key, cfg):
    cfg.TRAINER.SKIPTUNING = CfgNode({key: 2.0})
    assert key not in identity(cfg)
    check_identity("run", identity(cfg) + f"TRAINER.SKIPTUNING.{key}: 4.0\n", cfg)


# The record ------------------------------------------------------------------------------------------


def test_result_json_holds_every_key_and_ends_the_run(cfg):
    trainer = build_trainer(cfg)
    trainer.train()
    trainer.model.bias.requires_grad_(False)
    assert os.path.exists(f"{cfg.OUTPUT_DIR}/resume.pt")
    write_result(trainer, ["configs/base/vit_b16.yaml", "over/few_shot.yaml"])
    assert not os.path.exists(f"{cfg.OUTPUT_DIR}/resume.pt")
    result = json.loads(Path(cfg.OUTPUT_DIR, "result.json").read_text())
    keys = (
        "protocol preset trials trainer dataset subsample shots seed backbone classnames config config_files tested"
        " accuracy macro_f1 correct total calibration split images epochs workers precision device"
        " seconds peak_memory_mb peak_rss_mb learned_parameters versions"
    )
    assert list(result) == keys.split()
    assert result["accuracy"] == 100 * result["correct"] / result["total"] and result["total"] == 12
    assert result["learned_parameters"] == 3 * 768 and result["config"] == "few_shot"
    assert result["seconds"]["train"] > 0 and result["seconds"]["test"] > 0 and result["seconds"]["extract"] == 0
    assert set(result["versions"]) == {"python", "torch", "torchvision", "numpy"}


def test_the_images_hash_is_of_relative_paths_labels_and_names(cfg, tmp_path):
    dataset = DataManager(cfg).dataset
    first = images_hash(dataset, cfg.DATASET.ROOT)
    (tmp_path / "data").rename(tmp_path / "moved")
    cfg.DATASET.ROOT = str(tmp_path / "moved")
    moved = DataManager(cfg).dataset
    assert images_hash(moved, cfg.DATASET.ROOT) == first
    moved.train_x[0]._label = 1
    assert images_hash(moved, cfg.DATASET.ROOT) != first


def test_curves_get_their_points_with_the_progress_lines_and_at_an_epochs_end(cfg):
    """To read the numbers in every step would make each wait for a GPU."""
    cfg.merge_from_list(["TRAIN.PRINT_FREQ", 3, "OPTIM.MAX_EPOCH", 2])
    trainer, points = build_trainer(cfg), []
    add_scalar = lambda name, value, step: points.append((name, step))  # noqa: E731
    trainer._writer = SimpleNamespace(add_scalar=add_scalar, close=lambda: None)
    trainer.train()
    assert trainer.num_batches == 4
    assert [step for name, step in points if name == "train/loss"] == [2, 3, 6, 7]
    assert [step for name, step in points if name == "train/lr"] == [2, 3, 6, 7]


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
