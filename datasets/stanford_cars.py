"""Stanford Cars: 196 makes, models and years.

The paths of the split start with cars_train/ or cars_test/. The devkit and its .mat files are not needed.
"""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class StanfordCars(SplitDataset):
    dataset_dir = "stanford_cars"
    aliases = ("StanfordCars",)
    image_dir = "."
    split_file = "split_zhou_StanfordCars.json"
