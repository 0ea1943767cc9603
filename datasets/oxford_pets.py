"""Oxford-IIIT Pet: 37 breeds of cats and dogs."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    dataset_dir = "oxford_pets"
    aliases = ("oxford-iiit-pet", "OxfordPets")
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
