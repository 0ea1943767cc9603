"""logits.npz: a test's logits of all the dataset's classes, so that the two halves of base-to-new can be joined."""

import hashlib
import json
import os

import numpy as np
import torch

from ..config import flatten
from ..data import ClassNames
from ..evaluation import EvaluatorBase
from ..utils import write_atomic
from .build import build_trainer
from .result import image_paths

FORMAT = 1


class Keeper(EvaluatorBase):
    """Collects logits instead of judging them: of each image the highest, and all others as what they are below it.

    So float16 is fine where it matters: which class wins, and by how much, is as exact as in float32.
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.reset()

    def reset(self):
        self._highest, self._relative, self._labels = [], [], []

    def process(self, mo, gt):
        """Logits mo (B, C), labels gt (B,). They stay on their device: one wait at the end, not one per batch."""
        highest = mo.float().amax(dim=1)
        self._highest.append(highest)
        self._relative.append((mo.float() - highest[:, None]).half())
        self._labels.append(gt)

    def evaluate(self):
        parts = {"highest": self._highest, "relative_logits": self._relative, "labels": self._labels}
        self.arrays = {name: torch.cat(found).cpu().numpy() for name, found in parts.items()}
        return {"images": len(self.arrays["labels"])}


def options_of(cfg):
    """The options of the method and of its images, to be compared (results/openworld.py), beside the weights."""
    chosen = {"TRAINER": cfg.TRAINER.get(cfg.TRAINER.NAME.upper(), {}), "INPUT": cfg.INPUT}
    return flatten(chosen) | {"DATASET.TEMPLATE": cfg.DATASET.get("TEMPLATE", "")}


def weights_hash(trainer):
    """SHA-256 of all that the trainer has learned, name by name; "" where nothing learns."""
    digest = hashlib.sha256()
    for model_name, model in trainer._models.items():
        for name, value in sorted(model.state_dict().items()):
            digest.update(f"{model_name}.{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if trainer._models else ""


def whole_trainer(trainer, folder, epoch):
    """A trainer like `trainer`, with the weights from `folder`, for all classes of its dataset; and the number that its
    class 0 has among them.

    It is told that it serves all classes, so that nothing of it is only for the base or only for the new ones.
    """
    dataset, cfg = trainer.dm.dataset, trainer.cfg.clone()
    names = getattr(dataset, "whole_classnames", dataset.classnames)  # a dataset of the user's may not say
    cfg.defrost()
    cfg.VERBOSE = False
    if "SUBSAMPLE_CLASSES" in cfg.DATASET:
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    print(f"Logits of all {len(names)} classes")
    whole = build_trainer(cfg, data=ClassNames(names))
    whole.load_model(folder, epoch=epoch)
    whole.test_loader, whole.val_loader = trainer.test_loader, trainer.val_loader
    return whole, getattr(dataset, "first_label", 0)


def save_logits(trainer, folder, epoch=None):
    """Write `<OUTPUT_DIR>/logits.npz` for the images of the trainer's last test.

    folder, epoch: where its weights are from, as for `load_model`. The arrays, for N images and the C classes of the
    whole dataset: `relative_logits` float16 (N, C), less the image's `highest` float32 (N,); `labels` int64 (N,);
    `images`, paths as `image_paths` has them; `classnames` (C,); `own` int64 (K,), the classes that the test was among;
    `about`, JSON that says what was run.
    """
    cfg, dataset = trainer.cfg, trainer.dm.dataset
    whole, first = whole_trainer(trainer, folder, epoch)
    whole.evaluator = Keeper(cfg)
    whole.test(trainer.tested)
    items = dataset.val if trainer.tested == "val" else dataset.test
    scale = getattr(whole, "scale", None)
    about = {
        "format": FORMAT,
        **{"trainer": cfg.TRAINER.NAME, "backbone": cfg.MODEL.BACKBONE.NAME, "preset": cfg.PRESET},
        **{"dataset": cfg.DATASET.NAME, "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")},
        **{"shots": cfg.DATASET.NUM_SHOTS, "seed": cfg.SEED, "split": getattr(dataset, "split_hash", None)},
        **{"tested": trainer.tested, "weights": weights_hash(whole), "precision": whole.precision},
        "options": options_of(cfg),
        **{"logit_scale": None if scale is None else float(scale), "temperature": trainer.evaluator.temperature},
    }
    arrays = whole.evaluator.arrays
    arrays["labels"] = arrays["labels"] + first
    arrays["images"] = np.array(image_paths(items, dataset, cfg.DATASET.ROOT or "."))
    arrays["classnames"] = np.array(whole.dm.dataset.classnames)
    arrays["own"] = np.arange(first, first + len(dataset.classnames))
    arrays["about"] = np.array(json.dumps(about, default=str))
    path = os.path.join(cfg.OUTPUT_DIR, "logits.npz")
    write_atomic(path, lambda file: np.savez(file, **arrays))
    print(f"Logits are saved to {path}")
