"""Small codebases in the shape of the CoOp family's, each with what some of its members do differently."""

import json
import os
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import swap_in

PROJECT = Path(__file__).parents[2]

TRAIN = """
import argparse
{imports}
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger

import datasets.eurosat


def reset_cfg(cfg, args):
    cfg.DATASET.ROOT = args.root
    cfg.OUTPUT_DIR = args.output_dir
    cfg.SEED = args.seed
    cfg.TRAINER.NAME = args.trainer


def extend_cfg({cfg}):
    \"\"\"
    Add options, for example cfg.TRAINER.MINE.N = 1
    \"\"\"
    {extend}
    {cfg}.DATASET.SUBSAMPLE_CLASSES = "all"{tail}


def setup_cfg(args):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    reset_cfg(cfg, args)
{setup}
    cfg.freeze()
    return cfg


def main(args):
    cfg = setup_cfg(args)
    set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    if args.eval_only:
{evaluate}
        return
    trainer.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in ("root", "output-dir", "config-file", "dataset-config-file", "trainer", "model-dir"):
        parser.add_argument("--" + flag, default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    main(parser.parse_args())
"""
OPTS = "    cfg.merge_from_list(args.opts)\n"
LOAD = "        trainer.load_model(args.model_dir, epoch=args.load_epoch)\n"
CN_INSIDE = "from yacs.config import CfgNode as CN\n\n    cfg.TRAINER.MINE = CN()"
PLAIN = {
    "imports": "",
    "cfg": "cfg",
    "extend": CN_INSIDE,
    "tail": "",
    "setup": OPTS,
    "evaluate": LOAD + "        trainer.test()",
    "marker": "coop",
    "init": "",
    "folder": "",
}

# What differs from PLAIN, by the member that does so.
VARIATIONS = {
    "CoOp": {},
    "CoPrompt": {  # CN at the top; a list of its own after the options; no such list for some datasets
        "imports": "from yacs.config import CfgNode as CN\nfrom trainers.coprompt import override",
        "extend": "cfg.TRAINER.W = 8.0",
        "setup": OPTS + "    cfg.merge_from_list(override(cfg.DATASET.NAME))\n",
        "marker": "coprompt",
    },
    "MMRL": {  # a list of its own before the options, which refuses other trainers and needs TASK among the options
        "imports": "from trainers.mmrl import override",
        "extend": 'cfg.TASK = "B2N"',
        "setup": "    cfg.merge_from_list(\n        override(args.opts[args.opts.index('TASK') + 1],\n"
        "                 cfg.TRAINER.NAME)\n    )\n" + OPTS,
        "marker": "mmrl",
    },
    "PLOT++": {  # epochs and batch by shots for every trainer; an evaluation that loads nothing; no last newline
        "setup": OPTS + "\n    if cfg.DATASET.NUM_SHOTS == 1:\n        cfg.OPTIM.MAX_EPOCH = 50\n    else:\n"
        "        # many\n\n        cfg.OPTIM.MAX_EPOCH = 200\n    if cfg.DATASET.NAME in ['EuroSAT']:\n"
        "        cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 32\n",
        "evaluate": "\n        trainer.test()",
        "marker": "plotpp",
        "last_newline": False,
    },
    "TCP": {
        "setup": OPTS + '    if cfg.DATASET.NAME in ["EuroSAT"]:\n        cfg.OPTIM.MAX_EPOCH = 25\n',
        "marker": "tcp",
    },
    "augmented": {  # options forced in every way that Python has
        "setup": OPTS + "    cfg.OPTIM.MAX_EPOCH += 5\n    setattr(cfg.OPTIM, 'LR', 9.0)\n"
        "    cfg['DATALOADER']['TRAIN_X']['SAMPLER'] = 'SequentialSampler'\n    cfg.OPTIM.update(MOMENTUM=0.1)\n",
        "marker": "own",
    },
    "early return": {  # of extend_cfg
        "extend": "if 'MINE' in cfg.TRAINER: return\n    " + CN_INSIDE,
        "marker": "own",
    },
    "one line": {  # several statements on a line; options after extend_cfg
        "extend": "cfg.A = 1; cfg.B = 2",
        "setup": "    cfg.C = 3; cfg.merge_from_list(args.opts); cfg.OPTIM.MAX_EPOCH = 5\n",
        "marker": "own",
    },
    "CLAP": {  # a sampler by an option of its own trainer; another signature of load_model
        "setup": OPTS + '    cfg.DATALOADER.TRAIN_X.SAMPLER = "SequentialSampler"\n',
        "evaluate": "        trainer.load_model(args.model_dir, cfg, epoch=args.load_epoch)\n        trainer.test()",
        "marker": "adapters",
    },
    "ATPrompt": {"evaluate": LOAD + "        trainer.test(is_final=True)", "marker": "coop_atp"},
    "DePT": {  # trainers imported as a package, options of other trainers dropped, staged learning rates by default
        "imports": "import trainers\nfrom dassl.config import clean_cfg",
        "extend": CN_INSIDE + "\n    cfg.OPTIM.STAGED_LR = True\n    cfg.OPTIM.NEW_LAYERS = ['linear_probe']",
        "marker": "elp_coop",
        "init": "from .elp_coop import *\n",
    },
    "DPC": {"marker": "sple_coop", "init": None},  # no trainers/__init__.py
    "KgCoOp": {"marker": "kgcoop", "folder": "KgCoOp/"},  # the codebase is in a sub-folder
    "an unknown codebase of the CoOp family": {
        "cfg": "config",
        "extend": "pass",
        "tail": "\n    return config",
        "marker": "own",
    },
}

TRAINER = """
from dassl.engine import TRAINER_REGISTRY, TrainerX


def override(*names):
    assert "SkipTuning" not in names, "not my trainer"
    return ["OPTIM.MAX_EPOCH", "5"] if "EuroSAT" in names else [""]


@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    pass
"""

DATASET = """
import json
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


@DATASET_REGISTRY.register()
class EuroSAT(DatasetBase):
    def __init__(self, cfg):
        root = cfg.DATASET.ROOT
        parts = json.load(open(f"{root}/split.json"))
        items = {part: [Datum(f"{root}/{path}", label, classname=name) for path, label, name in rows]
                 for part, rows in parts.items()}
        super().__init__(train_x=items["train"], test=items["test"])
"""

CLIP = """
import importlib.util, sys

# The project's CLIP under another name, with what members of the family changed in theirs.
spec = importlib.util.spec_from_file_location("own_clip", {path!r}, submodule_search_locations=[{folder!r}])
sys.modules["own_clip"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["own_clip"])
from own_clip import model
from own_clip.clip import tokenize as _tokenize

_MODELS = {{"ViT-B/16": "https://localhost/ViT-B-16.pt"}}


def _download(url, root="~"):
    return {weights!r}


def tokenize(texts):  # TCP
    return _tokenize(texts).int()


def build_model(state_dict, design_details):  # MaPLe
    assert design_details["trainer"] == "CoOp" and design_details["vision_depth"] == 0
    built = model.build_model(state_dict)
    built.visual.forward = built.encode_text = needs_prompt
    return built


def needs_prompt(x, prompt):  # PLOT++
    raise AssertionError("not for Skip Tuning")
"""


def make_fork(folder, name, weights="none.pt", trainer="Mine"):
    """A codebase like that of `name` below `folder`; -> the folder to give to swap_in, the codebase's root."""
    parts = PLAIN | VARIATIONS[name]
    root = folder / "fork" / parts["folder"]
    files = {
        "train.py": TRAIN.format(**parts).lstrip()[: None if parts.get("last_newline", True) else -1],
        f"trainers/{parts['marker']}.py": TRAINER.format(name=trainer),
        "datasets/__init__.py": "",
        "datasets/eurosat.py": DATASET,
        "clip/__init__.py": "",
        "clip/clip.py": CLIP.format(
            path=str(PROJECT / "clip/__init__.py"), folder=str(PROJECT / "clip"), weights=str(weights)
        ),
        "configs/datasets/eurosat.yaml": 'DATASET:\n  NAME: "EuroSAT"\n',
    }
    if parts["init"] is not None:
        files["trainers/__init__.py"] = parts["init"]
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(textwrap.dedent(text))
    return folder / "fork", root


def contents(folder):
    """Every file below a folder: what is in it, and its mode; links as links."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes(), path.stat().st_mode
    return found


def folders(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()}


def run(*args):
    return swap_in.main([str(arg) for arg in args])


def refused(capsys, *args):
    """The error of a run that fails: one line."""
    capsys.readouterr()
    assert run(*args) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1, error
    return error


RUN = """
import importlib, os, runpy, sys
weights, clip, *sys.argv = sys.argv[1:]
listdir = os.listdir
os.listdir = lambda *folder: sorted(listdir(*folder))  # upstream's ImageNet is in the order of the file system
sys.path[0] = ""
importlib.import_module(clip + ".clip")._download = lambda *args, **options: weights
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def our_weights(file):
    """The options by which our train.py takes a CLIP like `make_clip`'s from a file, with what shapes don't tell."""
    mean, std = "[0.48145466,0.4578275,0.40821073]", "[0.26862954,0.26130258,0.27577711]"
    facts = {"NAME": file, "ACTIVATION": "quick_gelu", "VISION_HEADS": 2, "TEXT_HEADS": 1, "MEAN": mean, "STD": std}
    return [str(word) for key, value in facts.items() for word in (f"MODEL.BACKBONE.{key}", value)]


def write_python(path, weights, clip="clip", python=sys.executable):
    """A Python for scripts in which the download of CLIP's weights gives the file `weights`."""
    words = [python, "-W", "ignore", "-c", RUN, str(weights), clip]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def make_world(folder, weights):
    """EuroSAT and ImageNet in small in folder/data, and `weights` (a CLIP) in folder/ViT-B-16.pt."""
    images = make_images(folder / "images")
    split = json.loads((images / "split.json").read_text())
    (images / "split.json").unlink()
    for part, place in (("train", "train"), ("test", "val")):
        for item in split[part]:
            name, label, classname = item
            target = folder / f"data/imagenet/images/{place}/n0000000{label}/{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((images / name).read_bytes())
            (images / classname).mkdir(exist_ok=True)  # some forks' EuroSAT lists class folders
            item[0] = f"{classname}/{name}"
            (images / name).rename(images / item[0])
    names = "".join(f"n0000000{label} colour {label}\n" for label in range(5))
    (folder / "data/imagenet/classnames.txt").write_text(names)
    (folder / "data/eurosat").mkdir()
    images.rename(folder / "data/eurosat/2750")
    split = {"train": split["train"], "val": split["test"], "test": split["test"]}
    (folder / "data/eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(split))
    torch.save(weights.half().state_dict(), folder / "ViT-B-16.pt")


def make_images(folder, size=32):
    """4 training and 2 test images of each of five colours, and the list of them."""
    noise, split = np.random.default_rng(0), {"train": [], "test": []}
    folder.mkdir()
    for part, number in (("train", 4), ("test", 2)):
        for label in range(5):
            for i in range(number):
                pixels = np.clip(noise.normal(50 * label, 40, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}_{label}_{i}.png")
                split[part].append([f"{part}_{label}_{i}.png", label, f"colour_{label}"])
    (folder / "split.json").write_text(json.dumps(split))
    return folder
