"""EuroSAT, RGB version: 10 kinds of land use in 64x64 satellite images."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class EuroSAT(SplitDataset):
    dataset_dir = "eurosat"
    aliases = ("EuroSAT",)
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
