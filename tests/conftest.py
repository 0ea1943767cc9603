"""What all tests share: nothing of the user's is touched, and no test leaves its mark on the next."""

import random

import numpy as np
import pytest
import torch

from clip.model import CLIP


@pytest.fixture(scope="session", autouse=True)
def own_weights_cache(tmp_path_factory):
    """CLIP's weights are unpacked into a folder of this test run, not into the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_CACHE", str(tmp_path_factory.mktemp("clip_cache")))
        yield


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from the same generators, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def make_clip():
    """make_clip(**sizes) -> a CLIP in fp32 with every parameter random, also those that start as 0 or 1."""

    def make(seed=0, **sizes):
        tiny = dict(
            embed_dim=48,
            image_resolution=32,
            vision_layers=3,
            vision_width=128,
            vision_patch_size=16,
            context_length=77,
            vocab_size=49408,
            transformer_width=64,
            transformer_heads=1,
            transformer_layers=3,
        )
        model = CLIP(**(tiny | sizes)).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        return model

    return make
