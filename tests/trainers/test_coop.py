"""CoOp's formula (Eq. 2 and 3) against a plain re-computation, and its class-specific contexts."""

import pytest
import torch
import torch.nn.functional as F

from clip import clip
from dassl.utils import UserError


def plain_logits(model, images, names, ctx):
    """CLIP's logits with ctx (m, D) as the m first words of every prompt, through CLIP's own towers."""
    m = len(ctx)
    tokens = clip.tokenize([" ".join(["X"] * m) + f" {name}." for name in names])

    def edit(i, x):
        vectors = (ctx + model.positional_embedding[1 : 1 + m])[:, None].expand(-1, len(names), -1)
        return x if i else torch.cat([x[:1], vectors, x[1 + m :]])

    text, image = model.encode_text(tokens, edit=edit), model.encode_image(images)
    return model.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()


def test_loss_and_gradient_are_those_of_the_formula(make_trainer, random_clip):
    trainer = make_trainer("CoOp", "TRAINER.COOP.N_CTX", "5")
    ctx = trainer.learned.ctx
    assert ctx.shape == (5, 64) and 0.01 < ctx.std() < 0.03
    images, label = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 7])
    _, terms = trainer.loss(trainer.frozen_features(images), label)
    expected = F.cross_entropy(plain_logits(random_clip, images, trainer.classnames, ctx), label)
    torch.testing.assert_close(terms["ce"], expected, rtol=1e-4, atol=1e-4)
    found, plain = (torch.autograd.grad(loss, ctx)[0] for loss in (terms["ce"], expected))
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


def test_a_step_is_made_by_the_optimizer_of_the_config(make_trainer):
    trainer = make_trainer("CoOp", "OPTIM.LR", "0.1", "OPTIM.MOMENTUM", "0.0", "OPTIM.WEIGHT_DECAY", "0.0")
    ctx, features, label = trainer.learned.ctx, torch.randn(4, 32), torch.tensor([0, 1, 2, 3])
    gradient = torch.autograd.grad(trainer.loss(features, label)[1]["ce"], ctx)[0]
    before = ctx.detach().clone()
    trainer.batch_idx, trainer.num_batches = 0, 2
    trainer.forward_backward({"img": features, "label": label})
    torch.testing.assert_close(ctx.detach(), before - 0.1 * gradient)


def test_class_specific_contexts_are_one_for_each_class_and_refuse_other_classes(make_trainer, tmp_path):
    opts = ["TRAINER.COOP.CSC", "True", "DATASET.SUBSAMPLE_CLASSES"]
    trained = make_trainer("CoOp", *opts, "base")
    assert trained.learned.ctx.shape == (4, 16, 64)
    trained.train()
    make_trainer("CoOp", *opts, "base").load_model(str(tmp_path / "run"))
    new = make_trainer("CoOp", *opts, "new", "OUTPUT_DIR", str(tmp_path / "new"))
    with pytest.raises(UserError, match="CSC for the classes red box, green ball, blue, a very yellow thing"):
        new.load_model(str(tmp_path / "run"))


def test_a_context_learned_for_another_position_is_refused(make_trainer, tmp_path):
    make_trainer("CoOp").train()
    other = make_trainer("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front")
    with pytest.raises(UserError, match="CLASS_TOKEN_POSITION end, this run has front"):
        other.load_model(str(tmp_path / "run"))
    with pytest.raises(UserError, match="choose one of end, middle, front"):
        make_trainer("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "back")
