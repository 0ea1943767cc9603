"""What only a GPU can show. `make gpu-check` runs these tests and prints a table; nobody has run them so far.

The trainers are those of test_contract.py: a CLIP of 3 + 3 blocks, eight classes, batches of four images.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.memory import LiveTensors
from tests.shell import ROOT
from trainers.parts.cache import FeatureCache

from .test_clip_lora import NO_DROPOUT
from .test_contract import LEARNERS, METHODS, PIXELS, learned

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; `make gpu-check` where there is one"),
]
# Of a loss on the GPU, against fp32 on the CPU; and the cosine between what a step changed here and there.
ERROR = {"fp32": 1e-3, "bf16": 0.1, "amp": 0.02, "fp16_master": 0.02, "fp16": 0.02}
SAME_WAY = {"fp32": 0.99, "bf16": 0.8, "amp": 0.9, "fp16_master": 0.9, "fp16": 0.9}
PINNED = ("DATALOADER.NUM_WORKERS", "2")


@pytest.fixture
def start(make_trainer, tmp_path):
    """start(method, cuda, KEY, VALUE, ...): a trainer before its first step on the GPU or the CPU, and its batches."""

    def at_first_step(method, cuda, *opts):
        folder = ("OUTPUT_DIR", str(tmp_path / ("cuda" if cuda else "cpu")), "USE_CUDA", str(cuda))
        trainer = make_trainer(method, *METHODS[method].opts, "TRAINER.SKIPTUNING.SCOPE", "batch", *folder, *opts)
        assert trainer.device.type == ("cuda" if cuda else "cpu")
        if trainer.scaler.is_enabled():  # at the default of 65536 the tiny CLIP's gradients overflow: no first step
            trainer.scaler = torch.amp.GradScaler(trainer.device.type, init_scale=1024.0)
        trainer.before_train()
        trainer.epoch = trainer.batch_idx = 0
        trainer.before_epoch()
        trainer.num_batches = 5  # so that none of the first four is the last
        return trainer, list(trainer.train_loader_x)

    return at_first_step


def change(trainer, batches):
    """The loss of a step, and how far it moved each number that is learned."""
    before = copy.deepcopy(learned(trainer).state_dict())
    loss = trainer.forward_backward(batches[0])["loss"].item()
    moved = [(p.detach() - before[name]).double().flatten().cpu() for name, p in learned(trainer).named_parameters()]
    return loss, torch.cat(moved)


def steps(trainer, batches, number=1):
    for batch in batches[:number]:
        trainer.forward_backward(batch)
    torch.cuda.synchronize()


@pytest.mark.parametrize(
    ("method", "precision"),
    [(name, prec) for name in LEARNERS for prec in ERROR if prec in TRAINER_REGISTRY.get(name).precisions],
)
def test_a_step_equals_the_cpus(method, precision, start, record_property):
    prec, opts = f"TRAINER.{method.upper()}.PREC", (*PIXELS, *NO_DROPOUT)  # which draws on the device
    loss, moved = change(*start(method, True, *opts, prec, precision))
    expected, direction = change(*start(method, False, *opts, prec, "fp32"))
    record_property("difference", f"{abs(loss / expected - 1):.1e}")
    assert loss == pytest.approx(expected, rel=ERROR[precision])
    if precision != "fp16" or method not in ("SkipTuning", "FinetuneCLIP"):  # whose fp16 weights lose small updates
        cosine = torch.nn.functional.cosine_similarity(moved, direction, dim=0).item()
        record_property("cosine", f"{cosine:.4f}")
        assert cosine > SAME_WAY[precision]


def test_a_scaled_loss_that_overflows_leaves_the_weights_alone(start):
    trainer, batches = start("SkipTuning", True, "TRAINER.SKIPTUNING.PREC", "amp")
    assert trainer.scaler.is_enabled()
    trainer.scaler.scale(torch.zeros((), device="cuda"))  # makes the scale
    trainer.scaler._scale.fill_(1e38)
    _, moved = change(trainer, batches)
    assert not moved.any() and trainer.scaler.get_scale() == pytest.approx(0.5e38)


@pytest.mark.parametrize("method", LEARNERS)
def test_no_step_waits_for_the_device(method, start):
    """In the precision that the trainer takes by itself: amp, or fp16 with a scaled loss."""
    trainer, batches = start(method, True)
    steps(trainer, batches, 2)  # the first ones make the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.forward_backward(batches[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_peak_memory_is_what_the_cpus_meter_counts_and_what_libraries_need(start, record_property):
    prec = ("TRAINER.SKIPTUNING.PREC", "fp32")
    trainer, batches = start("SkipTuning", True, *prec)
    for batch in batches[:2]:
        with trainer.memory.step(trainer.device):
            trainer.forward_backward(batch)
    on_cpu, batches = start("SkipTuning", False, *prec)
    on_cpu.forward_backward(batches[0])
    with LiveTensors() as live:
        on_cpu.forward_backward(batches[1])
    record_property("MB", f"{trainer.memory.mb:.0f} of {live.peak / 1e6:.0f}")
    assert 0 < trainer.memory.mb < 1.2 * live.peak / 1e6 + 100  # cuBLAS keeps a workspace


@pytest.mark.parametrize("method", ["SkipTuning", "MMRL"])
def test_a_cache_on_the_device_trains_as_one_on_the_cpu(method, start):
    option = f"TRAINER.{method.upper()}.CACHE_ON_DEVICE"
    moved = {}
    for limit, device in {"0.0": "cpu", "1.0": "cuda"}.items():
        trainer, batches = start(method, True, option, limit, f"TRAINER.{method.upper()}.PREC", "fp32")
        assert trainer.train_loader_x.features.device.type == batches[0]["features"].device.type == device
        moved[device] = change(trainer, batches)[1]
        torch.cuda.set_sync_debug_mode("error")
        try:
            next(iter(trainer.train_loader_x))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(moved["cuda"], moved["cpu"])


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_goes_on_on_the_other_device(first, make_trainer, train_until, tmp_path):
    def trainer(cuda, folder):
        opts = ("USE_CUDA", str(cuda), "OUTPUT_DIR", str(tmp_path / folder), "TRAINER.SKIPTUNING.PREC", "fp32")
        return make_trainer("SkipTuning", *opts)

    whole = trainer(False, "whole")
    whole.train()
    train_until(trainer(first == "cuda", "moved"), epoch=1, batch=1)
    resumed = trainer(first == "cpu", "moved")
    resumed.train()
    assert resumed.start_epoch == 1
    for name, p in learned(whole).state_dict().items():
        torch.testing.assert_close(learned(resumed).state_dict()[name].cpu(), p, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["MaPLe", "SkipTuning"])
def test_batches_come_in_pinned_memory(method, start):
    trainer, batches = start(method, True, *PINNED)
    loader = trainer.train_loader_x
    images = next(iter(loader.images(0) if isinstance(loader, FeatureCache) else loader))["img"]
    assert images.is_pinned()
    assert next(iter(trainer.test_loader))["img"].is_pinned()


def test_the_embedded_model_trains_and_tests(tmp_path, record_property):
    command = [sys.executable, "train.py", "--trainer", "SkipTuning", "--device", "cuda", "--output-dir", str(tmp_path)]
    command += ["--config-file", "configs/trainers/SkipTuning/embedded.yaml"]
    command += ["--dataset-config-file", "configs/datasets/emoji.yaml", "DATASET.NUM_SHOTS", "4", "SEED", "1"]
    subprocess.run(command, cwd=ROOT, check=True)
    result = json.loads((tmp_path / "result.json").read_text())
    record_property("accuracy", f"{result['accuracy']:.1f}")
    record_property("train s", f"{result['seconds']['train']:.1f}")
    assert result["accuracy"] > 30 and result["peak_memory_mb"] > 0


def test_the_demo_runs(tmp_path, record_property):
    env = {**os.environ, "OUTPUT": str(tmp_path), "SEEDS": "1", "PYTHON": sys.executable}
    done = subprocess.run(["bash", "scripts/demo.sh"], cwd=ROOT, check=True, capture_output=True, text=True, env=env)
    record_property("row", [line for line in done.stdout.splitlines() if line.startswith("SkipTuning")][-1])
    devices = {json.loads(path.read_text())["device"] for path in tmp_path.rglob("result.json")}
    assert devices == {"cuda"}
