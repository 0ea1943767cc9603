"""TCP's class-aware vectors, their prompts and its loss against plain re-computations."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clip import clip
from dassl.utils import UserError

BLOCK = ["TRAINER.TCP.BLOCK", "2"]


def plain_classes(trainer, texts, known):
    """Class features (C, E) of CLIP's own text tower, for prompts that begin with four words."""
    model, down, up = trainer.clip_model, trainer.learned.knowledge.down, trainer.learned.knowledge.up
    hidden = known @ down.weight.t() + down.bias
    aware = (hidden * (1.702 * hidden).sigmoid()) @ up.weight.t() + up.bias  # (C, 4 D)
    aware = aware.view(len(texts), 4, -1).transpose(0, 1)  # (4, C, D)
    first = (trainer.learned.ctx + model.positional_embedding[1:5])[:, None].expand_as(aware)

    def edit(i, x):  # x (L, C, D)
        return torch.cat([x[:1], first if i == 0 else aware, x[5:]]) if i in (0, 2) else x

    return model.encode_text(clip.tokenize(texts), edit=edit)


@pytest.mark.parametrize(
    "template, prompt",
    [
        ("", "X X X X {}."),
        ("a photo of a person doing {}.", "X X X X person doing {}."),
        ("{} texture.", "X X X X {} texture."),
        ("a photo of a {}, a type of car", "X X X X {}, a type of car"),
    ],
)
def test_each_class_has_vectors_made_of_what_clip_knows_of_it(make_trainer, random_clip, template, prompt):
    trainer = make_trainer("TCP", *BLOCK, "DATASET.TEMPLATE", template)
    features, label = torch.randn(3, 32), torch.tensor([0, 5, 2])
    known = [(template or "a photo of a {}.").format(name) for name in trainer.classnames]
    known = F.normalize(random_clip.encode_text(clip.tokenize(known)), dim=-1)
    classes = plain_classes(trainer, [prompt.format(name) for name in trainer.classnames], known)
    expected = F.normalize(classes, dim=-1)
    logits = random_clip.logit_scale.exp() * F.normalize(features, dim=-1) @ expected.t()
    found, terms = trainer.loss(features, label)
    assert_close(found, logits, rtol=1e-3, atol=1e-3)
    apart = 8 * (1 - (expected * known).sum(dim=-1)).mean()
    assert_close(terms, {"ce": F.cross_entropy(logits, label), "kg": apart}, rtol=1e-3, atol=1e-3)


def test_adam_has_the_large_eps_of_the_released_code(make_trainer):
    trainer = make_trainer("TCP", *BLOCK, "OPTIM.NAME", "adam")
    assert [group["eps"] for group in trainer.optim.param_groups] == [1e-3]


def test_class_aware_vectors_enter_between_two_blocks(make_trainer):
    with pytest.raises(UserError, match="TRAINER.TCP.BLOCK is 3: choose one of 1 to 2"):
        make_trainer("TCP", "TRAINER.TCP.BLOCK", "3")
