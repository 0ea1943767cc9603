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


def name_of(path):
    return str(path.relative_to(ROOT / "configs"))


def defaults():
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    return cfg


@pytest.mark.parametrize("path", DATASET_FILES + TRAINER_FILES, ids=name_of)
def test_config_file_holds_only_known_keys_that_differ_from_the_defaults(path):
    cfg = defaults()
    cfg.merge_from_file(path)
    before, after = flatten(defaults()), flatten(cfg)
    same = [key for key in flatten(yaml.safe_load(path.read_text()) or {}) if after[key] == before[key]]
    assert same == []


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
    scripts = re.findall(r"bash (scripts/skip/\w+\.sh)", header[0])
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    if path.parent.name != "SkipTuning":
        assert f"TRAINER={path.parent.name}" in header[0]


def imported(paths):
    """Names of the packages that these files import, neither ours nor Python's."""
    ours = {"clip", "dassl", "datasets", "trainers", "train", "parse_test_res"}
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
    code += [path for package in ("clip", "dassl", "datasets", "trainers") for path in ROOT.glob(f"{package}/**/*.py")]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    required = {re.match(r"\w+", line)[0] for line in lines}
    optional = {"tensorboard"}
    module_names = {"Pillow": "PIL", "PyYAML": "yaml"}
    assert imported(code) - optional == {module_names.get(name, name) for name in required}
