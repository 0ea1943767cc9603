"""Describable Textures (DTD): 47 textures."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    dataset_dir = "dtd"
    aliases = ("DTD",)
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
