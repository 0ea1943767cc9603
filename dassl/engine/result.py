"""result.json: what a finished run reports, in full precision."""

import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import torch
import torchvision

from ..utils import complete, read_json, write_json
from .memory import peak_rss_mb


def image_paths(items, dataset, root):
    """Paths of `items` relative to the dataset's own folder, or to `root` if it names none."""
    root = dataset.dataset_dir or root
    return [Path(os.path.relpath(item.impath, root)).as_posix() for item in items]


def images_hash(dataset, root):
    """SHA-256 of the images a run saw: [path, label, classname] of train_x, val and test.

    Paths are those of `image_paths`, so that the hash is the same wherever the data lies. `dataset.split_hash` is of
    the whole split; this is of what few-shot selection and the choice of base or new classes have left of it.
    """
    splits = []
    for split in (dataset.train_x, dataset.val, dataset.test):
        items = split or []
        named = zip(image_paths(items, dataset, root), items, strict=True)
        splits.append([[path, item.label, item.classname] for path, item in named])
    return hashlib.sha256(json.dumps(splits, separators=(",", ":")).encode()).hexdigest()


def learned_parameters(trainer):
    """Number of parameters that the registered models' optimizers change."""
    optims = [optim for optim in trainer._optims.values() if optim is not None]
    learned = {p for optim in optims for group in optim.param_groups for p in group["params"] if p.requires_grad}
    return sum(p.numel() for p in learned)


def calibration_of(trainer):
    """What the evaluator found beside accuracy, and the factor before the softmax; None without a test."""
    found = getattr(trainer.evaluator, "calibration", None)  # an evaluator or trainer of the user's may have none
    if found is None:
        return None
    scale = getattr(trainer, "scale", None)
    return {**found, "logit_scale": None if scale is None else float(scale)}


KINDS = {  # what those who read a result.json take for granted
    **dict.fromkeys(("trainer", "dataset", "subsample", "backbone"), str),
    **dict.fromkeys(("shots", "seed", "total"), int),
    "accuracy": (int, float, type(None)),
    "classnames": list,
}


def read_result(path):
    """What `write_result` has written to `path`; UserError names the file if it did not write this."""
    found = read_json(path)
    with complete(path, "run the command that made it again, with another --output-dir"):
        for key, kind in KINDS.items():
            if not isinstance(found[key], kind):
                raise TypeError(f"{key} is {found[key]!r:.40}")
        if not found["classnames"] or not all(isinstance(name, str) for name in found["classnames"]):
            raise TypeError("classnames holds no texts")
    return found


def write_result(trainer, config_files=()):
    """Write `<OUTPUT_DIR>/result.json`, which says that the run is finished; the resume file goes.

    config_files: the paths given as --config-file. Metrics are null if there was no test. `split` is the hash of the
    whole split that docs/DATASETS.md lists (null where a dataset has none), `images` that of the images of this run.
    `calibration` is explained in docs/CALIBRATION.md.
    `precision` is the one that the run really was in, also where PREC was auto (null for a trainer that doesn't say),
    `device` is cpu or cuda: where it ran, after its last resume.
    Seconds are wall time, memory is in MB (1e6 bytes): `peak_memory_mb` of the training steps' tensors (null where it
    was not measured), `peak_rss_mb` of the whole process. Returns what was written.
    """
    cfg, evaluator, dataset = trainer.cfg, trainer.evaluator, trainer.dm.dataset
    result = {
        "protocol": cfg.PROTOCOL,
        "preset": cfg.PRESET,
        "trials": None if cfg.TRIALS < 0 else cfg.TRIALS,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classnames": list(dataset.classnames),
        "config": Path(config_files[-1]).stem if config_files else "",
        "config_files": [str(path) for path in config_files],
        "tested": trainer.tested,
        "accuracy": evaluator.results.get("accuracy"),
        "macro_f1": evaluator.results.get("macro_f1"),
        "correct": evaluator.correct,
        "total": evaluator.total,
        "calibration": calibration_of(trainer),
        "split": getattr(dataset, "split_hash", None),
        "images": images_hash(dataset, cfg.DATASET.ROOT or "."),
        "epochs": trainer.max_epoch,
        "workers": cfg.DATALOADER.NUM_WORKERS,
        "precision": trainer.precision,
        "device": trainer.device.type,
        "seconds": {
            "extract": trainer.extract_seconds,
            "train": trainer.train_seconds,
            "test": trainer.test_seconds,
        },
        "peak_memory_mb": trainer.memory.mb,
        "peak_rss_mb": peak_rss_mb(),
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
