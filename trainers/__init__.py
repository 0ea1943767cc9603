"""All trainers: importing this package registers them; `extend_cfg` adds their options to the defaults."""

from . import (
    clip_adapter,
    clip_lora,
    cocoop,
    coop,
    coprompt,
    dept,
    finetune,
    kgcoop,
    maple,
    prograd,
    promptsrc,
    skip_tuning,
    tcp,
    tip_adapter,
    zsclip,
)

MODULES = (
    zsclip,
    finetune,
    skip_tuning,
    coop,
    cocoop,
    prograd,
    kgcoop,
    clip_adapter,
    clip_lora,
    maple,
    promptsrc,
    tcp,
    coprompt,
    dept,
    tip_adapter,
)


def extend_cfg(cfg):
    """Options that the CoOp family adds to Dassl's, and every trainer's own node under TRAINER."""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # or base, new
    cfg.DATASET.TEMPLATE = ""  # prompt with {} for the class; "": the trainer's own for the dataset
    cfg.DATASET.IMAGES = ""  # Custom: folder of class folders, of train, val and test with them, or CSV file
    cfg.DATASET.CLASSNAMES = ""  # Custom: YAML file with lines "folder: name"; "": names are read off the folders
    for module in MODULES:
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)
