"""Oxford-IIIT Pet: 37 breeds of cats and dogs."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .published import Published


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    dataset_dir = "oxford_pets"
    aliases = ("oxford-iiit-pet", "OxfordPets")
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    published = Published(
        classes=37,
        images=dict(train=2944, val=736, test=3669),
        split="175852640a3b1e8d7441c6224786fd018b4d6bcdd60f4495edca8a185631729d",
        picks="711e62ca7ba4/b75fc02100f3",
    )
