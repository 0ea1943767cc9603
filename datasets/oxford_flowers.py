"""Oxford Flowers 102; the split lists its classes in the order of the image files, not of the labels."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitDataset):
    dataset_dir = "oxford_flowers"
    aliases = ("flowers-102", "Flower102")
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
