"""What all tests share: nothing of the user's is touched, and no test leaves its mark on the next."""

import random

import numpy as np
import pytest
import torch


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
