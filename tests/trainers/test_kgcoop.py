"""KgCoOp's formula against a plain re-computation."""

import torch
import torch.nn.functional as F

from clip import clip


def test_the_second_term_is_the_distance_from_the_hand_written_prompts(make_trainer, random_clip):
    trainer = make_trainer("KgCoOp", "DATASET.TEMPLATE", "{} texture.")
    _, terms = trainer.loss(torch.randn(2, 32), torch.tensor([0, 1]))
    with torch.no_grad():
        ours = random_clip.encode_text(clip.tokenize([f"a photo of a {name}." for name in trainer.classnames]))
        theirs = random_clip.encode_text(clip.tokenize([f"{name} texture." for name in trainer.classnames]))
    squared = (F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).square().sum(dim=-1)  # (C,), the paper's form
    torch.testing.assert_close(terms["kg"].detach(), 4 * squared.mean(), rtol=1e-3, atol=1e-5)
    assert set(terms) == {"ce", "kg"}


def test_where_the_context_says_what_the_hand_written_prompts_say_it_costs_nothing(make_trainer):
    trainer = make_trainer("KgCoOp")
    _, terms = trainer.loss(torch.randn(2, 32), torch.tensor([0, 1]))
    assert terms["kg"].abs() < 1e-4 < terms["ce"]
