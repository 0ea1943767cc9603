"""Every file under configs/ does what its header says, and requirements.txt is what the code imports."""

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

import datasets  # noqa: F401  (registers the datasets)
import trainers
from dassl.config import flatten, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).parents[1]
DATASET_FILES = sorted(ROOT.glob("configs/datasets/*.yaml"))
TRAINER_FILES = sorted(ROOT.glob("configs/trainers/*/*.yaml"))
PARTS = sorted([*ROOT.glob("configs/base/*.yaml"), *ROOT.glob("configs/trainers/*/parts/*.yaml")])
ON_TOP = [ROOT / "configs/base/embedded_matched.yaml"]  # takes back what recipes below it changed


def name_of(path):
    return str(path.relative_to(ROOT / "configs"))


def defaults():
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    return cfg


def merged(*paths):
    cfg = defaults()
    for path in paths:
        cfg.merge_from_file(path)
    return cfg


@pytest.mark.parametrize("path", sorted({*DATASET_FILES, *TRAINER_FILES, *PARTS} - set(ON_TOP)), ids=name_of)
def test_config_file_holds_only_known_keys_that_differ_from_what_it_is_based_on(path):
    own = yaml.safe_load(path.read_text()) or {}
    bases = own.pop("_BASE_", [])
    bases = [bases] if isinstance(bases, str) else bases
    before = flatten(merged(*(path.parent / base for base in bases)))
    after = flatten(merged(path))
    assert [key for key in flatten(own) if after[key] == before.get(key)] == []


# What facts are known of the paper and of its released code, protocol by protocol: text and image learning rates,
# epochs, warm-up epochs and rate.
SCHEDULES = {
    "vit_b16_paper": (2e-5, 0, 20, -1, 1e-5),
    "vit_b16_paper_few_shot": (2e-5, 0, 40, -1, 1e-5),
    "vit_b16_paper_xd": (2e-5, 0, 20, -1, 1e-5),
    "vit_b16_official": (2e-5, 5e-6, 20, 1, 1e-6),
    "vit_b16_official_few_shot": (1e-5, 0, 40, -1, 1e-5),
    "vit_b16_official_xd": (1e-5, 1e-6, 20, 1, 1e-8),
    "vit_b16": (2e-5, 5e-6, 20, 1, 1e-6),
    "vit_b16_few_shot": (1e-5, 0, 40, -1, 1e-5),
    "vit_b16_xd": (1e-5, 1e-6, 20, 1, 1e-8),
}
CHOICES = {
    "paper": ("image", "paper", "step", 0, 1, "mixed", "auto"),
    "official": ("batch", "official", "run", 50, 0, "single_class", "fp16"),
    "": ("batch", "paper", "step", 50, 0, "mixed", "auto"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_presets_of_skip_tuning_are_what_their_names_say(name):
    cfg = merged(ROOT / f"configs/trainers/SkipTuning/{name}.yaml")
    options, optim = cfg.TRAINER.SKIPTUNING, cfg.OPTIM
    schedule = optim.LR, options.IMAGE_LR, optim.MAX_EPOCH, optim.WARMUP_EPOCH, optim.WARMUP_CONS_LR
    assert schedule == SCHEDULES[name]
    assert (options.OMEGA, options.R, options.LAMBDA, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (6, 0.5, 0.3, 4)
    preset = re.search(r"paper|official|$", name)[0]
    keys = ["SCOPE", "DECAY", "RESAMPLE", "MAX_TOP", "VIEWS", "BATCHES", "PREC"]
    assert tuple(options[key] for key in keys) == CHOICES[preset]
    quarter = dict.fromkeys(("ImageNet", "SUN397", "Food101"), optim.MAX_EPOCH // 4)
    assert dict(options.EPOCHS) == ({} if preset == "paper" else quarter)
    assert ("EuroSAT" in options.TEMPLATES) == (preset != "paper")


@pytest.mark.parametrize("path", DATASET_FILES, ids=name_of)
def test_dataset_file_names_a_registered_dataset(path):
    assert yaml.safe_load(path.read_text())["DATASET"]["NAME"] in DATASET_REGISTRY.registered_names()


def test_every_registered_dataset_has_a_file():
    named = {yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in DATASET_FILES}
    registered = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())  # the tests' own are not in datasets
    assert {each.__name__ for each in registered if each.__module__.startswith("datasets.")} == named


@pytest.mark.parametrize("path", TRAINER_FILES, ids=name_of)
def test_trainer_file_lies_in_the_folder_of_a_registered_trainer(path):
    assert path.parent.name in TRAINER_REGISTRY.registered_names()


@pytest.mark.parametrize("path", TRAINER_FILES, ids=name_of)
def test_trainer_file_starts_with_the_command_that_uses_it(path):
    header = re.match(r"(?:#.*\n)+", path.read_text())
    assert header, "no comment on top"
    scripts = re.findall(r"bash (scripts/(\w+)/\w+\.sh)", header[0])
    assert scripts and all((ROOT / script).is_file() for script, _ in scripts)
    for _, method in scripts:
        own = {"skip": "skiptuning"}.get(method, method.replace("_", ""))
        assert path.parent.name.lower() == own or f"TRAINER={path.parent.name}" in header[0]


def imported(paths):
    """Names of the packages that these files import, neither ours nor Python's."""
    ours = {"clip", "dassl", "datasets", "trainers", "train", "parse_test_res", "results"}
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - ours - set(sys.stdlib_module_names)


def test_requirements_are_exactly_what_the_code_imports():
    code = [ROOT / "train.py", ROOT / "predict.py", ROOT / "parse_test_res.py"]
    packages = ("clip", "dassl", "datasets", "trainers", "results")
    code += [path for package in packages for path in ROOT.glob(f"{package}/**/*.py")]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    required = {re.match(r"\w+", line)[0] for line in lines}
    optional = {"tensorboard", "gdown", "matplotlib"}
    module_names = {"Pillow": "PIL", "PyYAML": "yaml"}
    assert imported(code) - optional == {module_names.get(name, name) for name in required}
