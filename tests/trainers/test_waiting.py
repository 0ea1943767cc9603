"""What runs in every step, extraction and test never makes the host wait for the device.

The device is PyTorch's "meta": it has shapes but no numbers, so whoever asks it for one, or for a shape that depends on
one (`.item()`, `float`, `nonzero`, a mask as index, a copy to the host), gets an error. Two modes refuse the rest.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dassl.engine import SimpleTrainer
from dassl.engine.logits import Keeper
from trainers import frozen
from trainers.parts.cache import FeatureCache
from trainers.parts.trainer import CLIPTrainer

from .test_contract import METHODS

META = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor}


class Waiting(AssertionError):
    """The host would wait for a GPU here."""


class OneDevice(TorchDispatchMode):
    """Refuses copies to the device that wait for it, and operations on tensors of two devices.

    `waits` has the questions for a size, which get an answer so that the rest can be looked at.
    """

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        numbers = [x for x in given if x.dim() or x.is_meta]  # a number of the host goes along with the kernel's call
        if operation in COPIES:
            if given[-1].device != (kwargs.get("device") or given[0].device) and not waits_not(operation, args, kwargs):
                raise Waiting(f"{operation} to another device without non_blocking")
        elif len({x.device for x in numbers}) > 1:
            raise Waiting(f"{operation} has tensors on {', '.join(str(x.device) for x in given)}")
        if operation == torch.ops.aten.nonzero.default and given[0].is_meta:
            self.waits.append("nonzero")
            return torch.empty(2, given[0].dim(), dtype=torch.long, device=META)
        if operation == torch.ops.aten._fused_sgd_.default:  # which has no version for meta
            return None
        return operation(*args, **kwargs)


def waits_not(operation, args, kwargs):
    """Whether a copy is made with non_blocking, which is the third argument of copy_."""
    return kwargs.get("non_blocking") or (operation == torch.ops.aten.copy_.default and args[2:] == (True,))


@contextlib.contextmanager
def no_waiting():
    waits = []
    with OneDevice(waits), NoNumbers():
        yield waits


class NoNumbers(TorchFunctionMode):
    """Refuses tensors that are made on the device out of Python's numbers, which are copied with a wait."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in FROM_NUMBERS and made.is_meta:
            raise Waiting(f"{function.__name__} makes a tensor on the device")
        return made


class Answers(TorchDispatchMode):
    """While a trainer is built, it may ask: every float is 1, every whole number and truth 0."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        asked = isinstance(args[0], torch.Tensor) and args[0].is_meta if args else False
        if asked and operation == torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 0
        if asked and operation == torch.ops.aten._to_copy.default and "cpu" in str((kwargs or {}).get("device")):
            return torch.full(args[0].shape, args[0].is_floating_point(), dtype=args[0].dtype)
        if asked and operation == torch.ops.aten.bincount.default:  # which has no version for meta
            return torch.zeros(8, dtype=torch.long, device=META)
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def make(make_trainer, monkeypatch):
    """make(method, KEY, VALUE, ...): its trainer on the meta device, before its first step, and a batch for it."""
    nowhere = property(lambda trainer: META, lambda trainer, device: None)
    monkeypatch.setattr(SimpleTrainer, "device", nowhere, raising=False)
    monkeypatch.setattr(CLIPTrainer, "autocast", lambda trainer: contextlib.nullcontext())  # it doesn't know "meta"

    monkeypatch.setattr(frozen, "ensemble", lambda: ["a {}", "the {}"])  # of 60

    def on_meta(method, *opts):
        prec = (f"TRAINER.{method.upper()}.PREC", "fp32")  # auto has a scaled loss, which meta doesn't know
        with Answers():
            trainer = make_trainer(method, *METHODS[method].opts, *prec, *opts)
        trainer.test_loader = [{"img": torch.zeros(2, 3, 32, 32), "label": torch.arange(2)}]
        trainer.idle_parameters = list  # what has no numbers can't be kept in a file
        trainer.epoch = trainer.batch_idx = 0
        trainer.num_batches = 3
        if trainer._models:
            loader = trainer.train_loader_x
            loader.extract = lambda view: torch.zeros(32, 32)
            with Answers():
                trainer.before_train()
        return trainer

    return on_meta


def batch_of(trainer):
    """What the trainer's loader gives, with features of the right shape where it would extract them."""
    loader = trainer.train_loader_x
    if not isinstance(loader, FeatureCache):
        return next(iter(loader))
    shape = loader.encode(torch.zeros(4, 3, 32, 32)).shape
    return {"features": torch.zeros(shape), "label": torch.arange(4)}


@pytest.mark.parametrize("method", METHODS)
def test_no_step_extraction_or_test_waits(method, make, monkeypatch):
    trainer = make(method, "TRAINER.SKIPTUNING.SCOPE", "batch")
    if trainer._models:
        batch = batch_of(trainer)
        with no_waiting() as waits:
            if isinstance(trainer.train_loader_x, FeatureCache):
                assert trainer.train_loader_x.encode(torch.zeros(4, 3, 32, 32)).is_meta
            assert method == "TipAdapter" or trainer.forward_backward(batch)["loss"].is_meta
        assert waits == []
    monkeypatch.setattr(trainer.evaluator, "evaluate", lambda: {"accuracy": 1.0})  # there the host wants to know
    with no_waiting() as waits:
        assert trainer.test() == 1.0
    assert waits == []


@pytest.mark.parametrize("method", ["SkipTuning", "MaPLe"])
def test_no_step_in_half_precision_waits(method, make):
    scope = ("TRAINER.SKIPTUNING.SCOPE", "batch")
    trainer = make(method, f"TRAINER.{method.upper()}.PREC", "bf16", *scope)
    batch = batch_of(trainer)
    with no_waiting() as waits:
        assert trainer.forward_backward(batch)["loss"].is_meta
    assert waits == []


def test_a_step_in_image_scope_waits_once_for_the_number_of_classes(make):
    trainer = make("SkipTuning", "TRAINER.SKIPTUNING.SCOPE", "image")
    batch = batch_of(trainer)
    with no_waiting() as waits:
        trainer.forward_backward(batch)
    assert waits == ["nonzero"]


def test_a_cache_on_the_device_is_filled_and_read_without_waiting(make):
    trainer = make("SkipTuning", "TRAINER.SKIPTUNING.SCOPE", "batch", "TRAINER.SKIPTUNING.CACHE_ON_DEVICE", "0.1")
    loader = trainer.train_loader_x
    del loader.extract  # the fixture's
    with no_waiting() as waits:
        loader.cached.clear()
        loader.start_epoch(0)
        batches = list(loader)
        assert trainer.forward_backward(batches[0])["loss"].is_meta
    assert waits == [] and len(batches) == 8
    assert loader.features.is_meta and all(batch["features"].is_meta for batch in batches)


@pytest.mark.parametrize(("share", "place"), [(1.0, "meta"), (0.99, "cpu")])
def test_only_views_that_fit_together_stay_on_the_device(share, place, make):
    loader = make("SkipTuning", "TRAINER.SKIPTUNING.VIEWS", "3").train_loader_x
    part = torch.empty(4, 5, 6, device=META)
    loader.on_device = share * 3 * 32 * 5 * 6 * 4  # bytes of three views of 32 images
    assert loader.room(part).device.type == place
    assert loader.room(torch.empty(4, 5, 6)).device.type == "cpu"


def test_logits_that_are_kept_wait_for_nothing_before_the_end():
    keeper = Keeper(None)
    with no_waiting() as waits:
        keeper.process(torch.zeros(2, 8, device=META), torch.zeros(2, dtype=torch.long, device=META))
    assert waits == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda x, host: x.sum().item(),
        lambda x, host: float(x[0]),
        lambda x, host: bool(x.isfinite().all()),
        lambda x, host: x.cpu(),
        lambda x, host: x[x > 0],
        lambda x, host: host.to(META),
        lambda x, host: x.copy_(host),
        lambda x, host: x[host.long()],
        lambda x, host: x @ host,
        lambda x, host: torch.tensor([1.0], device=META),
        lambda x, host: x.new_tensor([1.0]),
    ],
)
def test_whoever_waits_is_found(wait):
    """So that the tests above mean something."""
    x, host = torch.zeros(3, device=META), torch.zeros(3)
    with pytest.raises((Waiting, RuntimeError, NotImplementedError)), no_waiting():
        wait(x, host)
    with no_waiting():
        x.copy_(host.to(META, non_blocking=True) * torch.tensor(2.0)).masked_fill_(x > 0, 1.0)
