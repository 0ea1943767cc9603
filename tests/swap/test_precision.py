"""The trainer on a fork's `clip/` computes what it computes on ours, in every precision, to the last bit."""

import inspect
import types

import pytest
import torch
from torch import nn

from trainers.parts import compat, lskip, precision


class QuickGELU(nn.Module):
    def forward(self, x):  # as OpenAI wrote it, and all forks have it
        return x * torch.sigmoid(1.702 * x)


@pytest.fixture
def models(make_clip, tmp_path, monkeypatch):
    """CLIP by our `clip/`, and the same weights by a fork's."""
    ours, theirs = make_clip(embed_dim=32), make_clip(embed_dim=32)
    for tower in (theirs.transformer, theirs.visual.transformer):
        for block in tower.resblocks:
            block.mlp.gelu = QuickGELU()
    torch.save(ours.state_dict(), tmp_path / "weights.pt")
    fork = types.SimpleNamespace(_MODELS={"ViT-B/16": ""}, _download=lambda url: str(tmp_path / "weights.pt"))
    fork.build_model = lambda weights: theirs.train(False)
    monkeypatch.setattr(compat, "clip", fork)
    return ours, compat._load_from_fork("ViT-B/16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_and_gradients_on_a_forks_clip_are_ours_to_the_last_bit(dtype, models):
    images = torch.randn(4, 3, 32, 32)
    tokens = torch.randint(1, 400, (3, 77))
    tokens[:, 5] = 49407
    found = []
    for model in models:
        precision.halve(model, dtype)
        v = lskip.shallow_image(model.visual, images, 1)
        texts = lskip.shallow_text(model, tokens, 1)
        deep = lskip.cut(model, 1).requires_grad_(True)
        features = deep["image_encoder"](v), deep["text_encoder"](texts)
        sum(part.float().square().sum() for part in features).backward()
        gradients = [p.grad for p in deep.parameters()]
        found.append([*features, *gradients, v])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda weights: (), ()),  # CoOp
        (lambda weights, design_details: (design_details,), (compat.PLAIN,)),  # MaPLe
        (lambda weights, design_details, more=None: (design_details, more), (compat.PLAIN, None)),  # ATPrompt
        (lambda weights, cfg=None: (cfg,), (None,)),  # MuDPT, whose own node of options it would be
    ],
)
def test_a_forks_clip_is_built_with_plain_blocks(build, given, models, monkeypatch):
    called = []
    fork, whole = compat.clip, compat.clip.build_model
    details = build

    def returns(*arguments):
        called.append(details(*arguments))
        return whole(arguments[0])

    returns.__signature__ = inspect.signature(details)
    monkeypatch.setattr(fork, "build_model", returns)
    compat._load_from_fork("ViT-B/16")
    assert called == [given]
