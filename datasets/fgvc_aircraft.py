"""FGVC-Aircraft: 100 variants, with the official train, val and test lists."""

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, read_text

from .base import SplitDataset
from .published import Published
from .splits import PARTS, Item


@DATASET_REGISTRY.register()
class FGVCAircraft(SplitDataset):
    dataset_dir = "fgvc_aircraft"
    aliases = ("fgvc-aircraft-2013b/data",)
    image_dir = "images"
    lists = ("variants.txt", *(f"images_variant_{part}.txt" for part in PARTS))  # in place of a split file
    published = Published(
        classes=100,
        images=dict(train=3334, val=3333, test=3333),
        picks="27de4feb9721/fd4231e9d5e2",
    )

    @classmethod
    def read(cls, root):
        """variants.txt has one name per line, in label order; the lists have "<image id> <variant>" lines."""
        folder = cls.locate(root)
        variants, *parts = [read_lines(cls.require(folder / name, root)) for name in cls.lists]
        labels = {name: label for label, name in enumerate(variants)}
        split = {}
        for part, name, lines in zip(PARTS, cls.lists[1:], parts, strict=True):
            split[part] = make_items(lines, labels, folder / name)
        used = {item.label for items in split.values() for item in items}
        if unused := [name for name in variants if labels[name] not in used]:
            raise UserError(f'{folder / "variants.txt"}: "{unused[0]}" is no variant of any image; get it again')
        if variants != sorted(variants):
            raise UserError(
                f"{folder / 'variants.txt'}: the variants are in another order than the published one, which is the "
                "alphabet's, so that classes would have other labels; get it again"
            )
        return split


def read_lines(path):
    """The lines of a list that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def make_items(lines, labels, path):
    """The `Item`s of one list's lines, which come from `path`; `labels` is {variant: label}."""
    items = []
    for line in lines:
        image, _, variant = line.partition(" ")  # variants have spaces: "Hawk T1"
        if variant not in labels:
            raise UserError(f'{path}: "{line}" names no variant of variants.txt')
        items.append(Item(f"{image}.jpg", labels[variant], variant))
    return items
