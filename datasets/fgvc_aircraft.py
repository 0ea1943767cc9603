"""FGVC-Aircraft: 100 variants, with the official train, val and test lists."""

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError

from .base import SplitDataset
from .splits import PARTS, Item


@DATASET_REGISTRY.register()
class FGVCAircraft(SplitDataset):
    dataset_dir = "fgvc_aircraft"
    aliases = ("fgvc-aircraft-2013b/data",)
    image_dir = "images"

    def read(self):
        """variants.txt has one name per line, in label order; the lists have "<image id> <variant>" lines."""
        variants = self._lines("variants.txt")
        labels = {name: label for label, name in enumerate(variants)}
        return {part: self._items(f"images_variant_{part}.txt", labels) for part in PARTS}

    def _lines(self, name):
        text = self.require(self.dataset_dir / name).read_text(encoding="utf-8")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _items(self, name, labels):
        items = []
        for line in self._lines(name):
            image, _, variant = line.partition(" ")  # variants have spaces: "Hawk T1"
            if variant not in labels:
                raise UserError(f'{self.dataset_dir / name}: "{line}" names no variant of variants.txt')
            items.append(Item(f"{image}.jpg", labels[variant], variant))
        return items
