"""PromptSRC's and IVLP's prompts, losses and average over epochs against plain re-computations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clip import clip
from trainers.frozen import ensemble
from trainers.promptsrc import epoch_weights


def opts(trainer, text=2, vision=3):
    node = f"TRAINER.{trainer.upper()}.PROMPT_DEPTH"
    return [f"{node}_TEXT", str(text), f"{node}_VISION", str(vision)]


def prompted(trainer, image):
    """Class features (C, E) and image features (B, E) of CLIP's own towers with the trainer's vectors in them."""
    model, (text, vision) = trainer.clip_model, (trainer.learned.text.vectors(), list(trainer.learned.vision))

    def edit_text(i, x):  # x (L, C, D)
        if i >= len(text):
            return x
        positions = model.positional_embedding[1:5] if i == 0 else 0
        return torch.cat([x[:1], (text[i] + positions)[:, None].expand(-1, x.shape[1], -1), x[5:]])

    def edit_image(i, x):
        if i >= len(vision):
            return x
        own = vision[i][:, None].expand(-1, x.shape[1], -1)
        return torch.cat([x, model.visual.ln_pre(own)]) if i == 0 else torch.cat([x[:-4], own])

    tokens = clip.tokenize([f"a photo of a {name}." for name in trainer.classnames])
    return model.encode_text(tokens, edit=edit_text), model.encode_image(image, edit=edit_image)


@pytest.mark.parametrize("method", ["IVLP", "PromptSRC"])
def test_both_towers_have_vectors_of_their_own(make_trainer, method):
    trainer = make_trainer(method, *opts(method))
    image = torch.randn(3, 3, 32, 32)
    classes, features = prompted(trainer, image)
    assert_close(trainer.class_features(), classes, rtol=1e-3, atol=1e-4)
    assert_close(trainer.image_features(image), features, rtol=1e-3, atol=1e-4)


def test_the_loss_holds_features_and_logits_close_to_frozen_clip(make_trainer, random_clip):
    trainer = make_trainer("PromptSRC", *opts("PromptSRC"))
    image, label = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 2])
    trainer.prepare()
    _, terms = trainer.loss(image, label)
    with torch.no_grad():
        g, f = (F.normalize(x, dim=-1) for x in prompted(trainer, image))
        prompts = [[prompt.format(name) for name in trainer.classnames] for prompt in ensemble()]
        g_zs = F.normalize(sum(random_clip.encode_text(clip.tokenize(each)) for each in prompts) / 60, dim=-1)
        f_zs = F.normalize(random_clip.encode_image(image), dim=-1)
        scale = random_clip.logit_scale.exp()
        p, p_zs = (scale * f @ g.t()).softmax(dim=-1), (scale * f_zs @ g_zs.t()).softmax(dim=-1)  # (B, C)
    expected = {
        "ce": -p[range(3), label].log().mean(),
        "text": 25 * (g - g_zs).abs().mean(),
        "image": 10 * (f - f_zs).abs().mean(),
        "kl": (p_zs * (p_zs / p).log()).sum() / (3 * 8),
    }
    assert_close({name: term.detach() for name, term in terms.items()}, expected, rtol=1e-3, atol=1e-5)


def test_the_ensemble_has_sixty_different_prompts():
    assert len(set(ensemble())) == len(ensemble()) == 60
    assert all(prompt.count("{}") == 1 for prompt in ensemble())


def test_weights_of_epochs_are_a_bell_that_adds_up_to_one():
    bell = [math.exp(-((epoch - 15) ** 2) / 2) for epoch in range(1, 21)]
    expected = torch.tensor([weight / sum(bell) for weight in bell], dtype=torch.float64)
    assert_close(epoch_weights(20, 15, 1), expected)
    assert_close(epoch_weights(2, 90, 1).sum(), torch.tensor(1.0, dtype=torch.float64))  # exp alone would be 0


def test_after_the_last_epoch_the_prompts_are_the_average_over_epochs(make_trainer):
    gpa = ["TRAINER.PROMPTSRC.GPA_MEAN", "2.0", "TRAINER.PROMPTSRC.GPA_STD", "1.0", "OPTIM.MAX_EPOCH", "3"]
    trainer = make_trainer("PromptSRC", *opts("PromptSRC", 1, 1), *gpa)
    states = []
    end_epoch = trainer.end_epoch

    def record():
        states.append({name: value.clone() for name, value in trainer.learned.state_dict().items()})
        end_epoch()

    trainer.end_epoch = record
    trainer.train()
    side = math.exp(-0.5)
    for name, value in trainer.learned.state_dict().items():
        first, second, third = (state[name] for state in states)
        assert_close(value, (side * first + second + side * third) / (1 + 2 * side))
        assert not torch.equal(value, third)
