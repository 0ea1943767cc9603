"""CLIP-Adapter's formula (Eq. 4 to 6) against a plain re-computation, and its cached form."""

import torch
import torch.nn.functional as F

from clip import clip


def test_logits_are_those_of_the_formula(make_trainer, random_clip):
    trainer = make_trainer("CLIPAdapter", "TRAINER.CLIPADAPTER.ALPHA", "0.3")
    down, up = trainer.learned.down.weight, trainer.learned.up.weight
    assert down.shape == (8, 32) and up.shape == (32, 8)
    images = torch.randn(4, 3, 32, 32)
    trainer.test()
    with torch.no_grad():
        f = random_clip.encode_image(images)
        adapted = 0.3 * ((f @ down.t()).clamp(min=0) @ up.t()).clamp(min=0) + 0.7 * f
        text = random_clip.encode_text(clip.tokenize([f"a photo of a {name}." for name in trainer.classnames]))
        expected = random_clip.logit_scale.exp() * F.normalize(adapted, dim=-1) @ F.normalize(text, dim=-1).t()
        torch.testing.assert_close(trainer.model_inference(images), expected, rtol=1e-4, atol=1e-4)


def count_image_passes(trainer):
    passes = []
    encode = trainer.encode_image
    trainer.encode_image = lambda image: passes.append(len(image)) or encode(image)
    trainer.train()
    return sum(passes)


def test_the_cached_form_runs_the_image_tower_once_for_each_training_image(make_trainer, tmp_path):
    opts = ["OPTIM.MAX_EPOCH", "3", "TEST.NO_TEST", "True"]
    assert count_image_passes(make_trainer("CLIPAdapter", *opts, "OUTPUT_DIR", str(tmp_path / "fresh"))) == 3 * 32
    assert count_image_passes(make_trainer("CLIPAdapter", *opts, "TRAINER.CLIPADAPTER.VIEWS", "1")) == 32


def test_views_that_nothing_random_changes_are_cached_by_themselves(make_trainer):
    opts = ["OPTIM.MAX_EPOCH", "3", "TEST.NO_TEST", "True", "INPUT.TRANSFORMS", '["normalize"]']
    assert count_image_passes(make_trainer("CLIPAdapter", *opts)) == 32
