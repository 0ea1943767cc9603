"""What every trainer promises. A new method adds one row to METHODS."""

import json

import pytest
import torch

from clip import clip
from dassl.engine.record import write_result
from dassl.utils import UserError

#          trainer          does it learn
METHODS = {"ZeroshotCLIP": False, "FinetuneCLIP": True, "SkipTuning": True}
LEARNERS = [name for name, learns in METHODS.items() if learns]
# What must hold to the byte holds in half precision too, with copies of the weights and with a file for the cache.
VARIANTS = [[], ["TRAINER.SKIPTUNING.PREC", "bf16", "TRAINER.SKIPTUNING.CACHE_LIMIT", "0.0"]]


def clip_weights(trainer):
    return {name: value.clone() for name, value in trainer.clip_model.state_dict().items()}


@pytest.mark.parametrize("method", METHODS)
def test_before_training_a_method_is_zero_shot_clip(method, make_trainer, random_clip):
    trainer = make_trainer(method)
    images = torch.randn(4, 3, 32, 32)
    trainer.test()
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        expected, _ = random_clip(images, clip.tokenize(prompts))
        logits = trainer.model_inference(images)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_its_numbers(method, make_trainer, tmp_path):
    trainer = make_trainer(method)
    trainer.train()
    write_result(trainer, "tiny")
    row = json.loads((tmp_path / "run" / "result.json").read_text())
    assert row["trainer"] == method and row["total"] == 16 and 0 <= row["accuracy"] <= 100
    learned = sum(p.numel() for p in trainer.deep.parameters()) if METHODS[method] else 0
    assert row["learned_parameters"] == learned


@pytest.mark.parametrize("method", LEARNERS)
def test_training_moves_what_is_learned_and_nothing_else(method, make_trainer):
    trainer = make_trainer(method)
    before = clip_weights(trainer)
    trainer.train()
    after = trainer.clip_model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    learned = {name for name, p in trainer.clip_model.named_parameters() if p.requires_grad}
    assert moved and moved <= learned
    assert {"text_projection", "visual.proj", "ln_final.weight", "visual.ln_post.weight"} <= moved
    assert not moved & {"logit_scale", "token_embedding.weight", "visual.conv1.weight", "visual.class_embedding"}


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("variant", VARIANTS, ids=["fp32", "bf16"])
def test_the_same_seed_gives_the_same_weights(method, variant, make_trainer, tmp_path):
    first, second = (make_trainer(method, *variant, "OUTPUT_DIR", str(tmp_path / name)) for name in ("one", "two"))
    for trainer in (first, second):
        torch.manual_seed(3)
        trainer.before_train()
        trainer.before_epoch()
        trainer.run_epoch()
    for name, value in first.deep.state_dict().items():
        assert torch.equal(value, second.deep.state_dict()[name]), name


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("variant", VARIANTS, ids=["fp32", "bf16"])
def test_what_was_saved_gives_the_same_logits_when_loaded(method, variant, make_trainer, tmp_path):
    trained = make_trainer(method, *variant)
    trained.train()
    loaded = make_trainer(method, *variant, "OUTPUT_DIR", str(tmp_path / "other"))
    loaded.load_model(str(tmp_path / "run"))
    loaded.test()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(trained.model_inference(images), loaded.model_inference(images))


@pytest.mark.parametrize("method", LEARNERS)
@pytest.mark.parametrize("variant", VARIANTS, ids=["fp32", "bf16"])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(method, variant, make_trainer, tmp_path):
    opts = ["OPTIM.MAX_EPOCH", "3", *variant]
    whole = make_trainer(method, *opts)
    whole.train()
    interrupted = make_trainer(method, *opts, "OUTPUT_DIR", str(tmp_path / "cut"))
    forward_backward = interrupted.forward_backward

    def interrupt(batch):
        if (interrupted.epoch, interrupted.batch_idx) == (2, 1):
            raise KeyboardInterrupt
        return forward_backward(batch)

    interrupted.forward_backward = interrupt
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    torch.manual_seed(99)
    resumed = make_trainer(method, *opts, "OUTPUT_DIR", str(tmp_path / "cut"))
    resumed.train()
    assert resumed.start_epoch == 2
    for name, value in whole.deep.state_dict().items():
        assert torch.equal(value, resumed.deep.state_dict()[name]), name


@pytest.mark.parametrize("method", LEARNERS)
def test_loss_falls(method, make_trainer):
    trainer = make_trainer(method, "OPTIM.MAX_EPOCH", "6", "INPUT.TRANSFORMS", '["normalize"]')
    losses = []
    forward_backward = trainer.forward_backward
    trainer.forward_backward = lambda batch: losses.append((out := forward_backward(batch))["loss"]) or out
    trainer.train()
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("method", METHODS)
def test_unknown_backbone_is_one_clear_error(method, make_trainer):
    with pytest.raises((UserError, OSError), match="ViT-B/16"):
        make_trainer(method, "MODEL.BACKBONE.NAME", "ViT-B-16")
