"""The README's tree, commands, links and steps are what is in the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree():
    """Paths in the README's tree, folders with a slash at the end; without the lines that go on with another."""
    block = README.split("## What is where")[1].split("```")[1]
    folder = ""
    for line in block.strip().splitlines():
        if line.startswith(" " * 10):
            continue
        name = line.split()[0]
        if line.startswith(" "):
            yield folder + name
        else:
            folder = name if name.endswith("/") else ""
            yield name


def tracked(*patterns):
    return subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, text=True, capture_output=True).stdout.split()


@pytest.mark.parametrize("path", list(tree()))
def test_everything_in_the_tree_exists(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_every_top_level_folder_and_command_is_in_the_tree():
    files = tracked()
    if not files:
        pytest.skip("needs a git checkout, to know which files belong to the project")
    shown = set(tree())
    folders = {path.split("/")[0] + "/" for path in files if "/" in path and not path.startswith(".")}
    assert folders <= shown
    assert {path for path in files if path.endswith(".py") and "/" not in path} <= shown


def test_the_parts_of_the_plugin_are_in_the_tree():
    block = README.split("## What is where")[1].split("```")[1]
    for path in (ROOT / "trainers/parts").glob("[a-z]*.py"):
        assert path.name in block, path.name


@pytest.mark.parametrize("script", sorted(set(re.findall(r"bash (\S+\.sh)", README))))
def test_every_script_named_exists(script):
    assert (ROOT / script).is_file()


def links():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            yield path.relative_to(ROOT).as_posix(), link


@pytest.mark.parametrize(("document", "link"), sorted(set(links())))
def test_every_link_into_the_repository_leads_somewhere(document, link):
    assert ((ROOT / document).parent / link).exists()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_targets_named_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    texts = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(re.search(f"^{target}:", makefile, re.M) for target in re.findall(r"^    make ([\w-]+)", texts, re.M))


METHOD = '''"""Nudge: class features of the hand-written prompt, plus one learned vector."""

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options


def extend_cfg(cfg):
    add_options(cfg, Nudge)


class Shift(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))


@TRAINER_REGISTRY.register()
class Nudge(FrozenCLIP):
    frozen_texts = True

    def build(self):
        self.text_features = self.hand_written()
        return Shift(self.clip_model.visual.output_dim)

    def class_features(self):
        return self.text_features + self.learned.shift
'''


def test_the_four_steps_add_a_method(tmp_path):
    """Steps 1 to 3 in a copy of the repository, then the command that the README gives; step 4 is a test's row."""
    steps = README.split("## Add a method in four steps")[1].split("\n## ")[0]
    assert all(word in steps for word in ("trainers/<method>.py", "`METHODS`", "vit_b16.yaml", "test_contract.py"))
    copy = tmp_path / "copy"
    names = [name for name in tracked() if not name.startswith("tests/")]
    if not names:
        pytest.skip("needs a git checkout, to know which files belong to the project")
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    (copy / "trainers/nudge.py").write_text(METHOD)
    listing = copy / "trainers/__init__.py"
    listing.write_text(listing.read_text().replace('    "coop",\n', '    "coop",\n    "nudge",\n', 1))
    recipe = copy / "configs/trainers/Nudge/vit_b16.yaml"
    recipe.parent.mkdir()
    recipe.write_text('# Nudge, a test\n_BASE_: "../../base/vit_b16.yaml"\n')
    command = ["bash", "scripts/protocols/base2new_train.sh", "emoji", "1", "OPTIM.MAX_EPOCH", "1"]
    environment = {"TRAINER": "Nudge", "SHOTS": "1", "PYTHON": sys.executable, "OUTPUT": str(tmp_path / "output")}
    run = subprocess.run(command, cwd=copy, env=os.environ | environment, text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "output/base2new/train_base/emoji/shots_1/Nudge/embedded/seed1/result.json").is_file()
