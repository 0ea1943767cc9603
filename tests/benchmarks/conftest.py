import pytest

from benchmarks.model import SHAPE


@pytest.fixture(scope="session")
def small_shape():
    """ViT-B/16's shape, 12 + 12 blocks, but narrow."""
    narrow = {"vision_width": 64, "vision_patch_size": 16, "transformer_width": 64, "transformer_heads": 1}
    return SHAPE | {"image_resolution": 32} | narrow
