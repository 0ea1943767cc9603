"""result.json: what a finished run reports, in full precision."""

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from ..utils import write_json


def split_hash(dataset, root):
    """SHA-256 of the images a run saw: [path, label, classname] of train_x, val and test.

    Paths are relative to the dataset's own folder (`dataset_dir`), or to `root` if it names none, so that the hash is
    the same wherever the data lies.
    """
    root = dataset.dataset_dir or root
    splits = [
        [[Path(os.path.relpath(item.impath, root)).as_posix(), item.label, item.classname] for item in split or []]
        for split in (dataset.train_x, dataset.val, dataset.test)
    ]
    return hashlib.sha256(json.dumps(splits, separators=(",", ":")).encode()).hexdigest()


def learned_parameters(trainer):
    """Number of parameters that the registered models' optimizers change."""
    optims = [optim for optim in trainer._optims.values() if optim is not None]
    learned = {p for optim in optims for group in optim.param_groups for p in group["params"] if p.requires_grad}
    return sum(p.numel() for p in learned)


def write_result(trainer, config=""):
    """Write `<OUTPUT_DIR>/result.json`, which says that the run is finished; the resume file goes.

    config: stem of the --config-file. Metrics are null if there was no test.
    """
    cfg, evaluator = trainer.cfg, trainer.evaluator
    result = {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classnames": list(trainer.dm.dataset.classnames),
        "config": config,
        "accuracy": evaluator.results.get("accuracy"),
        "macro_f1": evaluator.results.get("macro_f1"),
        "correct": evaluator.correct,
        "total": evaluator.total,
        "split_hash": split_hash(trainer.dm.dataset, cfg.DATASET.ROOT or "."),
        "seconds": {
            "extract": trainer.extract_seconds,
            "train": trainer.train_seconds,
            "test": trainer.test_seconds,
        },
        "peak_memory_mb": trainer.memory.mb,
        "learned_parameters": learned_parameters(trainer),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
    }
    write_json(result, os.path.join(cfg.OUTPUT_DIR, "result.json"))
    Path(trainer.resume_path).unlink(missing_ok=True)
    return result
