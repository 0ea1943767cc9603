"""The README's tree, commands and links are what is in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def tree():
    """Paths in the README's tree, folders with a slash at the end."""
    block = README.split("## What is where")[1].split("```")[1]
    folder = ""
    for line in block.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            yield name
        else:
            yield folder + name


def tracked(*patterns):
    return subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, text=True, capture_output=True).stdout.split()


@pytest.mark.parametrize("path", list(tree()))
def test_everything_in_the_tree_exists(path):
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_every_top_level_folder_and_the_files_of_the_method_are_in_the_tree():
    files = tracked()
    if not files:
        pytest.skip("needs a git checkout, to know which files belong to the project")
    shown = set(tree())
    folders = {path.split("/")[0] + "/" for path in files if "/" in path and not path.startswith(".")}
    assert folders <= shown
    modules = {path for path in tracked("clip/*.py", "trainers/*.py") if not path.endswith("__init__.py")}
    assert modules <= shown
    assert {"/".join(path.split("/")[:2]) + "/" for path in tracked("dassl/*/*")} <= shown


@pytest.mark.parametrize("script", sorted(set(re.findall(r"bash (\S+\.sh)", README))))
def test_every_script_named_exists(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_into_the_repository_leads_somewhere(link):
    assert (ROOT / link).exists()


def test_options_and_presets_named_exist():
    source = (ROOT / "trainers/skip_tuning.py").read_text()
    section = README.split("## Which Skip Tuning?")[1].split("## What it costs")[0]
    for option in re.findall(r"`([A-Z_]{3,})`", section):
        assert f"node.{option} = " in source or option in ("TRAINER", "CFG", "PRESET"), option
    for preset in re.findall(r"\| `(paper|official)`", section):
        for suffix in ("", "_few_shot", "_xd"):
            assert (ROOT / f"configs/trainers/SkipTuning/vit_b16_{preset}{suffix}.yaml").is_file()


def test_the_demo_table_is_there_with_all_three_methods():
    table = README.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    assert all(name in table for name in ("ZeroshotCLIP", "FinetuneCLIP", "SkipTuning"))


def test_targets_named_are_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(f"^{target}:", makefile, re.M) for target in re.findall(r"^    make (\w+)", README, re.M))
