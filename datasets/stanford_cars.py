"""Stanford Cars: 196 makes, models and years.

The paths of the split start with cars_train/ or cars_test/. The devkit and its .mat files are not needed.
"""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class StanfordCars(SplitDataset):
    dataset_dir = "stanford_cars"
    aliases = ("StanfordCars",)
    image_dir = "."
    split_file = "split_zhou_StanfordCars.json"
    published = Published(
        classes=196,
        images=dict(train=6509, val=1635, test=8041),
        split="bffbe347fbf93ad532133ff506d15606ac007812cfac9933551a5877f5263dd3",
        picks="f7d56096c792/edeb0808f53c",
    )
