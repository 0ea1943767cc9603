"""UCF101: 101 human actions, the middle frame of each video."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class UCF101(SplitDataset):
    dataset_dir = "ucf101"
    aliases = ("UCF101",)
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    published = Published(
        classes=101,
        images=dict(train=7639, val=1898, test=3783),
        split="29a5dc239824943e473244fc18abf1b43734213fc748cffa25ccd773fbe7271a",
        picks="b88bd6d2db74/6499ec117e62",
    )
