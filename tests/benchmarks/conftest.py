import pytest

from benchmarks.model import SHAPE

# Base classes of the paper's eleven datasets, over which its tables average.
BASE_CLASSES = (500, 50, 19, 98, 51, 51, 50, 199, 24, 5, 51)


@pytest.fixture(scope="session")
def small_shape():
    """ViT-B/16's shape, 12 + 12 blocks, but narrow."""
    narrow = {"vision_width": 64, "vision_patch_size": 16, "transformer_width": 64, "transformer_heads": 1}
    return SHAPE | {"image_resolution": 32} | narrow
