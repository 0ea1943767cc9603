"""A small run on images in class folders, for the tests of what reads finished runs."""

from pathlib import Path

import numpy as np
from PIL import Image

import train

CLASSES = ["ant", "bee", "sea lion", "zebra"]


def write_images(folder: Path) -> None:
    """Six images of noise for each class, around a colour of the class."""
    noise = np.random.default_rng(0)
    for name in CLASSES:
        colour = noise.uniform(0, 255, 3)
        for i in range(6):
            path = folder / name.replace(" ", "_") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(noise.normal(colour, 60, (40, 50, 3)), 0, 255).astype(np.uint8)).save(path)


def train_once(trainer: str, images: Path, weights: Path, folder: Path, *pairs: str) -> Path:
    """`folder` with a finished epoch of `trainer` on these images from these weights; made when first asked for."""
    if not folder.exists():
        settings = {
            "DATASET.NAME": "Custom",
            "DATASET.IMAGES": images,
            "MODEL.BACKBONE.NAME": weights,
            "INPUT.SIZE": (32, 32),
            "INPUT.TRANSFORMS": ["random_flip", "normalize"],
            "DATALOADER.TRAIN_X.BATCH_SIZE": 3,
            "DATALOADER.NUM_WORKERS": 0,
            "OPTIM.NAME": "sgd",
            "OPTIM.LR": 0.05,
            "OPTIM.MAX_EPOCH": 1,
            "TRAIN.CPU_PREC": "fp32",  # on every machine
        }
        words = [str(word) for pair in settings.items() for word in pair]
        flags = ["--trainer", trainer, "--root", str(images.parent), "--output-dir", str(folder), "--device", "cpu"]
        assert train.main([*flags, *words, *pairs]) == 0
    return folder
