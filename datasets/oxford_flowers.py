"""Oxford Flowers 102; the split lists its classes in the order of the image files, not of the labels."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitDataset):
    dataset_dir = "oxford_flowers"
    aliases = ("flowers-102", "Flower102")
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    published = Published(
        classes=102,
        images=dict(train=4093, val=1633, test=2463),
        split="9bf82a401539357a181e5f0b836ae7fcd5baa38b55e264a2059df8e86adc898a",
        picks="ea366f552e24/3a88b427e7b1",
    )
