"""A dataset of coloured squares on disk, and a trainer small enough to train in a fraction of a second."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@DATASET_REGISTRY.register()
class Squares(DatasetBase):
    """6 training, 2 validation and 4 test images of each of three colours."""

    def __init__(self, cfg):
        splits = {"train": 6, "val": 2, "test": 4}
        items = {split: self.read(cfg.DATASET.ROOT, split, n) for split, n in splits.items()}
        train = self.generate_fewshot_dataset(items["train"], num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=items["val"], test=items["test"])

    @staticmethod
    def read(root, split, n):
        return [
            Datum(f"{root}/{split}_{name}_{i}.png", label=label, classname=name)
            for label, name in enumerate(COLOURS)
            for i in range(n)
        ]


@TRAINER_REGISTRY.register()
class Tiny(TrainerX):
    """A linear layer on pixels; its loss draws from all three generators, so that a lost state shows."""

    stop_at = None  # (epoch, batch) at which the user presses Ctrl-C
    rates = None

    def build_model(self):
        self.model = torch.nn.Linear(3 * 16 * 16, self.num_classes)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("net", self.model, self.optim, self.sched)
        self.rates, self.steps = [], 0

    def model_inference(self, image):
        return self.model(image.flatten(1))

    def forward_backward(self, batch):
        if (self.epoch, self.batch_idx) == self.stop_at:
            raise KeyboardInterrupt
        image, label, _ = self.parse_batch_train(batch)
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        loss = F.cross_entropy(self.model_inference(image) * (1 + noise), label)
        self.model_backward_and_update(loss)
        self.rates.append(self.get_current_lr())
        self.steps += 1
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def extra_state(self):
        return {"steps": self.steps}

    def load_extra_state(self, state):
        self.steps = state["steps"]


@pytest.fixture
def cfg(tmp_path):
    """Options of a four-epoch run of Tiny on Squares, whose images are written first."""
    noise = np.random.default_rng(0)
    for split, n in {"train": 6, "val": 2, "test": 4}.items():
        for name, colour in COLOURS.items():
            for i in range(n):
                pixels = np.clip(noise.normal(colour, 60, (20, 20, 3)), 0, 255).astype(np.uint8)
                (tmp_path / "data").mkdir(exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / "data" / f"{split}_{name}_{i}.png")
    cfg = get_cfg_default()
    cfg.merge_from_list(
        [
            "OUTPUT_DIR",
            str(tmp_path / "run"),
            "SEED",
            1,
            "TRAINER.NAME",
            "Tiny",
            "MODEL.BACKBONE.NAME",
            "none",
        ]
        + ["DATASET.NAME", "Squares", "DATASET.ROOT", str(tmp_path / "data"), "DATALOADER.NUM_WORKERS", 0]
        + ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "INPUT.SIZE", (16, 16), "OPTIM.NAME", "sgd", "OPTIM.LR", 0.01]
        + ["INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "normalize"]]
        + ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", 4, "OPTIM.WARMUP_EPOCH", 1]
        + ["OPTIM.WARMUP_TYPE", "constant", "TRAIN.PRINT_FREQ", 2]
    )
    set_random_seed(1)
    return cfg


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
