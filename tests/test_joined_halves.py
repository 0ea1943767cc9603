"""From two runs of train.py on your own images to the joined numbers, as docs/CALIBRATION.md has it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import parse_test_res
import train
from results import openworld

ROOT = Path(__file__).parents[1]
CLASSES = ("cat", "dog", "house", "sun", "tree")


@pytest.fixture
def images(tmp_path):
    """Five classes with two images to train on, one to validate and two to test."""
    noise = np.random.default_rng(0)
    for part, number in (("train", 2), ("val", 1), ("test", 2)):
        for name in CLASSES:
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def run(images, tmp_path, monkeypatch, capsys):
    """run(part, KEY VALUE ...): train.py for the base or new classes -> its folder, or its one line of error."""
    monkeypatch.chdir(ROOT)

    def run(part, *words, trainer="ZeroshotCLIP"):
        half = {"base": "train_base", "new": "test_new"}[part]
        folder = tmp_path / "output" / half / "custom/shots_2/ZeroshotCLIP/embedded/seed1"
        overlays = ["configs/overlays/embedded.yaml", "configs/overlays/base2new.yaml"]
        argv = ["--trainer", trainer, "--config-file", f"configs/trainers/{trainer}/vit_b16.yaml", *overlays]
        argv += ["--dataset-config-file", "configs/datasets/custom.yaml"]
        argv += ["--root", str(tmp_path), "--output-dir", str(folder)]
        flags = [word for word in words if word.startswith("--") or words[words.index(word) - 1] == "--model-dir"]
        pairs = [word for word in words if word not in flags]
        pairs += ["DATASET.IMAGES", str(images), "DATASET.NUM_SHOTS", "2", "DATALOADER.NUM_WORKERS", "0"]
        code = train.main([*argv, *flags, *pairs, "DATASET.SUBSAMPLE_CLASSES", part])
        out, err = capsys.readouterr()
        return folder if code == 0 else (err or out).strip().splitlines()[-1]

    return run


KEPT = ("TEST.SAVE_LOGITS", "True", "TEST.TEMPERATURE", "auto")


def test_two_halves_of_your_own_images_are_joined(run, tmp_path, capsys):
    base = run("base", *KEPT)
    new = run("new", "--eval-only", "--model-dir", str(base), *KEPT)
    halves = [openworld.read_half(folder) for folder in (base, new)]
    assert [half.classnames for half in halves] == [list(CLASSES)] * 2
    assert [half.own.tolist() for half in halves] == [[0, 1, 2], [3, 4]]
    assert halves[1].images == [f"test/{name}/{i}.png" for name in CLASSES[3:] for i in range(2)]
    results = [json.loads((folder / "result.json").read_text()) for folder in (base, new)]
    for half, result in zip(halves, results, strict=True):
        assert 100 * openworld.right(half, half.own).mean() == pytest.approx(result["accuracy"])
    assert [half.about["precision"] for half in halves] == [result["precision"] for result in results] != [None] * 2
    fitted = [result["calibration"]["temperature"] for result in results]
    assert [found["source"] for found in fitted] == ["val", "training"] and fitted[0]["value"] == fitted[1]["value"]
    assert results[0]["calibration"]["logit_scale"] == halves[0].about["logit_scale"] > 1
    assert parse_test_res.main([str(tmp_path / "output"), "--openworld"]) == 0
    out = capsys.readouterr().out
    assert "all classes at once, custom" in out and "OpenworldAUC: pairs" in out
    (new / "logits.npz").unlink()
    assert parse_test_res.main([str(tmp_path / "output"), "--openworld"]) == 1
    said = capsys.readouterr()
    assert "not joined with" in said.err and "OpenworldAUC" not in said.out  # no notes on tables that aren't there


@pytest.mark.parametrize(
    ("part", "words", "trainer", "why"),
    [
        ("base", ["TEST.SAVE_LOGITS", "True", "DATALOADER.TEST.SAMPLER", "RandomSampler"], "ZeroshotCLIP", "SAMPLER"),
        ("base", ["TEST.SAVE_LOGITS", "True", "TEST.NO_TEST", "True"], "ZeroshotCLIP", "TEST.NO_TEST leaves that out"),
        (
            "base",
            ["TEST.SAVE_LOGITS", "True", "TRAINER.COOP.CSC", "True"],
            "CoOp",
            "CSC learns nothing for other classes",
        ),
        ("new", ["--eval-only", "TEST.TEMPERATURE", "auto"], "ZeroshotCLIP", "those here are of new classes"),
        ("base", ["TEST.TEMPERATURE", "-1"], "ZeroshotCLIP", "TEST.TEMPERATURE must be a number above 0"),
    ],
)
def test_what_can_not_be_is_refused_before_it_runs(run, part, words, trainer, why):
    assert why in run(part, *words, trainer=trainer)
