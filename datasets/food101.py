"""Food-101: 101 dishes."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class Food101(SplitDataset):
    dataset_dir = "food-101"
    aliases = ("Food101",)
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
