"""Oxford-IIIT Pet: 37 breeds of cats and dogs."""

from dassl.data.datasets import DATASET_REGISTRY

from . import datum_lists
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

    # what dataset files of CoOp's kind call
    read_split = staticmethod(datum_lists.read_split)
    save_split = staticmethod(datum_lists.save_split)
    split_trainval = staticmethod(datum_lists.split_trainval)
    subsample_classes = staticmethod(datum_lists.subsample_classes)
