"""All trainers: importing this package registers them; `extend_cfg` adds their options to the defaults."""

from importlib import import_module

import datasets

from .frozen import prompts_of

# One file each. A file that has options has `extend_cfg(cfg)`.
METHODS = (
    "zsclip",
    "skip_tuning",
    "finetune",
    "coop",
    "cocoop",
    "prograd",
    "kgcoop",
    "clip_adapter",
    "clip_lora",
    "maple",
    "promptsrc",
    "tcp",
    "coprompt",
    "dept",
    "mmrl",
    "tip_adapter",
    "two_sfs",
    "clip_svd",
    "prolip",
    "lp_pp",
)
MODULES = [import_module(f".{name}", __name__) for name in METHODS]


def extend_cfg(cfg):
    """Options that the CoOp family adds to Dassl's, and every trainer's own node under TRAINER."""
    datasets.extend_cfg(cfg)
    for module in MODULES:
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)
    for node in (cfg.TRAINER.SKIPTUNING, cfg.TRAINER.FINETUNECLIP):
        node.TEMPLATES.update(prompts_of("skip_tuning"))
