"""Datasets of the CoOp family. Importing the package registers them; docs/DATASETS.md says how to get them."""

import importlib

# One module per dataset; a file of your own is registered once its name stands here.
DATASETS = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
    "imagenetv2",
    "imagenet_sketch",
    "imagenet_a",
    "imagenet_r",
    "emoji",
    "custom",
)

for _name in DATASETS:
    importlib.import_module(f"{__name__}.{_name}")


def extend_cfg(cfg):
    """Declare the options that the CoOp family adds to Dassl's, and those of `custom`."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # or base, new
    cfg.DATASET.TEMPLATE = ""  # prompt with {} for the class; "": the trainer's own for the dataset
    cfg.DATASET.IMAGES = ""  # Custom: folder of class folders, of train, val and test with them, or CSV file
    cfg.DATASET.CLASSNAMES = ""  # Custom: YAML file with lines "folder: name"; "": names are read off the folders
