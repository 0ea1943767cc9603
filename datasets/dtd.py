"""Describable Textures (DTD): 47 textures."""

from dassl.data.datasets import DATASET_REGISTRY

from . import datum_lists
from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    dataset_dir = "dtd"
    aliases = ("DTD",)
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    published = Published(
        classes=47,
        images=dict(train=2820, val=1128, test=1692),
        split="0d04a9bb08938c9d435fc3c6b5030906334f6d8ccf4d80f8319e5d7f4fbdd4ba",
        picks="daf3b28e531f/9ef81bd9b8f3",
    )

    read_and_split_data = staticmethod(datum_lists.read_and_split_data)  # what dataset files of CoOp's kind call
