"""SUN397: scenes, 100 images of each."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class SUN397(SplitDataset):
    dataset_dir = "sun397"
    aliases = ("SUN397",)
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
