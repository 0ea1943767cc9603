"""swap_in.py on a real codebase of the family, in a copy:

    FORK=/path/to/CoOp [DASSL=/path/to/Dassl.pytorch] python -m pytest tests/upstream

With DASSL its Dassl is used (--engine theirs), else ours. Weights are a small random ViT in place of the download,
images coloured noise in the layout of EuroSAT; everything runs on the CPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import swap_in
from tests.swap.skeletons import make_images

RUN = """
import importlib, runpy, sys
weights, *sys.argv = sys.argv[1:]
sys.path[0] = ""
importlib.import_module("clip.clip")._download = lambda *args, **options: weights
runpy.run_path("train.py", run_name="__main__")
"""
# Upstream's Dassl augments with the global generator and its schedules crash on current PyTorch: neither is compared.
OPTIONS = """DATASET.NUM_SHOTS 4 DATASET.SUBSAMPLE_CLASSES {classes} INPUT.SIZE (32,32) INPUT.TRANSFORMS ["normalize"]
OPTIM.MAX_EPOCH 2 OPTIM.LR 0.01 OPTIM.WARMUP_EPOCH -1 DATALOADER.NUM_WORKERS 0 TRAIN.PRINT_FREQ 1
TRAINER.SKIPTUNING.OMEGA 1"""

pytestmark = pytest.mark.skipif("FORK" not in os.environ, reason="needs FORK=/path/to/a/fork (and DASSL=...)")


@pytest.fixture
def world(tmp_path, make_clip):
    """Pictures in EuroSAT's layout, weights, and what to call `train.py` with."""
    make_images(tmp_path / "pictures")
    split = json.loads((tmp_path / "pictures/split.json").read_text())
    (tmp_path / "data/eurosat").mkdir(parents=True)
    (tmp_path / "pictures").rename(tmp_path / "data/eurosat/2750")
    split = {"train": split["train"], "val": split["test"], "test": split["test"]}
    (tmp_path / "data/eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(split))
    torch.save(make_clip(embed_dim=32).half().state_dict(), tmp_path / "ViT-B-16.pt")
    return tmp_path


def train(world, root, name, flags, classes, *more):
    """-> (losses, accuracies) that train.py in `root` prints."""
    files = ["--config-file", "configs/trainers/SkipTuning/vit_b16.yaml"]
    files += ["--dataset-config-file", "configs/datasets/eurosat.yaml", "--root", world / "data"]
    command = [sys.executable, "-W", "ignore", "-c", RUN, world / "ViT-B-16.pt", "train.py", *files, *flags, *more]
    command += [
        "--trainer",
        "SkipTuning",
        "--seed",
        "1",
        "--output-dir",
        world / name,
        *OPTIONS.format(classes=classes).split(),
    ]
    run = subprocess.run([str(word) for word in command], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-2000:]
    return re.findall(r" loss ([\d.]+)", run.stdout), re.findall(r"^\* accuracy: (\S+?)%", run.stdout, re.M)


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path: path.read_bytes() for path in files if ".git" not in path.parts}


def test_a_real_fork_trains_and_tests_as_we_do_and_is_restored(world, monkeypatch):
    fork = world / "fork"
    shutil.copytree(os.environ["FORK"], fork, symlinks=True)
    before, engine = files_of(fork), "ours"
    if "DASSL" in os.environ:
        engine = "theirs"
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, [os.environ["DASSL"], os.environ.get("PYTHONPATH")]))
        )
    assert swap_in.main([str(fork), "--engine", engine]) == 0
    root = swap_in.find_root(fork)
    flags = swap_in.recognise(root).flags.split()
    losses, accuracy = train(world, root, "theirs", flags, "base")
    _, tested = train(world, root, "tested", flags, "new", "--eval-only", "--model-dir", world / "theirs")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    ours, expected = train(world, Path(swap_in.HERE), "ours", [], "base")
    _, expected_new = train(
        world, Path(swap_in.HERE), "ours_new", [], "new", "--eval-only", "--model-dir", world / "ours"
    )
    assert len(ours) == 6 and list(map(float, losses)) == pytest.approx(list(map(float, ours)), abs=2e-4)
    assert [float(a) for a in accuracy + tested] == pytest.approx(
        [float(a) for a in expected + expected_new], abs=0.051
    )
    assert swap_in.main([str(fork), "--undo"]) == 0
    assert files_of(fork) == before
