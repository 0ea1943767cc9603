"""ProGrad's gradient (Eq. 5), its teacher and its first context, against plain re-computations."""

import pytest
import torch
import torch.nn.functional as F

from clip import clip
from trainers.parts.prompts import word_vectors
from trainers.prograd import project


@pytest.mark.parametrize("weight", [1.0, 0.8])
def test_what_works_against_the_general_gradient_is_taken_away(weight):
    general = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    against = torch.tensor([[3.0, -4.0], [1.0, 0.0]])
    expected = torch.tensor([[3.0, -4.0 * (1 - weight)], [1.0, 0.0]])
    torch.testing.assert_close(project(against, general, weight), expected)
    assert torch.equal(project(-against, general, weight), -against)
    assert torch.equal(project(against, torch.zeros(2, 2), weight), against)


def test_a_step_follows_the_projected_gradient(make_trainer):
    opts = ["OPTIM.LR", "0.1", "OPTIM.MOMENTUM", "0.0", "OPTIM.WEIGHT_DECAY", "0.0"]
    trainer = make_trainer("ProGrad", *opts)
    ctx, features = trainer.learned.ctx, torch.randn(4, 32)
    teacher = trainer.compare(features, trainer.teacher).softmax(dim=-1)
    for label in torch.randint(8, (100, 4)):  # the first labels that work against zero-shot CLIP
        logits, terms = trainer.loss(features, label)
        divergence = F.kl_div(logits.log_softmax(dim=-1), teacher, reduction="batchmean")
        domain, general = (torch.autograd.grad(x, ctx, retain_graph=True)[0] for x in (terms["ce"], divergence))
        dot = (domain * general).sum()
        if dot < 0:
            break
    assert dot < 0
    before = ctx.detach().clone()
    trainer.batch_idx, trainer.num_batches = 0, 2
    trainer.forward_backward({"img": features, "label": label})
    expected = before - 0.1 * (domain - dot / general.square().sum() * general)
    torch.testing.assert_close(ctx.detach(), expected, rtol=1e-3, atol=1e-6)


def test_the_temperature_divides_the_logits_of_both_and_its_square_scales_the_loss(make_trainer):
    trainer = make_trainer("ProGrad", "TRAINER.PROGRAD.T", "2.0")
    features = torch.randn(4, 32)
    logits, terms = trainer.loss(features, torch.tensor([0, 1, 2, 3]))
    teacher = (trainer.compare(features, trainer.teacher) / 2).softmax(dim=-1)
    expected = -4 * (teacher * (logits / 2).log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(terms["kl"], expected)


def test_the_context_starts_from_the_teachers_words_behind_zeros(make_trainer, random_clip):
    prompt = "a type of pet, a photo of a {}."
    trainer = make_trainer("ProGrad", "DATASET.TEMPLATE", prompt, "TRAINER.PROGRAD.N_CTX", "12")
    words = word_vectors(random_clip, "a type of pet, a photo of a")
    assert len(words) == 9
    assert torch.equal(trainer.learned.ctx[3:], words) and not trainer.learned.ctx[:3].any()
    short = make_trainer("ProGrad", "TRAINER.PROGRAD.CTX_INIT", "a photo of a", "TRAINER.PROGRAD.N_CTX", "2")
    assert torch.equal(short.learned.ctx, word_vectors(random_clip, "of a"))
    expected = random_clip.encode_text(clip.tokenize([prompt.format(name) for name in trainer.classnames]))
    torch.testing.assert_close(trainer.teacher, expected, rtol=1e-4, atol=1e-5)
