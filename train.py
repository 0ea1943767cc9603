"""Train and test one method on one dataset: command line -> configuration -> trainer -> result.json."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from functools import reduce
from pathlib import Path

import torch

import datasets  # noqa: F401  (registers the datasets)
import trainers
from dassl.config import Config, config_diff, get_cfg_default, resolve
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.checkpoint import check_identity, identity
from dassl.engine.result import write_result
from dassl.utils import MissingFile, Parser, UserError, nearest, set_random_seed, setup_logger, write_atomic

EPILOG = """
Options given as KEY VALUE pairs come last; flags must stand before them.
Later wins: defaults, dataset file, trainer file, what these have FOR the dataset and its shots, flags,
KEY VALUE pairs.

examples:
  python train.py --trainer NAME --config-file configs/trainers/NAME/embedded.yaml \\
      --dataset-config-file configs/datasets/emoji.yaml --output-dir output/try \\
      DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES base
  python train.py --trainer NAME --config-file configs/trainers/NAME/embedded.yaml \\
      --dataset-config-file configs/datasets/emoji.yaml --output-dir output/try_new \\
      --eval-only --model-dir output/try DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES new

The same command again resumes an unfinished run and leaves a finished one as it is.
"""


def parse(argv):
    """The command line. Flags in capitals hold the config key they set; None means not given."""
    form = argparse.RawTextHelpFormatter
    parser = Parser(prog="python train.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    flag = parser.add_argument
    flag("--root", dest="DATASET.ROOT", help="folder with the datasets (default: $DATA, else ./data)")
    flag("--output-dir", dest="OUTPUT_DIR", help="folder for this run (default: ./output)")
    flag("--resume", dest="RESUME", help="go on from the checkpoints here, not from those in --output-dir")
    flag("--seed", dest="SEED", type=int, help="default: 1")
    flag("--source-domains", dest="DATASET.SOURCE_DOMAINS", nargs="+", help="for domain adaptation")
    flag("--target-domains", dest="DATASET.TARGET_DOMAINS", nargs="+", help="for domain adaptation")
    flag("--transforms", dest="INPUT.TRANSFORMS", nargs="+", help="image transforms, all of them")
    flag("--config-file", metavar="YAML", help="settings of the trainer")
    flag("--dataset-config-file", metavar="YAML", help="settings of the dataset")
    flag("--trainer", dest="TRAINER.NAME", help=", ".join(TRAINER_REGISTRY.registered_names()))
    flag("--backbone", dest="MODEL.BACKBONE.NAME", help="of CLIP, such as ViT-B/16")
    flag("--head", dest="MODEL.HEAD.NAME", help="for trainers that have one")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, CUDA if present")
    flag("--eval-only", dest="EVAL.ONLY", action="store_true", default=None, help="test --model-dir's weights")
    flag("--model-dir", dest="EVAL.MODEL_DIR", help="folder of the training run to test")
    flag("--load-epoch", dest="EVAL.EPOCH", type=int, help="epoch to test (default: the last one saved)")
    flag("--no-train", action="store_true", help="build everything, then stop")
    flag("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="any config option, as often as needed")
    args = parser.parse_args(argv)
    if late := [word for word in args.opts if word.startswith("--")]:
        raise UserError(f"{late[0]} comes after KEY VALUE pairs; flags must stand before the first pair")
    return args


def configure(args):
    """The configuration, frozen, without a table FOR any more, and the defaults it started from."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.SEED = 1
    cfg.EVAL = Config({"ONLY": False, "MODEL_DIR": "", "EPOCH": None})
    defaults = cfg.clone()
    for path in filter(None, (args.dataset_config_file, args.config_file)):
        cfg.merge_from_file(existing(path))
    overrule(cfg, args)  # says which rows of FOR fit
    resolve(cfg)
    overrule(cfg, args)  # and wins over them
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or os.environ.get("DATA") or "./data"
    cfg.freeze()
    return cfg, defaults


def overrule(cfg, args):
    """Put what the command line says into `cfg`."""
    for key, value in vars(args).items():
        if key.isupper() and value not in (None, ""):
            *groups, name = key.split(".")
            reduce(getattr, groups, cfg)[name] = value  # as it stands: a folder called 2024 is no number
    if args.device != "auto":
        cfg.USE_CUDA = args.device == "cuda"
    cfg.merge_from_list(args.opts)


def existing(path):
    """`path`, or a MissingFile that lists what is there instead."""
    if not Path(path).is_file():
        folder = next(parent for parent in Path(path).parents if parent.is_dir())
        names = sorted(entry.name for entry in folder.iterdir())
        meant = nearest(Path(path).relative_to(folder).parts[0], names)
        hint = f"; do you mean {meant}? There are {', '.join(names)}" if names else ""
        raise MissingFile(f"No config file {path}: {folder} has no such entry{hint}")
    return path


def check(args, cfg):
    """What can be known before anything is built or written."""
    for group, registry, flag in (
        ("TRAINER", TRAINER_REGISTRY, "--trainer"),
        ("DATASET", DATASET_REGISTRY, "--dataset-config-file"),
    ):
        if not cfg[group].NAME:
            raise UserError(f"{group}.NAME is not set; give {flag}")
        registry.get(cfg[group].NAME)
    asked = args.device == "cuda" or "USE_CUDA" in args.opts[::2]
    if asked and cfg.USE_CUDA and not torch.cuda.is_available():
        raise UserError("CUDA was asked for, but PyTorch finds no CUDA device; leave it out to use the CPU")


def claim(cfg):
    """Whether the output folder holds this run's result already; if not, config.yaml is put there.

    Errors: UserError if the folder can't be written to, or holds a run with other settings.
    """
    folder = Path(cfg.OUTPUT_DIR)
    record, finished = folder / "config.yaml", (folder / "result.json").exists()
    if record.exists() and (finished or (folder / "resume.pt").exists()):
        check_identity(folder, record.read_text(), cfg)
    if not finished:
        try:
            write_atomic(record, identity(cfg).encode())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Can't write to {folder} ({reason}); choose another --output-dir") from error
    return finished


def announce(path):
    """One line about a result that was there before."""
    accuracy = json.loads(path.read_text())["accuracy"]
    print(f"Finished before: {path}" + ("" if accuracy is None else f", accuracy: {accuracy:.1f}%"))


def run(args, cfg, defaults):
    """One run, from log.txt to result.json."""
    setup_logger(cfg.OUTPUT_DIR)
    print(f"Settings that are not the defaults:\n{config_diff(cfg, defaults)}")
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if cfg.EVAL.ONLY:
        if trainer.get_model_names() and not cfg.EVAL.MODEL_DIR:
            raise UserError("--eval-only needs --model-dir, the folder of the training run to test")
        trainer.load_model(cfg.EVAL.MODEL_DIR, epoch=cfg.EVAL.EPOCH)
        trainer.test()
    elif args.no_train:
        return
    else:
        trainer.train()
    write_result(trainer, [args.config_file] if args.config_file else [])


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    with contextlib.redirect_stdout(sys.stdout):  # takes back what setup_logger puts in its place
        try:
            args = parse(argv)
            cfg, defaults = configure(args)
            check(args, cfg)
            if claim(cfg):
                announce(Path(cfg.OUTPUT_DIR) / "result.json")
            else:
                run(args, cfg, defaults)
            return 0
        except KeyboardInterrupt:
            print("\nInterrupted; the same command goes on after the last finished epoch", file=sys.stderr)
            return 130
        except UserError as error:
            message = str(error)
        except OSError as error:
            message = f"{error}; once that is put right, the same command goes on"
        except Exception as error:
            traceback.print_exc(file=sys.stdout)  # goes to log.txt too
            message = f"unexpected {type(error).__name__}: {error}"
        print("Error:", " ".join(message.split()), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
