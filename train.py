"""Train and test one method on one dataset: command line -> configuration -> trainer -> result.json."""

import argparse
import os
import random
import sys
from pathlib import Path

import torch

import datasets  # noqa: F401  (registers the datasets)
import trainers
from clip import clip
from dassl.config import Config, check_ranges, config_diff, flatten, get_cfg_default, resolve
from dassl.data import ClassNames
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.checkpoint import check_identity, identity, where_it_is
from dassl.engine.logits import save_logits
from dassl.engine.result import read_result, write_result
from dassl.engine.temperature import trained_temperature
from dassl.utils import (
    FolderLock,
    Logger,
    MissingFile,
    Parser,
    UserError,
    exit_code,
    log_path,
    nearest,
    read_yaml,
    set_random_seed,
    write_atomic,
)
from datasets.files import shorten

RECIPES = Path(__file__).with_name("configs") / "trainers"

EPILOG = """
Options given as KEY VALUE pairs come last; flags must stand before them.
Later wins: defaults, dataset file, config files in their order, the rows of their OVERRIDES that hold for the dataset,
its shots, the protocol and the preset, flags, KEY VALUE pairs.

examples:
  python train.py --trainer NAME --config-file configs/trainers/NAME/vit_b16.yaml configs/overlays/few_shot.yaml \\
      --dataset-config-file configs/datasets/eurosat.yaml --output-dir output/few DATASET.NUM_SHOTS 16
  python train.py --trainer NAME --config-file configs/trainers/NAME/vit_b16.yaml configs/overlays/embedded.yaml \\
      --dataset-config-file configs/datasets/emoji.yaml --output-dir output/try \\
      DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES base
  python train.py --trainer NAME --config-file configs/trainers/NAME/vit_b16.yaml configs/overlays/embedded.yaml \\
      --dataset-config-file configs/datasets/emoji.yaml --output-dir output/try_new \\
      --eval-only --model-dir output/try DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES new

The same command again resumes an unfinished run and leaves a finished one as it is.
"""

FLAGS = {  # flag: the option that it sets
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
    "eval_only": "EVAL.ONLY",
    "model_dir": "EVAL.MODEL_DIR",
    "load_epoch": "EVAL.EPOCH",
}


def parse(argv):
    """The command line; a flag that is not given is None."""
    form = argparse.RawTextHelpFormatter
    parser = Parser(prog="python train.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    flag = parser.add_argument
    flag("--root", help="folder with the datasets (default: $DATA, else ./data)")
    flag("--output-dir", help="folder for this run (default: ./output)")
    flag("--resume", help="go on from the checkpoints here, not from those in --output-dir")
    flag("--seed", type=int, help="default: 1; -1 draws one and notes it in config.yaml")
    flag("--source-domains", nargs="+", help="for domain adaptation")
    flag("--target-domains", nargs="+", help="for domain adaptation")
    flag("--transforms", nargs="+", help="image transforms, all of them")
    flag("--config-file", nargs="+", default=[], metavar="YAML", help="settings of the trainer, merged in this order")
    flag("--dataset-config-file", metavar="YAML", help="settings of the dataset")
    flag("--trainer", help=", ".join(TRAINER_REGISTRY.registered_names()))
    flag("--backbone", help="of CLIP, such as ViT-B/16")
    flag("--head", help="for trainers that have one")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, CUDA if present")
    flag("--eval-only", action="store_true", default=None, help="test --model-dir's weights")
    flag("--model-dir", help="folder of the training run to test")
    flag("--load-epoch", type=int, help="epoch to test (default: the best one if it was kept, else the last)")
    flag("--no-train", action="store_true", help="build everything, then stop")
    flag("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="any config option, as often as needed")
    args = parser.parse_args(argv)
    files = 1
    while files < len(args.config_file) and is_config_file(args.config_file[files]):
        files += 1
    args.config_file, pairs = args.config_file[:files], args.config_file[files:]
    args.opts = pairs + args.opts
    if late := [word for word in args.opts if word.startswith("--")]:
        raise UserError(f"{late[0]} comes after KEY VALUE pairs; flags must stand before the first pair")
    return args


def is_config_file(word):
    """Whether a word behind --config-file names another file; if not, KEY VALUE pairs begin with it."""
    return word.endswith((".yaml", ".yml")) or os.path.isfile(word)


def configure(args):
    """The configuration, frozen, with its OVERRIDES laid over it, and the defaults it started from."""
    pairs = []
    for flag, key in FLAGS.items():
        value = getattr(args, flag)
        if value not in (None, ""):
            pairs += [key, value]
    return merge([args.dataset_config_file, *args.config_file], [*pairs, *args.opts], args.device)


def merge(files, pairs, device="auto"):
    """The configuration that these YAML files and [KEY, VALUE, ...] give, frozen, and the defaults it started from."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    cfg.SEED = 1
    cfg.EVAL = Config({"ONLY": False, "MODEL_DIR": "", "EPOCH": None})
    defaults = cfg.clone()
    if device != "auto":
        pairs = ["USE_CUDA", device == "cuda", *pairs]
    for path in filter(None, files):
        cfg.merge_from_file(existing(os.path.expanduser(path)))
    cfg.merge_from_list(pairs)  # they decide which rows of OVERRIDES hold
    resolve(cfg)
    cfg.merge_from_list(pairs)  # and win over them
    cfg.DATASET.ROOT = cfg.DATASET.ROOT or os.environ.get("DATA") or "./data"
    for key, value in flatten(cfg).items():
        if isinstance(value, str) and value.startswith("~"):
            cfg.merge_from_list([key, os.path.expanduser(value)])
    check_ranges(cfg)
    follow_backbone(cfg, defaults)
    if cfg.SEED < 0:
        cfg.SEED = drawn_seed(cfg.OUTPUT_DIR)
    cfg.freeze()
    return cfg, defaults


def follow_backbone(cfg, defaults):
    """Give INPUT the size, mean and std of pixels, and the resizing, that the backbone needs where they are not set.

    Errors: UserError where they are set to something else; WeightsError where nobody says what the backbone needs.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if not name:
        return
    facts = clip.facts(name, cfg.MODEL.BACKBONE)
    size = (facts.image_size, facts.image_size)
    pixels = {"PIXEL_MEAN": list(facts.mean), "PIXEL_STD": list(facts.std)}
    for key, needed in {"SIZE": size, "RESIZE": facts.resize, **pixels}.items():
        if cfg.INPUT[key] == defaults.INPUT[key]:
            cfg.INPUT[key] = needed
        elif list(cfg.INPUT[key]) != list(needed):
            raise UserError(f"INPUT.{key} is {cfg.INPUT[key]}: {name} needs INPUT.{key} {needed}")


def drawn_seed(folder):
    """What SEED -1 means: the seed of the run that `folder` holds, so that this can go on, else a random one."""
    record = Path(folder, "config.yaml")
    stored = read_yaml(record) if record.is_file() else {}
    if not isinstance(stored, dict):
        raise UserError(f"{record} is no record of a run; choose another --output-dir")
    seed = stored.get("SEED", -1)
    return seed if seed >= 0 else random.SystemRandom().randrange(2**31)


def existing(path):
    """`path`, or a MissingFile that says what is there instead."""
    if not Path(path).is_file():
        folder = next(parent for parent in Path(path).parents if parent.is_dir())
        names = sorted(entry.name for entry in folder.iterdir())
        meant = nearest(Path(path).relative_to(folder).parts[0], names, least=0.6)
        hint = f"do you mean {meant}?" if meant else "check the path."
        there = f" There are {shorten(names, most=8)}" if names else ""
        raise MissingFile(f"No config file {path}: {folder} has no such entry; {hint}{there}")
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
    if not cfg.MODEL.BACKBONE.NAME:
        recipes = [os.path.relpath(path) for path in sorted(RECIPES.glob(f"{cfg.TRAINER.NAME}/*.yaml"))]
        hint = f" ({' or '.join(recipes)})" if recipes else ""
        raise UserError(f"MODEL.BACKBONE.NAME is not set; give a --config-file that sets it{hint}, or --backbone")
    if cfg.TEST.SAVE_LOGITS and cfg.DATALOADER.TEST.SAMPLER != "SequentialSampler":
        raise UserError("TEST.SAVE_LOGITS names the images in their order: leave DATALOADER.TEST.SAMPLER as it is")
    if cfg.TEST.SAVE_LOGITS and cfg.TEST.NO_TEST and not cfg.EVAL.ONLY:
        raise UserError("TEST.SAVE_LOGITS keeps the logits of the test, and TEST.NO_TEST leaves that out: unset one")
    asked = args.device == "cuda" or "USE_CUDA" in args.opts[::2]
    if asked and cfg.USE_CUDA and not torch.cuda.is_available():
        raise UserError("CUDA was asked for, but PyTorch finds no CUDA device; leave it out to use the CPU")


def check_folders(cfg):
    """UserError if a folder to read from is named where nothing would be read from it."""
    if not cfg.EVAL.ONLY:
        if cfg.EVAL.MODEL_DIR:
            raise UserError("--model-dir is for tests; add --eval-only, or --resume to go on with a training")
        if cfg.EVAL.EPOCH is not None:
            raise UserError("--load-epoch is for tests; add --eval-only and --model-dir")
    folder = Path(cfg.RESUME)
    if cfg.RESUME and not [*folder.glob("resume.pt"), *folder.glob("*/checkpoint")]:
        raise MissingFile(f"Nothing to resume from in {folder}; correct --resume, or leave it out to start anew")


def trained_anew(cfg):
    """The folder of the model that this run tests, if that was trained after the result; else None."""
    if not cfg.EVAL.ONLY or not cfg.EVAL.MODEL_DIR:
        return None
    folder = where_it_is(cfg.EVAL.MODEL_DIR, cfg.OUTPUT_DIR)
    model, result = Path(folder, "result.json"), Path(cfg.OUTPUT_DIR, "result.json")
    there = model.exists() and result.exists()
    return folder if there and model.stat().st_mtime_ns > result.stat().st_mtime_ns else None


def finished(cfg):
    """Whether the result is there, and that of the model as it is now."""
    return Path(cfg.OUTPUT_DIR, "result.json").exists() and not trained_anew(cfg)


def claim(cfg):
    """Put config.yaml into the output folder; UserError if that holds a run with other settings that goes on here."""
    folder = Path(cfg.OUTPUT_DIR)
    record = folder / "config.yaml"
    resumed = (folder / "resume.pt").exists()
    if record.exists() and (resumed or trained_anew(cfg)):
        check_identity(folder, record.read_text(encoding="utf-8"), cfg, resumed)
    write_atomic(record, identity(cfg).encode())


def announce(cfg):
    """One line about a result that is there; UserError if it is that of a run with other settings."""
    folder = Path(cfg.OUTPUT_DIR)
    record = folder / "config.yaml"
    if record.exists():
        check_identity(folder, record.read_text(encoding="utf-8"), cfg)
    accuracy = read_result(folder / "result.json")["accuracy"]
    print(f"Finished before: {folder}/result.json" + ("" if accuracy is None else f", accuracy: {accuracy:.1f}%"))


def run(args, cfg, defaults):
    """One run, to result.json."""
    print(f"Settings that are not the defaults:\n{config_diff(cfg, defaults)}")
    print(f"Setting fixed seed: {cfg.SEED}")
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    write_atomic(Path(cfg.OUTPUT_DIR, "config.yaml"), identity(trainer.cfg).encode())  # with the epochs that it found
    if cfg.EVAL.ONLY:
        if trainer.get_model_names() and not cfg.EVAL.MODEL_DIR:
            raise UserError("--eval-only needs --model-dir, the folder of the training run to test")
        trainer.load_model(cfg.EVAL.MODEL_DIR, epoch=cfg.EVAL.EPOCH)
        if cfg.EVAL.MODEL_DIR and cfg.TEST.TEMPERATURE == "auto":
            trainer.temperature = trained_temperature(cfg.EVAL.MODEL_DIR)
        trainer.test()
    elif args.no_train:
        return
    else:
        trainer.train()
    if cfg.TEST.SAVE_LOGITS and trainer.tested:
        folder, epoch = (cfg.EVAL.MODEL_DIR, cfg.EVAL.EPOCH) if cfg.EVAL.ONLY else (cfg.OUTPUT_DIR, None)
        save_logits(trainer, folder, epoch)
    write_result(trainer, args.config_file)


def load_trainer(folder, classnames=None, device="auto", options=()):
    """The trainer of a finished run with its weights, ready for `logits(images)`; no dataset is opened.

    folder: the run's output folder; if the run tested another run's weights, those are loaded.
    classnames: other classes than the run's, as a list of names.
    device: auto, cpu or cuda; options: [KEY, VALUE, ...] that win over the run's own configuration.
    Errors: MissingFile if `folder` holds no run, UserError if the run is not finished or its options are not known.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.yaml").is_file():
        runs = sorted(path.parent for path in folder.glob("**/result.json"))
        hint = f"do you mean {runs[0]}?" if runs else "name the output folder of a run of train.py"
        raise MissingFile(f"No config.yaml in {folder}; {hint}")
    if not (folder / "result.json").is_file():
        raise UserError(f"The run in {folder} has no result.json, it is not finished; give its command again")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for, but PyTorch finds no CUDA device; leave it out to use the CPU")
    cfg, _ = merge([folder / "config.yaml"], list(options), device)
    if not cfg.TRAINER.NAME:
        raise UserError(f"{folder / 'config.yaml'} names no trainer; name the output folder of a run of train.py")
    if classnames is None:
        classnames = read_result(folder / "result.json")["classnames"]
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg, data=ClassNames(classnames))
    tested = where_it_is(cfg.EVAL.MODEL_DIR, folder) if cfg.EVAL.ONLY else str(folder)
    trainer.load_model(tested, epoch=cfg.EVAL.EPOCH)
    return trainer


def start(argv):
    """One command: a run, or a line about its result that was there before."""
    args = parse(argv)
    cfg, defaults = configure(args)
    check(args, cfg)
    check_folders(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    if not finished(cfg) or (folder / ".lock").exists():  # left by a run that was killed when all but that was done
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"Can't write to {folder} ({reason}); choose another --output-dir") from error
        with FolderLock(folder, identity(cfg)):
            if not finished(cfg):  # the same command may have been at work meanwhile
                claim(cfg)
                with Logger(log_path(cfg.OUTPUT_DIR)):
                    if model := trained_anew(cfg):
                        print(f"Testing again: {model} was trained anew after its test in {folder}")
                    run(args, cfg, defaults)
                return
            (folder / "resume.pt").unlink(missing_ok=True)  # a kill right behind result.json left it
    announce(cfg)


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    return exit_code(
        lambda: start(argv),
        "the same command goes on after the last finished epoch",
        after_os_error="once that is put right, the same command goes on",
        traceback_to=sys.stdout,
    )


if __name__ == "__main__":
    sys.exit(main())
