"""Tiny copies of the datasets' real folder layouts; images are empty files, never decoded."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets  # noqa: F401  (registers the classes)
from dassl.data.datasets import DATASET_REGISTRY

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
NAMES = ("tench", "kite (bird of prey)", "baluster / handrail", "missile", "missile")  # a name occurs twice
WNIDS = ("n01440764", "n01608432", "n02788148", "n03773504", "n04008634")
CLASSNAMES = "".join(f"{wnid} {name}\n" for wnid, name in zip(WNIDS, NAMES, strict=True))
SIZES = {"train": 6, "val": 5, "test": 3}  # images per class


def cfg(root, shots=-1, seed=1, subsample="all"):
    return SimpleNamespace(
        DATASET=SimpleNamespace(ROOT=str(root), NUM_SHOTS=shots, SUBSAMPLE_CLASSES=subsample, TEMPLATE=""), SEED=seed
    )


def build(name, root, **settings):
    return DATASET_REGISTRY.get(name)(cfg(root, **settings))


def get(name, root):
    """What an error about missing files ends with; dataset files are named as their yaml is."""
    stem = next(path.stem for path in CONFIGS.glob("*.yaml") if f'"{name}"' in path.read_text())
    return f"get it with python -m datasets.fetch {stem} --root {root} (or by hand: docs/DATASETS.md)"


def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# ---- the real layouts, tiny --------------------------------------------------------------------------------


def split_layout(name, folder, images, prefix="{classname}/"):
    """Writer of `folder` with images and split file; `prefix` comes before the name of an image."""

    def write(root):
        split = {
            part: [
                [prefix.format(part=part, classname=f"Class{c}") + f"{part}_{c}_{i}.jpg", c, f"class_{c}"]
                for c in (2, 0, 4, 1, 3)
                for i in range(size)
            ]
            for part, size in SIZES.items()
        }
        for path, _, _ in sum(split.values(), []):
            touch(root / folder / images / path)
        touch(root / folder / f"split_zhou_{name}.json", json.dumps(split))

    return write


def aircraft_layout(root):
    folder = root / "fgvc_aircraft"
    variants = (
        "707-320",
        "A300B4",
        "F-16A/B",
        "F/A-18",
        "Hawk T1",
    )  # slashes and a space, as in the real list
    touch(folder / "variants.txt", "\n".join(variants) + "\n")
    number = 0
    for part, size in SIZES.items():
        rows = []
        for variant in variants:
            for _ in range(size):
                number += 1
                rows.append(f"{number:07d} {variant}")
                touch(folder / "images" / f"{number:07d}.jpg")
        touch(folder / f"images_variant_{part}.txt", "\n".join(rows) + "\n")


def imagenet_layout(root):
    touch(root / "imagenet" / "classnames.txt", CLASSNAMES)
    for part, size in (("train", SIZES["train"]), ("val", SIZES["test"])):
        for wnid in WNIDS:
            for i in range(size):
                touch(root / "imagenet" / "images" / part / wnid / f"{wnid}_{i}.JPEG")


def variant_layout(folder, images, names=WNIDS):
    def write(root):
        touch(root / folder / "classnames.txt", CLASSNAMES)
        touch(root / folder / images / "README.txt", "a file, not a class")
        for name in names:
            touch(root / folder / images / name / ".hidden")
            for i in range(SIZES["test"]):
                touch(root / folder / images / name / f"{i}.jpg")

    return write


SPLIT_DATASETS = {  # name: folder, image folder
    "Caltech101": ("caltech-101", "101_ObjectCategories"),
    "OxfordPets": ("oxford_pets", "images"),
    "StanfordCars": ("stanford_cars", "."),
    "OxfordFlowers": ("oxford_flowers", "jpg"),
    "Food101": ("food-101", "images"),
    "SUN397": ("sun397", "SUN397"),
    "DescribableTextures": ("dtd", "images"),
    "EuroSAT": ("eurosat", "2750"),
    "UCF101": ("ucf101", "UCF-101-midframes"),
}
PREFIX = {
    "StanfordCars": "cars_{part}/",
    "OxfordFlowers": "",
    "OxfordPets": "",
    "SUN397": "a/{classname}/outdoor/",
}
VARIANTS = {
    "ImageNetV2": ("imagenetv2", "imagenetv2-matched-frequency-format-val", ("0", "1", "2", "3", "4")),
    "ImageNetSketch": ("imagenet-sketch", "images", WNIDS),
    "ImageNetA": ("imagenet-adversarial", "imagenet-a", WNIDS),
    "ImageNetR": ("imagenet-rendition", "imagenet-r", WNIDS),
}
LAYOUTS = {
    **{
        name: split_layout(name, *where, prefix=PREFIX.get(name, "{classname}/"))
        for name, where in SPLIT_DATASETS.items()
    },
    "FGVCAircraft": aircraft_layout,
    "ImageNet": imagenet_layout,
    **{name: variant_layout(*where) for name, where in VARIANTS.items()},
}
TRAINABLE = [name for name in LAYOUTS if name not in VARIANTS]
