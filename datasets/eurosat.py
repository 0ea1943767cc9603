"""EuroSAT, RGB version: 10 kinds of land use in 64x64 satellite images."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class EuroSAT(SplitDataset):
    dataset_dir = "eurosat"
    aliases = ("EuroSAT",)
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    published = Published(
        classes=10,
        images=dict(train=13500, val=5400, test=8100),
        split="b9db23fedd13a2d3374107fe494f4fa814e7837c771660c850aab95ec391ad1a",
        picks="ad260707da91/f171ab42c4e4",
    )
