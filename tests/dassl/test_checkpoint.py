"""Checkpoints: what they hold, which one is taken, and which are refused."""

import os
from pathlib import Path

import pytest
import torch

from dassl.engine import build_trainer
from dassl.utils import UserError


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
        "split": None,
        "options": {},
    }


def test_a_model_is_not_tested_on_other_images_of_its_dataset(cfg):
    trainer = build_trainer(cfg)
    trainer.dm.dataset.split_hash = "one"
    trainer.train()
    trainer.dm.dataset.split_hash = "other"
    with pytest.raises(UserError, match="was trained on other images of Squares .* name the images of the training"):
        trainer.load_model(cfg.OUTPUT_DIR)
    trainer.dm.dataset.test_only = True  # an extra test set of the same name
    trainer.load_model(cfg.OUTPUT_DIR)


def test_nothing_is_trained_on_images_for_tests(cfg):
    trainer = build_trainer(cfg)
    trainer.dm.dataset.test_only = True
    with pytest.raises(UserError, match="Squares has images for tests only; train on another dataset"):
        trainer.train()


def test_load_model_takes_the_best_then_the_last_or_the_epoch_asked_for(cfg, capsys):
    trainer = build_trainer(cfg)
    for epoch in (1, 9):
        trainer.save_model(epoch, cfg.OUTPUT_DIR)
    trainer.load_model(cfg.OUTPUT_DIR)
    trainer.load_model(cfg.OUTPUT_DIR, epoch=2)
    trainer.save_model(4, cfg.OUTPUT_DIR, val_result=71.26, model_name="model-best.pth.tar")
    trainer.load_model(cfg.OUTPUT_DIR)
    trainer.load_model(cfg.OUTPUT_DIR, epoch=-1)
    trainer.load_model("")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("Load /", "Note that"))]
    ends = ["(epoch=10)", "(epoch=2)", *2 * ["(epoch=5, val_result=71.3)"], "(ignore this if it's done on purpose)"]
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


def test_a_model_dir_too_high_too_deep_or_of_another_trainer_is_put_right(cfg, tmp_path):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    for directory in (str(tmp_path), f"{cfg.OUTPUT_DIR}/net", f"{cfg.OUTPUT_DIR}/net/"):
        with pytest.raises(UserError, match=f'give --model-dir "{cfg.OUTPUT_DIR}"'):
            trainer.load_model(directory)
    os.rename(f"{cfg.OUTPUT_DIR}/net", f"{cfg.OUTPUT_DIR}/prompt_learner")
    with pytest.raises(UserError, match="it holds prompt_learner, a model of another trainer: set --trainer"):
        trainer.load_model(cfg.OUTPUT_DIR)


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


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: {key: value for key, value in saved.items() if key != "state_dict"},
        lambda saved: {key: value for key, value in saved.items() if key != "epoch"},
        lambda saved: {**saved, "state_dict": None},
        lambda saved: {**saved, "state_dict": {"weight": 1, "bias": 2}},
        lambda saved: {**saved, "meta": {}},
        lambda saved: {**saved, "meta": 7},
        lambda saved: {**saved, "val_result": "high"},
        lambda saved: [saved],
        lambda saved: saved["state_dict"]["weight"],
    ],
)
def test_a_checkpoint_without_its_parts_is_one_line(cfg, change):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    path = f"{cfg.OUTPUT_DIR}/net/model.pth.tar-2"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(UserError) as caught:
        trainer.load_model(cfg.OUTPUT_DIR)
    assert path in str(caught.value) and "--model-dir" in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_listed(cfg):
    trainer = build_trainer(cfg)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    trainer._models["net"] = torch.nn.Sequential(torch.nn.Linear(768, 3))
    with pytest.raises(UserError, match="0.weight is missing; 0.bias is missing; weight is unknown and 1 more"):
        trainer.load_model(cfg.OUTPUT_DIR)
    trainer._models["net"] = torch.nn.Linear(768, 5)
    with pytest.raises(UserError, match=r"weight is \(3, 768\), not \(5, 768\)"):
        trainer.load_model(cfg.OUTPUT_DIR)
