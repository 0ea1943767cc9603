"""Caltech101: 100 object categories (not Faces_easy, not BACKGROUND_Google), labels in folder order."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    dataset_dir = "caltech-101"
    aliases = ("caltech101", "Caltech101")
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    published = Published(
        classes=100,
        images=dict(train=4128, val=1649, test=2465),
        split="266b016abdaeeb65436a3273abb64b9c02633d8d97988b66592f0fd28b2659a4",
        picks="e60a836bd33c/53555d3fce94",
    )
