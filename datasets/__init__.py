"""Datasets of the CoOp family. Importing the package registers them; how to get them is in DATASETS.md."""

from . import (
    caltech101,
    custom,
    dtd,
    emoji,
    eurosat,
    fgvc_aircraft,
    food101,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    ucf101,
)

__all__ = [
    "caltech101",
    "custom",
    "dtd",
    "emoji",
    "eurosat",
    "fgvc_aircraft",
    "food101",
    "imagenet",
    "imagenet_a",
    "imagenet_r",
    "imagenet_sketch",
    "imagenetv2",
    "oxford_flowers",
    "oxford_pets",
    "stanford_cars",
    "sun397",
    "ucf101",
]


def extend_cfg(cfg):
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.DATASET.TEMPLATE = ""
    cfg.DATASET.IMAGES = ""
    cfg.DATASET.CLASSNAMES = ""
