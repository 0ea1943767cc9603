"""What a run leaves to go on from: checkpoints that say what they are, and the rolling resume.pt."""

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from ..config import flatten
from ..utils import (
    MissingFile,
    UserError,
    complete,
    load_checkpoint,
    load_optimizer,
    load_weights,
    parse_yaml,
    save_atomic,
    write_atomic,
)

# Options that may differ between a run and its continuation: where it runs, not what it does.
_FREE = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "TRIALS",
    "MODEL.RECIPE",  # the rows that it chose are among the options
    "INPUT.RESIZE",  # follows from the backbone
    "DATASET.ROOT",
    "USE_CUDA",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.DECODED_MB",
    "TRAIN.PRINT_FREQ",
    "TRAIN.MEASURE_MEMORY",
)


# Options that say in which precision a run is; resume.pt knows in which one it really was.
_PRECISION = re.compile(r"TRAINER\.\w+\.PREC|TRAIN\.CPU_PREC")

# Options that may be paths, which have more than one spelling.
_PATHS = ("DATASET.IMAGES", "DATASET.CLASSNAMES", "EVAL.MODEL_DIR", "MODEL.BACKBONE.NAME")


def meant(text):
    """The absolute path of what is called so, if there is such a file or folder; else the text itself."""
    path = os.path.expanduser(text)
    return os.path.abspath(path) if text and os.path.exists(path) else text


def where_it_is(model_dir, output_dir):
    """`model_dir`, or where it has gone if it was moved together with the output folder of its test."""
    if os.path.isdir(model_dir):
        return model_dir
    folder, parts = Path(output_dir).absolute(), Path(model_dir).parts
    for parent in folder.parents:
        for start in range(1, len(parts)):
            found = parent.joinpath(*parts[start:])
            if found != folder and (found / "config.yaml").is_file():
                return str(found)
    return model_dir


def describe(trainer):
    """What a checkpoint was trained with: the `meta` entry."""
    cfg = trainer.cfg
    return {
        "trainer": cfg.TRAINER.NAME,
        "backbone": meant(cfg.MODEL.BACKBONE.NAME),
        "dataset": cfg.DATASET.NAME,
        "subsample": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "classnames": list(trainer.dm.dataset.classnames),
        "split": _split(trainer.dm.dataset),
        "options": trainer.fixed_options(),
    }


def _split(dataset):
    """The hash that tells one set of images from another of the same name; None where a dataset has none."""
    return None if getattr(dataset, "test_only", False) else getattr(dataset, "split_hash", None)


def find_checkpoint(directory, name, epoch=None):
    """Path of `<directory>/<name>/model.pth.tar-<epoch>`; without an epoch, or with a negative one, the best, else the
    last.

    MissingFile says which epochs there are, or where else to look.
    """
    folder = os.path.join(directory, name)
    files = os.listdir(folder) if os.path.isdir(folder) else []
    epochs = sorted(int(match[1]) for match in map(re.compile(r"model\.pth\.tar-(\d+)").fullmatch, files) if match)
    wanted = "model-best.pth.tar"
    if epoch is not None and epoch >= 0:
        wanted = f"model.pth.tar-{epoch}"
    elif wanted not in files and epochs:
        wanted = f"model.pth.tar-{epochs[-1]}"
    path = os.path.join(folder, wanted)
    if wanted not in files:
        have = f"take --load-epoch {' or '.join(map(str, epochs))}" if epochs else _elsewhere(directory, name)
        raise MissingFile(f'No model at "{path}"; {have}, or name another --model-dir')
    return path


def _elsewhere(directory, name):
    """What to do where `directory` has no models called `name`: they may lie one folder above or below it."""
    if os.path.basename(os.path.normpath(directory)) == name:
        return f'give --model-dir "{os.path.dirname(os.path.normpath(directory)) or "."}"'
    folders = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    for folder in folders:
        if os.path.isdir(os.path.join(directory, folder, name)):
            return f'give --model-dir "{os.path.join(directory, folder)}"'
    folders = [folder for folder in folders if folder != name]
    others = [folder for folder in folders if os.path.isfile(os.path.join(directory, folder, "checkpoint"))]
    return f"it holds {others[0]}, a model of another trainer: set --trainer" if others else "train one first"


def refuse_finished(directory, names):
    """UserError if the checkpoints in `directory` are of a run of ours: it goes on from resume.pt, or is finished."""
    for name in names:
        try:
            path = find_checkpoint(directory, name)
        except MissingFile:  # a folder without one, which upstream's code goes through, too
            continue
        if "meta" in load_checkpoint(path):
            raise UserError(
                f'"{directory}" holds models of an earlier run, but no resume.pt to go on from, as in a finished run;'
                f' test them with --eval-only --model-dir, or remove "{os.path.join(directory, name)}" to train anew'
            )


def take_best(names, source, target):
    """Copy the best models so far from a folder that a run is resumed from to its own."""
    for name in names:
        best = Path(source, name, "model-best.pth.tar")
        copy = Path(target, name, best.name)
        if best.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(copy, best.read_bytes())


def check_meta(path, theirs, ours):
    """UserError for a checkpoint of another backbone, other fixed options, or part of another dataset's classes."""
    if meant(theirs["backbone"]) != ours["backbone"]:
        raise UserError(
            f'"{path}" was trained with the backbone {theirs["backbone"]}, this run uses {ours["backbone"]};'
            f" set MODEL.BACKBONE.NAME or choose another --model-dir"
        )
    for key, value in theirs.get("options", {}).items():
        if ours["options"].get(key, value) != value:
            raise UserError(
                f'"{path}" was trained with {key} {value}, this run has {ours["options"][key]};'
                " set it to the same, or choose another --model-dir"
            )
    splits = theirs.get("split"), ours["split"]
    if theirs["dataset"] == ours["dataset"] and None not in splits and splits[0] != splits[1]:
        raise UserError(
            f'"{path}" was trained on other images of {ours["dataset"]} than this run has (their splits differ);'
            " name the images of the training, or choose another --model-dir"
        )
    if theirs["dataset"] != ours["dataset"] and theirs["subsample"] != "all":
        raise UserError(
            f'"{path}" was trained on the {theirs["subsample"]} classes of {theirs["dataset"]}, this run uses'
            f" {ours['dataset']}; across datasets choose a model trained on all classes"
        )


def _free(key):
    return key in _FREE or str(key).endswith((".CACHE_LIMIT", ".CACHE_ON_DEVICE"))  # a method's: where features lie


def _decisive(cfg):
    """{key: value} of the options that decide the result, in plain types; paths are absolute."""
    flat = {key: value for key, value in flatten(cfg).items() if not _free(key)}
    flat |= {key: meant(flat[key]) for key in _PATHS if key in flat}
    return json.loads(json.dumps(flat, default=str))  # no tuples, no devices


def identity(cfg):
    """The options that decide the result, as YAML."""
    return yaml.safe_dump(_decisive(cfg))


def check_identity(path, theirs, cfg, resumed=False):
    """UserError that names the options which differ from those of an earlier run.

    resumed: `load_resume` compares the precisions themselves, so their options may differ here.
    """
    old, new = _parsed(path, theirs), _decisive(cfg)
    old = {key: value for key, value in old.items() if not _free(key)}  # earlier versions kept more of them
    if resumed:
        old, new = ({key: run[key] for key in run if not _PRECISION.fullmatch(str(key))} for run in (old, new))
    old |= {key: meant(str(old[key])) for key in _PATHS if key in old}
    if old.get("EVAL.MODEL_DIR"):
        old["EVAL.MODEL_DIR"] = where_it_is(old["EVAL.MODEL_DIR"], cfg.OUTPUT_DIR)
    if new.get("OPTIM.STEPS_PER_SHOT", 0) > 0:  # MAX_EPOCH follows from it
        old.pop("OPTIM.MAX_EPOCH", None)
        new.pop("OPTIM.MAX_EPOCH")
    changed = [
        f"{key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old | new)
        if (key in old, old.get(key)) != (key in new, new.get(key))
    ]
    if changed:
        raise UserError(
            f'"{path}" belongs to a run with other options ({", ".join(changed)});'
            " repeat those, or choose another --output-dir"
        )


def _parsed(path, text):
    """The options {key: value} of a config.yaml or resume.pt; UserError that names `path`."""
    try:
        options = parse_yaml(text)
    except (AttributeError, RecursionError, yaml.YAMLError):  # AttributeError: no text at all
        options = None
    if not isinstance(options, dict):
        raise UserError(f'The record of options in "{path}" is damaged; remove it, or choose another --output-dir')
    return options


def random_state():
    """States of Python's, numpy's and torch's generators, as numbers and tensors only."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state):
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])  # it may have been begun on more


def begin_resume(trainer, path):
    """Write that a run has begun here: checkpoints that it leaves before its first epoch is finished don't count."""
    save_atomic({"config": identity(trainer.cfg), "epoch": 0}, path)


def save_resume(trainer, path):
    """Everything the rest of the run depends on, after a finished epoch."""
    scaler = getattr(trainer, "scaler", None)  # the family's name for its GradScaler
    save_atomic(
        {
            "config": identity(trainer.cfg),
            "precision": trainer.precision,
            "epoch": trainer.epoch + 1,
            "models": {name: module.state_dict() for name, module in trainer._models.items()},
            "optims": _states(trainer._optims),
            "scheds": _states(trainer._scheds),
            "scaler": scaler.state_dict() if scaler else None,
            "best_result": trainer.best_result,
            "random": random_state(),
            "seconds": {"extract": trainer.extract_seconds, "train": trainer.train_seconds},
            "peak_memory_mb": trainer.memory.mb,
            "extra": trainer.extra_state(),
        },
        path,
    )


def load_resume(trainer, path):
    """Put the trainer where `save_resume` left it; returns the number of finished epochs.

    UserError for a run with other options or in another precision, and for a file that is damaged.
    """
    state = load_checkpoint(path)
    with complete(path, "remove it to train from scratch, or choose another --output-dir"):
        if not isinstance(state, dict):
            raise TypeError(type(state).__name__)
        precision = state.get("precision")  # None: of a trainer that doesn't say, or written before this was noted
        check_identity(path, state["config"], trainer.cfg, resumed=precision is not None)
        if precision not in (None, trainer.precision):
            raise UserError(
                f'"{path}" is of a training in {precision}, this run is in {trainer.precision}; to go on, set'
                f" TRAINER.{trainer.cfg.TRAINER.NAME.upper()}.PREC {precision}"
            )
        epoch = int(state["epoch"])
        if epoch:
            _restore(trainer, state, path)
        return epoch


def _restore(trainer, state, path):
    for name, module in trainer._models.items():
        load_weights(module, state["models"][name], path)
    for name, optimizer in trainer._optims.items():
        if optimizer is not None:
            load_optimizer(optimizer, state["optims"][name], path)
    for name, scheduler in trainer._scheds.items():
        if scheduler is not None:
            if "last_epoch" not in state["scheds"][name]:  # load_state_dict would not miss it
                raise KeyError("last_epoch")
            scheduler.load_state_dict(state["scheds"][name])
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_result = float(state["best_result"])
    trainer.extract_seconds += float(state["seconds"]["extract"])
    trainer.train_seconds = float(state["seconds"]["train"])
    trainer.memory.mb = state["peak_memory_mb"]
    trainer.load_extra_state(state["extra"])
    set_random_state(state["random"])


def _states(parts):
    return {name: part.state_dict() if part is not None else None for name, part in parts.items()}
