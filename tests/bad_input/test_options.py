"""Options out of their range and command lines that can't be: one line that names the option or the word."""

import numpy as np
import pytest

import export
import parse_test_res
import predict
import swap_in
import train
from dassl.config import flatten, get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from datasets import doctor, fetch
from tests.bad_input.conftest import start

EMOJI = ["--dataset-config-file", "configs/datasets/emoji.yaml"]
SKIP_TUNING = ["--trainer", "SkipTuning", "--config-file", "configs/trainers/SkipTuning/vit_b16.yaml", *EMOJI]
TINY = "the tiny CLIP"  # stands for its path
BACKBONE = ["MODEL.BACKBONE.NAME", TINY]
VALUES = [  # of the engine's options; tests/dassl/test_ranges.py has each of its rules
    ("OPTIM.LR", "-0.1"),
    ("OPTIM.LR", "1e999"),
    ("OPTIM.LR", "nan"),
    ("OPTIM.LR", "fast"),
    ("OPTIM.LR", "[0.1]"),
    ("OPTIM.MAX_EPOCH", "0"),
    ("OPTIM.MAX_EPOCH", "-1"),
    ("OPTIM.MAX_EPOCH", "1.5"),
    ("OPTIM.MAX_EPOCH", "True"),
    ("OPTIM.NAME", "adamm"),
    ("OPTIM.WEIGHT_DECAY", "-1"),
    ("OPTIM.MOMENTUM", "2"),
    ("OPTIM.GAMMA", "-1"),
    ("OPTIM.STEPSIZE", "[0.5]"),
    ("OPTIM.LR_SCHEDULER", "linear"),
    ("OPTIM.STEPS_PER_SHOT", "-5"),
    ("OPTIM.WARMUP_TYPE", "none"),
    ("DATALOADER.TRAIN_X.BATCH_SIZE", "0"),
    ("DATALOADER.TEST.BATCH_SIZE", "-3"),
    ("DATALOADER.NUM_WORKERS", "-1"),
    ("DATALOADER.NUM_WORKERS", "1e3"),
    ("DATALOADER.TRAIN_X.SAMPLER", "Shuffle"),
    ("SEED", str(2**40)),
    ("SEED", "1.0"),
    ("DATASET.NUM_SHOTS", "-2"),
    ("DATASET.NUM_SHOTS", "all"),
    ("DATASET.SUBSAMPLE_CLASSES", "novel"),
    ("DATASET.TEMPLATE", "a photo"),
    ("DATASET.TEMPLATE", "{x}"),
    ("DATASET.TEMPLATE", "{} and {}"),
    ("DATASET.TEMPLATE", "a {"),
    ("INPUT.SIZE", "(0, 0)"),
    ("INPUT.SIZE", "224"),
    ("INPUT.PIXEL_STD", "[0, 0, 0]"),
    ("INPUT.PIXEL_MEAN", "[0.5]"),
    ("INPUT.INTERPOLATION", "cubic"),
    ("INPUT.TRANSFORMS", "['random_turn']"),
    ("INPUT.RRCROP_SCALE", "(0.9, 0.1)"),
    ("TEST.SPLIT", "train"),
    ("TEST.FINAL_MODEL", "best"),
    ("TRAIN.PRINT_FREQ", "0"),
    ("TRAIN.CHECKPOINT_FREQ", "-2"),
    ("PROTOCOL", "zero_shot"),
    ("USE_CUDA", "maybe"),
    ("OUTPUT_DIR", " "),
    ("TRAINER.SKIPTUNING.OMEGA", "99"),
    ("TRAINER.SKIPTUNING.R", "1.5"),
    ("TRAINER.SKIPTUNING.TEMPLATE", "a photo"),
    ("TRAINER.SKIPTUNING.SCOPE", "batches"),
    ("TRAINER.SKIPTUNING.PREC", "fp8"),
    ("TRAINER.SKIPTUNING.PREC", "None"),
]


def limits():
    """(trainer, option, value that its limits do not allow) for every number among the options of every trainer."""
    for name in TRAINER_REGISTRY.registered_names():
        cls = TRAINER_REGISTRY.get(name)
        options = [*getattr(cls, "limits", {}), *(["VIEWS"] if getattr(cls, "frozen_images", False) else [])]
        yield from ((name, option, value) for option in options for value in ("-1", "None"))


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_value_out_of_range_is_named(key, value, healthy, refused, tmp_path):
    argv = start(healthy, "--output-dir", tmp_path / "out", trainer="SkipTuning")
    line = refused(train.main, *argv, key, value)
    assert key.split(".")[-1] in line or value.strip("[]") in line


@pytest.mark.parametrize(("trainer", "option", "value"), list(limits()))
def test_every_option_of_every_method_has_limits(trainer, option, value, healthy, refused, tmp_path):
    key = f"TRAINER.{trainer.upper()}.{option}"
    argv = start(healthy, "--output-dir", tmp_path / "out", trainer=trainer)
    refused(train.main, *argv, key, value, names=[key])


def test_every_number_among_the_options_of_every_method_has_limits():
    cfg = get_cfg_default()
    train.trainers.extend_cfg(cfg)
    for name in TRAINER_REGISTRY.registered_names():
        options = flatten(cfg.TRAINER.get(name.upper(), {}))
        numbers = {key for key, value in options.items() if type(value) in (int, float)}
        shared = {"VIEWS"}  # trainers/frozen.py has its limits for all of them
        assert numbers - shared <= set(getattr(TRAINER_REGISTRY.get(name), "limits", {})), name


TRAIN = {
    "unknown trainer": (["--trainer", "SkipTunning"], ["SkipTunning", '"SkipTuning"']),
    "no trainer": ([], ["TRAINER.NAME", "--trainer"]),
    "no config file": (
        ["--trainer", "CoOp", *EMOJI],
        ["--config-file", "configs/trainers/CoOp/vit_b16.yaml"],
    ),
    "missing overlay": (
        ["--config-file", "configs/trainers/CoOp/vit_b16.yaml", "configs/overlays/fewshot.yaml"],
        ["configs/overlays has no such entry", "do you mean few_shot.yaml? There are"],
    ),
    "no dataset": (["--trainer", "SkipTuning"], ["DATASET.NAME", "--dataset-config-file"]),
    "unknown dataset": ([*SKIP_TUNING, "DATASET.NAME", "Emojis"], ["Emojis", '"Emoji"']),
    "unknown backbone": ([*SKIP_TUNING, "MODEL.BACKBONE.NAME", "ViT-B/61"], ["ViT-B/61", "ViT-B/16"]),
    "ResNet": ([*SKIP_TUNING, "MODEL.BACKBONE.NAME", "RN50"], ["RN50", "ViT-B/16"]),
    "no backbone": ([*SKIP_TUNING, "MODEL.BACKBONE.NAME", ""], ["MODEL.BACKBONE.NAME"]),
    "unknown key": ([*SKIP_TUNING, "OPTIM.LRR", "0.1"], ["OPTIM.LRR", "OPTIM.LR?"]),
    "group of keys": ([*SKIP_TUNING, "OPTIM", "0.1"], ["OPTIM", "group of options"]),
    "key of a key": ([*SKIP_TUNING, "OPTIM.LR.BASE", "0.1"], ["OPTIM.LR.BASE"]),
    "key without value": ([*SKIP_TUNING, "OPTIM.LR"], ["OPTIM.LR"]),
    "value with =": ([*SKIP_TUNING, "OPTIM.LR=0.1"], ["OPTIM.LR=0.1"]),
    "flag after pairs": ([*SKIP_TUNING, "OPTIM.LR", "0.1", "--seed", "2"], ["--seed", "before the first pair"]),
    "unknown flag": ([*SKIP_TUNING, "--shots", "2"], ["--shots", "--help"]),
    "seed that is no number": (["--seed", "one"], ["--seed", "'one'"]),
    "flag without value": (["--trainer"], ["--trainer"]),
    "missing config file": (
        ["--config-file", "configs/trainers/SkipTuning/vit_b61.yaml"],
        ["configs/trainers/SkipTuning has no such entry", "do you mean vit_b16.yaml? There are"],
    ),
    "missing config folder": (
        ["--config-file", "configs/trainers/SkipTunning/vit_b16.yaml"],
        ["configs/trainers has no such entry", "do you mean SkipTuning? There are"],
    ),
    "missing dataset folder": (
        [*SKIP_TUNING, "--root", "nowhere", "--dataset-config-file", "configs/datasets/eurosat.yaml", *BACKBONE],
        ["nowhere", "DATASETS.md"],
    ),
    "model directory without eval-only": ([*SKIP_TUNING, "--model-dir", "configs", *BACKBONE], ["--eval-only"]),
    "epoch without eval-only": ([*SKIP_TUNING, "--load-epoch", "7", *BACKBONE], ["--eval-only"]),
    "nothing to resume": ([*SKIP_TUNING, "--resume", "/nowhere", *BACKBONE], ["/nowhere"]),
    "CUDA by flag": ([*SKIP_TUNING, "--device", "cuda", *BACKBONE], ["CUDA", "CPU"]),
    "CUDA by key": ([*SKIP_TUNING, *BACKBONE, "USE_CUDA", "True"], ["CUDA", "CPU"]),
    "unknown device": ([*SKIP_TUNING, "--device", "gpu"], ["--device", "cuda"]),
    "images not set": ([*SKIP_TUNING, *BACKBONE, "DATASET.NAME", "Custom"], ["DATASET.IMAGES"]),
    "images nowhere": (
        [*SKIP_TUNING, *BACKBONE, "DATASET.NAME", "Custom", "DATASET.IMAGES", "/nowhere"],
        ["/nowhere", "DATASET.IMAGES"],
    ),
}


@pytest.mark.parametrize(("argv", "names"), TRAIN.values(), ids=TRAIN)
def test_a_command_that_cannot_train_is_refused(argv, names, healthy, refused, tmp_path):
    argv = [healthy / "tiny.safetensors" if word == TINY else word for word in argv]
    refused(train.main, "--output-dir", tmp_path / "out", *argv, names=names)


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--model-dir", "configs"], "learned"),
        (["--model-dir", "/nowhere"], "/nowhere"),
        (["--model-dir", "RUN", "--load-epoch", "7"], "--load-epoch 1"),
        (["--model-dir", "RUN/learned"], "/run"),
        (["--model-dir", "RUN/.."], "/run"),
        ([], "--eval-only needs --model-dir"),
    ],
)
def test_a_test_of_no_model_says_where_there_is_one(flags, name, healthy, refused, tmp_path):
    flags = [word.replace("RUN", str(healthy / "run")) for word in flags]
    refused(train.main, *start(healthy, "--output-dir", tmp_path / "out", "--eval-only", *flags), names=[name])


PREDICT = [
    (["--top", "0"], "argument --top: 0 is not a whole number from 1; see python predict.py --help"),
    (["--top", "1.5"], "--top"),
    (["--batch-size", "many"], "argument --batch-size: many is not a whole number"),
    (["--shots", "2"], "--shots"),
    (["--template", "a photo"], "--template is 'a photo': it needs {} where the class name goes"),
    (["--template", "{} {}"], "--template"),
    (["nowhere.jpg"], "No images at nowhere.jpg"),
    (["nowhere/**/*.jpg"], "No images at nowhere/**/*.jpg"),
    (["configs"], "No images at configs"),
    (["--classes", "nowhere.txt"], 'No file at "nowhere.txt"'),
    (["--classes", "nowhere.yaml"], 'No file at "nowhere.yaml"'),
    (["--device", "cuda"], "finds no CUDA device"),
    (["--csv", "/dev/full", "--force"], "/dev/full"),
    (["--json", "configs"], "configs exists"),
    (["--csv", "/dev/null/found.csv"], "/dev/null"),
    (["--csv", "a", "--json", "./a"], "--csv and --json both name"),
    (["--model-dir", "/nowhere"], "/nowhere"),
    (["--model-dir", "configs"], "No config.yaml in configs"),
]


@pytest.mark.parametrize(("argv", "name"), PREDICT)
def test_a_command_that_cannot_predict_is_refused(argv, name, healthy, refused):
    refused(predict.main, "--model-dir", healthy / "run", healthy / "pics/ant/0.png", *argv, names=[name])


EXPORT = [
    (["--to", "hf"], "--out"),
    (["--to", "tflite", "--out", "x"], "--to"),
    (["--to", "hf", "--out", "x", "--torchscript"], "--torchscript is a form of --to openai"),
    (["--to", "hf", "--out", "configs"], "configs exists"),
    (["--to", "hf", "--out", "x", "--model-dir", "configs"], "No config.yaml in configs"),
    (["--to", "hf", "--out", "x"], "CoOp leaves CLIP's weights alone"),
]


@pytest.mark.parametrize(("flags", "name"), EXPORT)
def test_a_command_that_cannot_export_is_refused(flags, name, healthy, refused):
    refused(export.main, "--model-dir", healthy / "run", *flags, names=[name])


OTHERS = [
    (doctor.main, ["eurosaat"], "no dataset 'eurosaat', do you mean 'eurosat'? There are ", 1),
    (doctor.main, ["custom"], "custom has nothing published to be compared with", 1),
    (doctor.main, ["eurosat", "--decode", "some"], "'some' is neither a number nor all", 1),
    (doctor.main, [], "NAME", 1),
    (fetch.main, ["eurosaat"], "eurosaat", 1),
    (fetch.main, [], "--list", 1),
    (fetch.main, ["eurosat", "--source", "torrent"], "--source", 1),
    (swap_in.main, ["/nowhere"], "/nowhere", 1),
    (swap_in.main, ["configs"], "configs", 1),
    (swap_in.main, ["configs", "--engine", "mine"], "--engine", 1),
    (swap_in.main, [], "path", 1),
    (parse_test_res.main, ["/nowhere"], "/nowhere", 2),
    (parse_test_res.main, ["configs"], "configs", 2),
    (parse_test_res.main, [], "directory", 2),
    (parse_test_res.main, ["configs", "--multi-exp", "--html", "x"], "--multi-exp", 2),
    (parse_test_res.main, ["configs", "--paper", "--keyword", "error"], "--paper", 2),
]


@pytest.mark.parametrize(("main", "argv", "name", "code"), OTHERS)
def test_a_wrong_word_is_named(main, argv, name, code, refused):
    refused(main, *argv, names=[name], code=code)


def test_a_learning_rate_that_ends_in_infinities_is_no_accuracy(healthy, refused, tmp_path):
    argv = start(healthy, "--output-dir", tmp_path / "out")
    line = refused(train.main, *argv, "OPTIM.LR", "1e30", "OPTIM.MAX_EPOCH", "3")
    assert "infinite" in line or "not a number" in line


def test_images_without_end_are_no_test(healthy, refused, tmp_path):
    """A mean that leads to infinite pixels."""
    argv = start(healthy, "--output-dir", tmp_path / "out")
    refused(train.main, *argv, "INPUT.PIXEL_STD", f"[{np.finfo(float).tiny}] * 3", names=["PIXEL_STD"])
