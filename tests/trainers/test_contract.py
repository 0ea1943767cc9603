"""What every trainer promises. A new method adds one row to METHODS."""

import json
import math
from typing import NamedTuple

import pytest
import torch

from clip import clip
from clip.model import CLIP
from dassl.config import flatten
from dassl.engine import memory
from dassl.engine.record import learned_parameters, write_result
from dassl.utils import UserError


class Method(NamedTuple):
    parameters: int = 0  # learned at ViT-B/16 with the options `published`; 0: nothing learns
    starts_as_clip: bool = False  # before training it is zero-shot CLIP with "a photo of a {}."
    opts: tuple = ()  # of the short runs here
    published: tuple = ()  # of the parameter count
    node: str = ""  # group of its options, if that isn't its own name
    exclusive: bool = False  # with new classes in the list, those it was trained on have other logits


LR = "OPTIM.LR"
ADAM = ("OPTIM.NAME", "adam", LR, "0.02")
SHORT = ("OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "8")
DEEP = ("OPTIM.NAME", "adam", LR, "0.005")
DEPTHS = {  # of the tiny towers' three blocks
    node: (f"TRAINER.{node}.PROMPT_DEPTH_TEXT", "2", f"TRAINER.{node}.PROMPT_DEPTH_VISION", "3")
    for node in ("IVLP", "PROMPTSRC")
}
METHODS = {
    "ZeroshotCLIP": Method(0, True),
    "FinetuneCLIP": Method(123_540_992, True, node="SKIPTUNING"),
    "SkipTuning": Method(62_099_456, True, published=("TRAINER.SKIPTUNING.OMEGA", "6")),
    "CoOp": Method(8_192, opts=ADAM),
    "CoCoOp": Method(35_360, opts=ADAM),
    "ProGrad": Method(8_192, opts=ADAM),
    "KgCoOp": Method(2_048, True, opts=(*ADAM, "TRAINER.KGCOOP.W", "0.5")),
    "CLIPAdapter": Method(131_072, opts=ADAM),
    "CLIPLoRA": Method(184_320, True, opts=ADAM),
    "MaPLe": Method(3_555_072, opts=(*DEEP, "TRAINER.MAPLE.PROMPT_DEPTH", "2")),
    "IVLP": Method(46_080, opts=(*DEEP, *DEPTHS["IVLP"])),
    "PromptSRC": Method(46_080, opts=(*DEEP, *DEPTHS["PROMPTSRC"])),
    "TCP": Method(331_904, opts=(*ADAM, "TRAINER.TCP.BLOCK", "2")),
    "CoPrompt": Method(
        5_014_528,
        opts=(*DEEP, "TRAINER.COPROMPT.PROMPT_DEPTH", "2"),
        published=("TRAINER.COPROMPT.N_CTX", "4", "TRAINER.COPROMPT.PROMPT_DEPTH", "12"),
    ),
    "DePT": Method(2_048 + 2_048 + 513 * 8, opts=(*ADAM, "TRAINER.KGCOOP.W", "0.5"), exclusive=True),  # 8 classes
    "TipAdapter": Method(0),
    "TipAdapterF": Method(32 * 512, opts=ADAM),  # 32 images
}
LEARNERS = [name for name, method in METHODS.items() if method.parameters]
PIXELS = ("INPUT.TRANSFORMS", '["normalize"]')  # no random crops


@pytest.fixture(autouse=True)
def memory_is_not_measured(monkeypatch):
    monkeypatch.setattr(memory, "STEPS", 0)  # it takes longer than the tiny runs


@pytest.fixture
def make(make_trainer):
    """make(method, KEY, VALUE, ...): its trainer for one epoch of four steps, with the options of its row."""
    return lambda method, *opts: make_trainer(method, *SHORT, *METHODS[method].opts, *opts)


def learned(trainer):
    """The one module that is registered, trained and saved."""
    (module,) = trainer._models.values()
    return module


def logits(trainer, images):
    trainer.test()
    with torch.no_grad():
        return trainer.model_inference(images)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.starts_as_clip])
def test_before_training_a_method_is_zero_shot_clip(method, make, random_clip):
    trainer = make(method)
    images = torch.randn(4, 3, 32, 32)
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        expected, _ = random_clip(images, clip.tokenize(prompts))
    torch.testing.assert_close(logits(trainer, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_numbers(method, make, tmp_path):
    trainer = make(method)
    trainer.train()
    write_result(trainer, "tiny")
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert row["trainer"] == method and row["total"] == 16 and 0 <= row["accuracy"] <= 100
    assert row["learned_parameters"] == (
        sum(p.numel() for p in learned(trainer).parameters()) if trainer._models else 0
    )


@pytest.mark.parametrize("method", LEARNERS)
def test_at_vit_b16_as_many_parameters_learn_as_published(method, make_trainer, monkeypatch):
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    model.to_empty(device="cpu")  # the values don't matter
    monkeypatch.setattr(clip, "load", lambda *args, **kwargs: (model, None))
    trainer = make_trainer(method, "INPUT.SIZE", "(224, 224)", *METHODS[method].published)
    assert learned_parameters(trainer) == METHODS[method].parameters


@pytest.mark.parametrize("method", LEARNERS)
def test_training_moves_all_that_is_learned_and_nothing_else(method, make):
    trainer = make(method)
    ours = {id(p) for p in learned(trainer).parameters()}
    tensors = [*learned(trainer).named_parameters(), *trainer.clip_model.named_parameters()]
    before = {name: p.detach().clone() for name, p in tensors}
    trainer.train()
    for name, p in tensors:
        assert torch.equal(p, before[name]) == (id(p) not in ours), name


@pytest.mark.parametrize("method", LEARNERS)
def test_the_same_seed_gives_the_same_weights(method, make, tmp_path):
    first, second = make(method), make(method, "OUTPUT_DIR", str(tmp_path / "second"))
    for trainer in (first, second):
        torch.manual_seed(3)
        trainer.before_train()
        trainer.before_epoch()
        trainer.run_epoch()
    for name, value in learned(first).state_dict().items():
        assert torch.equal(value, learned(second).state_dict()[name]), name


@pytest.mark.parametrize("method", LEARNERS)
def test_what_was_saved_gives_the_same_logits_when_loaded(method, make, tmp_path):
    trained = make(method)
    trained.train()
    loaded = make(method, "OUTPUT_DIR", str(tmp_path / "other"))
    loaded.load_model(str(tmp_path / "run"))
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(logits(trained, images), logits(loaded, images))


@pytest.mark.parametrize("method", LEARNERS)
def test_what_the_base_classes_taught_serves_the_new_ones_whatever_others_are_there(method, make, tmp_path):
    def trainer(classes):
        return make(method, "DATASET.SUBSAMPLE_CLASSES", classes, "OUTPUT_DIR", str(tmp_path / classes))

    trained = trainer("base")
    trained.train()
    images, found = torch.randn(3, 3, 32, 32), {}
    found["base"] = logits(trained, images)
    for classes in ("new", "all"):
        loaded = trainer(classes)
        loaded.load_model(str(tmp_path / "base"))
        found[classes] = logits(loaded, images)
    apart = torch.cat([found["base"], found["new"]], dim=1)
    compared = slice(4 if METHODS[method].exclusive else 0, None)
    torch.testing.assert_close(found["all"][:, compared], apart[:, compared], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", LEARNERS)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(method, make, tmp_path):
    opts = ["OPTIM.MAX_EPOCH", "2"]
    whole = make(method, *opts)
    whole.train()
    interrupted = make(method, *opts, "OUTPUT_DIR", str(tmp_path / "cut"))
    forward_backward = interrupted.forward_backward

    def interrupt(batch):
        if (interrupted.epoch, interrupted.batch_idx) == (1, 1):
            raise KeyboardInterrupt
        return forward_backward(batch)

    interrupted.forward_backward = interrupt
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    torch.manual_seed(99)
    resumed = make(method, *opts, "OUTPUT_DIR", str(tmp_path / "cut"))
    resumed.train()
    assert resumed.start_epoch == 1
    for name, value in learned(whole).state_dict().items():
        assert torch.equal(value, learned(resumed).state_dict()[name]), name


@pytest.mark.parametrize("method", LEARNERS)
def test_the_loss_falls(method, make):
    trainer = make(method, "OPTIM.MAX_EPOCH", "8", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *PIXELS)
    losses = []
    forward_backward = trainer.forward_backward

    def record(batch):
        summary = forward_backward(batch)
        losses.append(float(summary.get("ce", summary["loss"])))
        return summary

    trainer.forward_backward = record
    trainer.train()
    assert all(map(math.isfinite, losses))
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


@pytest.mark.parametrize("method", METHODS)
def test_bf16_trains_and_its_logits_are_near_those_of_fp32(method, make):
    prec = f"TRAINER.{METHODS[method].node or method.upper()}.PREC"
    images = torch.randn(3, 3, 32, 32)
    found = {value: logits(make(method, prec, value), images) for value in ("fp32", "bf16")}
    torch.testing.assert_close(found["bf16"], found["fp32"], rtol=0.1, atol=0.1 * found["fp32"].std().item())
    trainer = make(method, prec, "bf16")
    trainer.train()
    assert torch.isfinite(logits(trainer, images)).all()
    if trainer._models:
        assert {p.dtype for p in learned(trainer).parameters()} <= {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_unknown_backbone_is_one_clear_error(method, make):
    with pytest.raises((UserError, OSError), match="ViT-B/16"):
        make(method, "MODEL.BACKBONE.NAME", "ViT-B-16")


@pytest.mark.parametrize("method", METHODS)
def test_unknown_precision_is_an_error_that_lists_the_others(method, make):
    node = METHODS[method].node or method.upper()
    with pytest.raises(UserError, match=f"TRAINER.{node}.PREC is 'int8': choose one of auto, fp32, bf16"):
        make(method, f"TRAINER.{node}.PREC", "int8")


def test_every_trainer_has_its_row(make_cfg):
    nodes = {key.split(".")[1] for key in flatten(make_cfg("")) if key.startswith("TRAINER.") and key.endswith(".PREC")}
    assert nodes == {method.node or name.upper() for name, method in METHODS.items()}
