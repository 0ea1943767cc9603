"""SUN397: scenes, 100 images of each."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class SUN397(SplitDataset):
    dataset_dir = "sun397"
    aliases = ("SUN397",)
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    published = Published(
        classes=397,
        images=dict(train=15880, val=3970, test=19850),
        picks="4f0fcf0ddbbe/e1255316553e",
    )
