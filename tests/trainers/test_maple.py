"""MaPLe's coupled prompts against a plain re-computation through CLIP's own towers."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clip import clip
from dassl.utils import UserError
from trainers.parts.prompts import word_vectors

DEPTH = ["TRAINER.MAPLE.PROMPT_DEPTH", "2"]


def test_features_are_those_of_towers_with_vectors_and_their_projections_in_front_of_the_first_blocks(
    make_trainer, random_clip
):
    trainer = make_trainer("MaPLe", *DEPTH)
    vectors, couple, visual = trainer.learned.text.vectors(), trainer.learned.couple, random_clip.visual

    def edit_text(i, x):  # x (L, C, D)
        if i >= 2:
            return x
        positions = random_clip.positional_embedding[1:3] if i == 0 else 0
        return torch.cat([x[:1], (vectors[i] + positions)[:, None].expand(-1, x.shape[1], -1), x[3:]])

    def edit_image(i, x):
        if i >= 2:
            return x
        own = (vectors[i] @ couple[i].weight.t() + couple[i].bias)[:, None].expand(-1, x.shape[1], -1)
        return torch.cat([x, visual.ln_pre(own)]) if i == 0 else torch.cat([x[:-2], own])

    image, label = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 2])
    tokens = clip.tokenize([f"a photo of a {name}." for name in trainer.classnames])
    text = F.normalize(random_clip.encode_text(tokens, edit=edit_text), dim=-1)
    expected = (
        random_clip.logit_scale.exp() * F.normalize(random_clip.encode_image(image, edit=edit_image), dim=-1) @ text.t()
    )
    logits, terms = trainer.loss(image, label)
    assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert_close(terms, {"ce": F.cross_entropy(expected, label)}, rtol=1e-3, atol=1e-4)
    learned = list(trainer.learned.parameters())
    pairs = zip(*(torch.autograd.grad(F.cross_entropy(z, label), learned) for z in (logits, expected)), strict=True)
    for ours, theirs in pairs:
        assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_the_first_vectors_start_as_words_and_the_deeper_projections_as_copies_of_one(make_trainer, random_clip):
    learned = make_trainer("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", "3").learned
    assert torch.equal(learned.text.context.ctx, word_vectors(random_clip, "a photo"))
    first, second, third = learned.couple
    assert torch.equal(second.weight, third.weight) and second.weight is not third.weight
    assert not torch.equal(first.weight, second.weight)


def test_more_vectors_than_words_start_at_random_and_replace_all_words(make_trainer):
    context = make_trainer("MaPLe", *DEPTH, "TRAINER.MAPLE.N_CTX", "6").learned.text.context
    assert context.ctx.shape == (6, 64) and context.ctx.abs().max() < 0.2
    assert len(context.texts.prefix) == 7  # the start token and the vectors; names differ from there on


def test_more_prompts_than_blocks_are_an_error(make_trainer):
    with pytest.raises(UserError, match="No prompts of depth 4 in a tower of 3 blocks: choose a depth of 1 to 3"):
        make_trainer("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH", "4")
