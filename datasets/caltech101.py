"""Caltech101: 100 object categories (not Faces_easy, not BACKGROUND_Google), labels in folder order."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    dataset_dir = "caltech-101"
    aliases = ("caltech101", "Caltech101")
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
