"""What every trainer promises. A new method adds one row to METHODS."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch

from clip import clip
from clip.model import CLIP
from dassl.config import flatten
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.engine.logits import save_logits
from dassl.engine.result import learned_parameters, write_result
from dassl.utils import UserError
from results import openworld


class Method(NamedTuple):
    parameters: int = 0  # learned at ViT-B/16 with the options `published`; 0: nothing learns
    starts_as_clip: bool = False  # before training it is zero-shot CLIP with "a photo of a {}."
    opts: tuple = ()  # of the short runs here
    published: tuple = ()  # of the parameter count
    exclusive: bool = False  # with new classes in the list, those it was trained on have other logits
    follow: tuple = ()  # ends of the names of CLIP's weights that are made anew from what is learned


LR = "OPTIM.LR"
ADAM = ("OPTIM.NAME", "adam", LR, "0.02")
TWO_EPOCHS = ("OPTIM.MAX_EPOCH", "2")
SHORT = ("OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "16")
DEEP = ("OPTIM.NAME", "adam", LR, "0.005")
TWO_VIEWS = ("DATALOADER.K_TRANSFORMS", "2")
DEPTHS = {  # of the tiny towers' three blocks
    node: (f"TRAINER.{node}.PROMPT_DEPTH_TEXT", "2", f"TRAINER.{node}.PROMPT_DEPTH_VISION", "3")
    for node in ("IVLP", "PROMPTSRC")
}
METHODS = {
    "ZeroshotCLIP": Method(0, True),
    "FinetuneCLIP": Method(123_540_992, True),
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
        opts=(*DEEP, *TWO_VIEWS, "TRAINER.COPROMPT.PROMPT_DEPTH", "2"),
        published=(*TWO_VIEWS, "TRAINER.COPROMPT.N_CTX", "4", "TRAINER.COPROMPT.PROMPT_DEPTH", "12"),
    ),
    "DePT": Method(2_048 + 2_048 + 513 * 8, opts=(*ADAM, "TRAINER.KGCOOP.W", "0.5"), exclusive=True),  # 8 classes
    "MMRL": Method(4_992_256, opts=(*DEEP, "TRAINER.MMRL.FIRST_LAYER", "2"), exclusive=True),
    "MMRLpp": Method(813_312, opts=(*DEEP, "TRAINER.MMRLPP.FIRST_LAYER", "2"), exclusive=True),
    "TipAdapter": Method(0),
    "TipAdapterF": Method(32 * 512, opts=ADAM),  # 32 images
    "TwoSFS": Method(65_536 + 8 * 512, True, opts=(*ADAM, *TWO_EPOCHS)),
    "CLIPSVD": Method(
        92_160, True, opts=DEEP, follow=("proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")
    ),
    "ProLIP": Method(768 * 512, True, opts=DEEP),
    "LPpp": Method(8 * 512 + 8 + 8, True, opts=(LR, "1.0", "TRAINER.LPPP.ALPHA_STEPS", "1")),
}
TUNED = [name for name in METHODS if hasattr(TRAINER_REGISTRY.get(name), "tuned_clip")]
LEARNERS = [name for name, method in METHODS.items() if method.parameters]
PIXELS = ("INPUT.TRANSFORMS", '["normalize"]')  # no random crops


@pytest.fixture
def make(make_trainer):
    """make(method, KEY, VALUE, ...): its trainer for one epoch of two steps, with the options of its row."""
    return lambda method, *opts: make_trainer(method, *SHORT, *METHODS[method].opts, *opts)


@pytest.fixture(scope="module", params=METHODS)
def whole(request, make_trainer_in, tmp_path_factory):
    """A method's trainer after two epochs, with `method`, `folder` and `before`: its parameters as they were."""
    method, folder = request.param, tmp_path_factory.mktemp("whole")
    trainer = make_trainer_in(folder, method, *SHORT, *METHODS[method].opts, *TWO_EPOCHS)
    before = {name: p.detach().clone() for name, p in parameters(trainer).items()}
    trainer.train()
    return SimpleNamespace(method=method, folder=folder, trainer=trainer, before=before)


@pytest.fixture(scope="module", params=METHODS)
def halves(request, make_trainer_in, tmp_path_factory):
    """A method's `trainers` for base, new and all classes, all with the weights of the first; `method`, `folder`."""
    method, folder, trainers = request.param, tmp_path_factory.mktemp("halves"), {}
    for classes in ("base", "new", "all"):
        options = (*SHORT, *METHODS[method].opts, "DATASET.SUBSAMPLE_CLASSES", classes)
        trainers[classes] = make_trainer_in(folder / classes, method, *options)
        if classes == "base":
            trainers[classes].train()
        else:
            trainers[classes].load_model(str(folder / "base"))
    return SimpleNamespace(method=method, folder=folder, trainers=trainers)


whole_learner = pytest.mark.parametrize("whole", LEARNERS, indirect=True)


def parameters(trainer):
    """All there are, of CLIP and what learns, by name."""
    modules = [trainer.clip_model, *trainer._models.values()]
    return {f"{i}.{name}": p for i, module in enumerate(modules) for name, p in module.named_parameters()}


def learned(trainer):
    """The one module that is registered, trained and saved."""
    (module,) = trainer._models.values()
    return module


def logits(trainer, images):
    return trainer.logits(images)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.starts_as_clip])
def test_before_training_a_method_is_zero_shot_clip(method, make, random_clip):
    trainer = make(method)
    images = torch.randn(4, 3, 32, 32)
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        expected, _ = random_clip(images, clip.tokenize(prompts))
    torch.testing.assert_close(logits(trainer, images), expected, rtol=1e-3, atol=1e-4)


def test_a_run_leaves_its_numbers(whole):
    write_result(whole.trainer)
    row = json.loads((whole.folder / "result.json").read_text())
    assert row["trainer"] == whole.method and row["total"] == 16 and 0 <= row["accuracy"] <= 100
    assert row["learned_parameters"] == (
        sum(p.numel() for p in learned(whole.trainer).parameters()) if whole.trainer._models else 0
    )


def shapes_of_svd(matrix, full_matrices):
    rank = min(matrix.shape)
    return matrix.new_empty(len(matrix), rank), matrix.new_empty(rank), matrix.new_empty(rank, matrix.shape[1])


@pytest.mark.parametrize("method", LEARNERS)
def test_at_vit_b16_as_many_parameters_learn_as_published(method, make_trainer, monkeypatch):
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    model.to_empty(device="cpu")  # the values don't matter
    monkeypatch.setattr(clip, "load", lambda *args, **kwargs: (model, None))
    monkeypatch.setattr(torch.linalg, "svd", shapes_of_svd)  # nor do these
    trainer = make_trainer(method, "INPUT.SIZE", "(224, 224)", *METHODS[method].published)
    assert learned_parameters(trainer) == METHODS[method].parameters


@whole_learner
def test_training_moves_all_that_is_learned_and_nothing_else(whole):
    ours = {id(p) for p in learned(whole.trainer).parameters()}
    follow = METHODS[whole.method].follow
    for name, p in parameters(whole.trainer).items():
        assert torch.equal(p, whole.before[name]) == (id(p) not in ours and not name.endswith(follow)), name


@whole_learner
def test_what_was_saved_gives_the_same_logits_when_loaded(whole, make):
    loaded = make(whole.method)
    loaded.load_model(str(whole.folder))
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(logits(whole.trainer, images), logits(loaded, images))


def test_what_the_base_classes_taught_serves_the_new_ones_whatever_others_are_there(halves):
    images = torch.randn(3, 3, 32, 32)
    found = {classes: logits(trainer, images) for classes, trainer in halves.trainers.items()}
    apart = torch.cat([found["base"], found["new"]], dim=1)
    compared = slice(4 if METHODS[halves.method].exclusive else 0, None)
    torch.testing.assert_close(found["all"][:, compared], apart[:, compared], rtol=1e-3, atol=1e-4)


def test_the_logits_that_both_halves_keep_are_those_of_one_model_of_all_classes(halves):
    (batch,) = halves.trainers["all"].test_loader
    expected = logits(halves.trainers["all"], batch["img"]).double().numpy()
    kept, runs = [], [halves.trainers[classes] for classes in ("base", "new")]
    for run in runs:
        run.test()
        save_logits(run, str(halves.folder / "base"))
        kept.append(openworld.read_half(Path(run.output_dir)))
    openworld.check_halves(*kept)
    np.testing.assert_allclose(np.concatenate([half.logits for half in kept]), expected, rtol=1e-3, atol=1e-2)
    assert [*kept[0].labels, *kept[1].labels] == batch["label"].tolist()
    for run, half in zip(runs, kept, strict=True):
        if run is runs[1] or not METHODS[halves.method].exclusive:
            assert openworld.right(half, half.own).sum() == run.evaluator.correct


@pytest.fixture
def interrupt(make, train_until):
    """interrupt(method, KEY, VALUE, ...): a run interrupted in its second epoch, which went on with these options."""

    def interrupt(method, *later):
        train_until(make(method, *TWO_EPOCHS), epoch=1, batch=1)
        torch.manual_seed(99)
        resumed = make(method, *TWO_EPOCHS, *later)
        resumed.train()
        assert resumed.start_epoch == 1
        return resumed

    return interrupt


@pytest.mark.parametrize("whole", TUNED, indirect=True)
def test_a_tuned_clip_gives_the_logits_unless_it_says_what_it_leaves_out(whole):
    trainer, images = whole.trainer, torch.randn(3, 3, 32, 32)
    names = trainer.dm.dataset.classnames
    prompts = clip.tokenize([trainer.template().format(name.replace("_", " ")) for name in names])
    with torch.no_grad():
        found, expected = trainer.tuned_clip()(images, prompts)[0], logits(trainer, images)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3) == (not trainer.left_out(names[:1]))
    assert not trainer.left_out(["a class that it doesn't know"])


@whole_learner
def test_a_run_of_the_same_seed_that_was_interrupted_ends_with_the_same_bytes(whole, interrupt):
    resumed = interrupt(whole.method)
    for name, value in learned(whole.trainer).state_dict().items():
        assert torch.equal(value, learned(resumed).state_dict()[name]), name


@pytest.mark.parametrize("whole", ["SkipTuning", "FinetuneCLIP"], indirect=True)  # from features; from images
def test_a_run_that_goes_on_with_another_number_of_workers_ends_with_the_same_bytes(whole, interrupt):
    resumed = interrupt(whole.method, "DATALOADER.NUM_WORKERS", "2")
    assert whole.trainer.cfg.DATALOADER.NUM_WORKERS == 0
    for name, value in learned(whole.trainer).state_dict().items():
        assert torch.equal(value, learned(resumed).state_dict()[name]), name


@pytest.mark.parametrize("method", LEARNERS)
def test_the_loss_falls(method, make):
    """That of one batch, in sixteen steps on it: which images come last has no part in it."""
    trainer = make(method, *TWO_EPOCHS, "DATALOADER.TRAIN_X.BATCH_SIZE", "4", *PIXELS)
    trainer.before_train()
    trainer.epoch = 0
    trainer.before_epoch()
    trainer.train_loader_x = [next(iter(trainer.train_loader_x))] * 16
    losses = []
    forward_backward = trainer.forward_backward

    def record(batch):
        summary = forward_backward(batch)
        losses.append(float(summary.get("ce", summary["loss"])))
        return summary

    trainer.forward_backward = record
    trainer.run_epoch()
    assert len(losses) == 16 and all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize("method", LEARNERS)
def test_no_step_brings_offloaded_weights_back(method, make):
    """On a GPU each step would wait for their copy."""
    trainer = make(method)
    trainer.before_train()
    trainer.epoch = trainer.batch_idx = 0
    trainer.before_epoch()
    batch = next(iter(trainer.train_loader_x))
    trainer.num_batches, brought = 2, []
    trainer.offload.bring_back = lambda: brought.append(method)
    trainer.forward_backward(batch)
    assert trainer.offload.places and not brought


@pytest.mark.parametrize("method", METHODS)
def test_bf16_trains_and_its_logits_are_near_those_of_fp32(method, make):
    prec = f"TRAINER.{method.upper()}.PREC"
    images = torch.randn(3, 3, 32, 32)
    exact, trainer = logits(make(method, prec, "fp32"), images), make(method, prec, "bf16")
    torch.testing.assert_close(logits(trainer, images), exact, rtol=0.1, atol=0.1 * exact.std().item())
    trainer.train()
    assert torch.isfinite(logits(trainer, images)).all()
    if trainer._models:
        assert {p.dtype for p in learned(trainer).parameters()} <= {torch.float32}


def first_gradient(trainer):
    """Of all that learns in the first step, as one vector."""
    trainer.before_train()
    trainer.epoch = 0
    trainer.before_epoch()
    _, terms = trainer.loss(*trainer.parse_batch_train(next(iter(trainer.train_loader_x))))
    sum(terms.values()).backward()
    return torch.cat([p.grad.flatten() for p in learned(trainer).parameters() if p.grad is not None])


@pytest.mark.parametrize("method", ["MMRL", "MMRLpp", "CLIPSVD", "TwoSFS", "ProLIP"])
def test_the_first_gradient_in_half_precision_is_near_that_of_fp32(method, make, tmp_path):
    def gradient(precision):
        where = "OUTPUT_DIR", str(tmp_path / precision)
        return first_gradient(make(method, *PIXELS, *where, f"TRAINER.{method.upper()}.PREC", precision))

    exact, *others = map(gradient, ("fp32", "amp", "fp16", "bf16"))
    assert exact.abs().max() > 0
    for found in others:
        assert found.dtype == torch.float32 and torch.cosine_similarity(exact, found, dim=0) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_unknown_backbone_is_one_clear_error(method, make):
    with pytest.raises((UserError, OSError), match="ViT-B/16"):
        make(method, "MODEL.BACKBONE.NAME", "ViT-B-16")


@pytest.mark.parametrize("method", METHODS)
def test_unknown_precision_is_an_error_that_lists_the_others(method, make):
    node = method.upper()
    with pytest.raises(UserError, match=f"TRAINER.{node}.PREC is 'int8': choose one of auto, fp32, bf16"):
        make(method, f"TRAINER.{node}.PREC", "int8")


@pytest.mark.parametrize("method", METHODS)
def test_numbers_out_of_their_range_are_named_with_what_is_allowed(method, make_cfg):
    trainer = TRAINER_REGISTRY.get(method)
    for key, limits in trainer.limits.items():
        too_much = [limits.high + 1] if math.isfinite(limits.high) else []
        for value in (-1, None, "1", True, float("nan"), limits.low - 1, *too_much):
            cfg = make_cfg(method, *METHODS[method].opts)
            cfg.TRAINER[method.upper()][key] = value
            with pytest.raises(UserError, match=f"TRAINER.{method.upper()}.{key} is .*: it must be a "):
                build_trainer(cfg)


def test_every_trainer_has_its_row(make_cfg):
    nodes = {key.split(".")[1] for key in flatten(make_cfg("")) if key.startswith("TRAINER.") and key.endswith(".PREC")}
    assert nodes == {name.upper() for name in METHODS}
