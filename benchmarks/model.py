"""What the cost benchmarks run on: CLIP of ViT-B/16's shape with random weights, made-up classes, trainers on them.

Everything is on the CPU, also where there is a GPU: the rows without a trainer are, and all are compared.
"""

import contextlib
import gc
import io
import random
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import trainers
from clip import clip
from clip.model import CLIP, convert_weights
from dassl.config import get_cfg_default, resolve
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.engine.memory import LiveTensors

SHAPE = dict(
    embed_dim=512,
    image_resolution=224,
    vision_layers=12,
    vision_width=768,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=512,
    transformer_heads=8,
    transformer_layers=12,
)
CONFIGS = Path(__file__).parents[1] / "configs" / "trainers"
SHOTS = 16
IMAGES = 32  # per forward pass in extraction and test
WORDS = ["red", "old", "sea", "glass", "paper", "wild", "cat", "bird", "boat", "tower", "flower", "engine", "castle"]


def class_names(number):
    """Made-up names of one to four words, as in the usual datasets."""
    words = random.Random(1)
    return [" ".join(words.choices(WORDS, k=words.choice([1, 1, 2, 2, 3, 4]))) for _ in range(number)]


@DATASET_REGISTRY.register()
class MadeUp(DatasetBase):
    """`classes` classes with SHOTS images each that nobody opens."""

    classes = 2

    def __init__(self, cfg):
        names = class_names(self.classes)
        items = [Datum(__file__, label=label, classname=name) for label, name in enumerate(names)]
        super().__init__(train_x=items * SHOTS, test=items)


class Bench:
    """The model's weights in a file, and what all rows run on."""

    def __init__(self, folder, shape):
        torch.manual_seed(1)
        self.folder = folder
        self.shape = shape
        model = CLIP(**shape)
        convert_weights(model)  # as every loaded model is rounded
        self.weights = model.float().state_dict()
        clip.save(model, folder / "random.safetensors")
        self.pixels = torch.randn(IMAGES, 3, *[shape["image_resolution"]] * 2)

    def clip_model(self):
        model = CLIP(**self.shape)
        model.load_state_dict(self.weights)
        return model.requires_grad_(False)

    def trainer(self, name, preset, classes, precision):
        """The trainer as a user's command would build it, before its `before_train`."""
        MadeUp.classes = classes
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        for file in filter(None, ("vit_b16", preset)):
            cfg.merge_from_file(CONFIGS / name / f"{file}.yaml")
        size = self.shape["image_resolution"]
        cfg.merge_from_list(["DATASET.NAME", "MadeUp", "DATASET.NUM_SHOTS", SHOTS, "TRAINER.NAME", name])
        cfg.merge_from_list(["MODEL.BACKBONE.NAME", str(self.folder / "random.safetensors")])
        cfg.merge_from_list(["INPUT.SIZE", (size, size), "VERBOSE", False, "DATALOADER.NUM_WORKERS", 0])
        cfg.merge_from_list(["USE_CUDA", False])
        cfg.merge_from_list([f"TRAINER.{name.upper()}.PREC", precision, "SEED", 1])
        cfg.merge_from_list(["PROTOCOL", "base2new", "OUTPUT_DIR", tempfile.mkdtemp(dir=self.folder)])
        resolve(cfg)
        with quiet():
            trainer = build_trainer(cfg)
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, sys.maxsize  # no step is an epoch's last
        return trainer


def quiet():
    return contextlib.redirect_stdout(io.StringIO())


def prepare(make):
    """The function that `make` returns, warmed up by two calls: floating-point operations of the first one's matrix
    products, and the peak MB of the second, with all that belongs to it."""
    gc.collect()  # nothing that an earlier row left may be freed between the two looks
    with LiveTensors() as before:
        pass
    run = make()
    with FlopCounterMode(display=False) as counter:
        run()
    with LiveTensors() as live:
        run()
    return run, counter.get_total_flops(), (live.peak - before.now) / 1e6
