"""Food-101: 101 dishes."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class Food101(SplitDataset):
    dataset_dir = "food-101"
    aliases = ("Food101",)
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    published = Published(
        classes=101,
        images=dict(train=50500, val=20200, test=30300),
        picks="8bcab0ea1c2d/0c299214865c",
    )
