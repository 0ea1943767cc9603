"""UCF101: 101 human actions, the middle frame of each video."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class UCF101(SplitDataset):
    dataset_dir = "ucf101"
    aliases = ("UCF101",)
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
