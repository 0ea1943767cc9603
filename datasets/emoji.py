"""The embedded dataset: 431 things as emoji vendors draw them, 64x64; comes with the code, needs no DATASET.ROOT."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class Emoji(SplitDataset):
    image_dir = "images"
    split_file = "split_emoji.json"

    @classmethod
    def find_folder(cls, root):
        return Path(__file__).with_name("emoji_data")

    @classmethod
    def fetch_command(cls, root):
        return "git checkout datasets/emoji_data"
