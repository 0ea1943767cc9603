"""What comes with the code: the embedded dataset's promises, and how well the embedded model knows it."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import train

ROOT = Path(__file__).parents[1]
DATA = ROOT / "datasets" / "emoji_data"
SPLIT = json.loads((DATA / "split_emoji.json").read_text())
COMPANIES = {  # who draws a set
    "twemoji": "Twitter",
    "openmoji": "OpenMoji",
    "noto": "Google",
    "noto-v1": "Google",
    "emojione": "Emoji One",
    "emojione-v1": "Emoji One",
    "emojione-monotone": "Emoji One",
    "fluent-emoji": "Microsoft",
    "fluent-emoji-flat": "Microsoft",
    "fluent-emoji-high-contrast": "Microsoft",
    "fxemoji": "Mozilla",
    "streamline-emojis": "Streamline",
}


def drawn_by(part):
    return {re.sub(r"(-\d)?\.png$", "", path.split("/")[1]) for path, _, _ in SPLIT[part]}


def test_test_pictures_are_drawn_by_other_companies_than_training_pictures():
    train_companies, test_companies = ({COMPANIES[name] for name in drawn_by(part)} for part in ("train", "test"))
    assert not train_companies & test_companies
    assert not drawn_by("train") & drawn_by("val")


def test_every_class_has_four_training_three_test_and_one_to_four_validation_pictures():
    counts = {part: Counter(label for _, label, _ in rows) for part, rows in SPLIT.items()}
    classes = set(range(431))
    assert classes == set(counts["train"]) == set(counts["val"]) == set(counts["test"])
    assert [set(counts[part].values()) for part in ("train", "val", "test")] == [{4}, {1, 2, 3, 4}, {3}]


def test_pictures_on_disk_are_those_of_the_split_and_small():
    named = {path for rows in SPLIT.values() for path, _, _ in rows}
    files = {path.relative_to(DATA / "images").as_posix(): path for path in (DATA / "images").rglob("*.png")}
    assert named == set(files)
    assert sum(path.stat().st_size for path in files.values()) < 8e6


def test_every_vendor_is_named_with_a_licence():
    table = (DATA / "ATTRIBUTION.md").read_text()
    for vendor in drawn_by("train") | drawn_by("val") | drawn_by("test"):
        row = next(line for line in table.splitlines() if f"(`{vendor}`)" in line)
        assert re.search(r"\[(CC BY|Apache|MIT)[^]]*\]\(http", row), row


@pytest.mark.parametrize("classes", ["base", "new"])
def test_zero_shot_accuracy_leaves_room(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    code = train.main(
        ["--trainer", "ZeroshotCLIP"]
        + ["--config-file", "configs/trainers/ZeroshotCLIP/vit_b16.yaml", "configs/overlays/embedded.yaml"]
        + ["--dataset-config-file", "configs/datasets/emoji.yaml", "--output-dir", str(tmp_path)]
        + ["DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", classes]
    )
    assert code == 0
    assert 25 < json.loads((tmp_path / "result.json").read_text())["accuracy"] < 75
