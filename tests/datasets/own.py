"""Images of one's own for the tests of `custom`: tiny, and each unlike every other."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image


def cfg(root, images, names="", template="", shots=-1, seed=1, subsample="all"):
    options = SimpleNamespace(
        ROOT=str(root),
        IMAGES=str(images),
        CLASSNAMES=str(names),
        TEMPLATE=template,
        NUM_SHOTS=shots,
        SUBSAMPLE_CLASSES=subsample,
    )
    return SimpleNamespace(DATASET=options, SEED=seed)


noise = np.random.default_rng(0)


def make_image(path):
    """An image unlike every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() not in (".jpg", ".jpeg") else "JPEG"
    Image.fromarray(noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, format=kind)
    return path


def fill(top, *classes, number=10):
    for name in classes:
        for i in range(number):
            make_image(top / name / f"{i}.png")


def names_of(items, folder):
    return [Path(item.impath).relative_to(folder).as_posix() for item in items]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
