"""The habits of the house, where a machine can see them: proportion, no copies, directions of imports."""

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import tomllib
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "clip", "dassl", "datasets", "results", "trainers")
ALLOWED = {  # what each folder may import of ours, beside itself
    "clip": {"dassl"},
    "dassl": set(),
    "datasets": {"dassl"},
    "trainers": {"clip", "dassl", "datasets"},
    "results": {"dassl"},
}
MOST_LINES, LONGEST_FUNCTION, LONGEST_COPY = 450, 70, 8


def tracked(pattern):
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    names = subprocess.run(words, cwd=ROOT, text=True, capture_output=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


FILES = tracked("*.py")
if not FILES:
    pytest.skip("needs a git checkout, to know which files belong to the project", allow_module_level=True)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PRODUCT = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_too_long():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_too_long():
    long = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long[f"{name_of(path)}:{node.lineno} {node.name}"] = lines
    assert long == {}


def code_lines(path):
    """[(number, line)] without what any two files may share: blank lines, comments, imports, single brackets."""
    imports = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(range(node.lineno, node.end_lineno + 1))
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if number not in imports and not text.startswith("#") and re.search(r"\w", text):
            found.append((number, text))
    return found


def test_no_lines_are_written_twice():
    places = defaultdict(list)
    for path in PRODUCT:
        lines = code_lines(path)
        for start in range(len(lines) - LONGEST_COPY + 1):
            window = lines[start : start + LONGEST_COPY]
            places[tuple(text for _, text in window)].append(f"{name_of(path)}:{window[0][0]}")
    assert [where for where in places.values() if len(where) > 1] == []


@pytest.mark.parametrize("package", ALLOWED)
def test_nothing_is_imported_upwards(package):
    wrong = []
    for path in PRODUCT:
        if path.relative_to(ROOT).parts[0] != package:
            continue
        for node in ast.walk(TREES[path]):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top in PACKAGES and top not in ALLOWED[package] | {package}:
                    wrong.append(f"{name_of(path)}:{node.lineno} imports {name}")
    assert wrong == []


def test_a_part_never_imports_a_method():
    wrong = []
    for path in (ROOT / "trainers/parts").glob("*.py"):
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.module or "").startswith("trainers")):
                wrong.append(f"{name_of(path)}:{node.lineno}")
    assert wrong == []


def test_no_device_is_named_where_code_runs():
    """`.cuda(` breaks every machine without one; tensors go to `self.device`."""
    wrong = []
    for path in PRODUCT:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                wrong.append(f"{name_of(path)}:{node.lineno}")
    assert wrong == []


def test_hand_written_prompts_stand_in_one_table():
    """No recipe has a prompt of its own, but for the paper's, which is one for all datasets."""
    found = []
    for path in tracked("configs/*.yaml"):
        text = path.read_text(encoding="utf-8")
        found += [name_of(path) for line in text.splitlines() if "{}" in line.partition("#")[0]]
    assert set(found) == {"configs/templates.yaml", "configs/trainers/SkipTuning/vit_b16.yaml"}
    table = yaml.safe_load((ROOT / "configs/templates.yaml").read_text(encoding="utf-8"))
    for use, row in table["uses"].items():
        like = table["uses"].get(row.get("like"), {})
        again = [dataset for dataset in row if dataset in like and row[dataset] == like[dataset]]
        assert again == [], use


def test_there_are_few_recipes():
    assert len(tracked("configs/*.yaml")) <= 70


def test_requirements_are_those_of_the_project():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line.partition("#")[0].strip() for line in lines]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line for line in listed if line] == project["dependencies"]


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## {re.escape(version)},", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def test_documents_keep_to_the_width_of_the_code():
    """120 columns; tables, fenced blocks and links on a line of their own may be wider."""
    wrong = []
    for path in tracked("*.md"):
        fenced = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            fenced ^= line.startswith("```")
            free = fenced or line.startswith(("|", "<!--", "- [", "[")) or "](" in line
            if len(line) > 120 and not free:
                wrong.append(f"{name_of(path)}:{number}")
    assert wrong == []
