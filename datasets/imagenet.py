"""ImageNet (ILSVRC 2012), and what its four variants share: class names and images in one folder per class.

There is no split file: images/train is the training set, images/val both val and test. File names are sorted,
so a seed selects the same images on every machine (in CoOp that depends on the file system).
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import listdir_nohidden, read_json

from .base import SplitDataset
from .published import CLASSNAMES, lines_hash
from .splits import Item, write_cache


class ClassFolders(SplitDataset):
    """Images in one folder per class, mostly named by WordNet id; classnames.txt names the ids."""

    def read_classnames(self):
        """{WordNet id: name} in label order, from the own folder or imagenet/. Names repeat, ids do not."""
        own = self.dataset_dir / "classnames.txt"
        path = own if own.is_file() else self.require(self.dataset_dir.parent / "imagenet" / own.name)
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines_hash(lines) != CLASSNAMES:
            self.warn(f"{path} has not the class names of CLIP")
        rows = [line.split(" ", 1) for line in lines]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    def classes(self, folders):
        """{class folder: (label, name)}; the label is the rank among the folders (200 in A and R)."""
        names = self.read_classnames()
        if lines_hash(sorted(folders)) != self.published.ids:
            self.warn(f"{self.image_dir} has not the {self.published.classes} class folders of {type(self).__name__}")
        return {wnid: (rank, names.get(wnid)) for rank, wnid in enumerate(sorted(folders))}

    def items(self, listing, classes):
        """{folder in the image folder: file names} and {class folder: (label, name)} -> list of `Item`."""
        found = []
        for folder, files in listing.items():
            label, name = classes.get(folder.split("/")[-1], (None, None))
            if name is None:
                raise self.missing(f"classnames.txt has no class for the folder {self.image_dir / folder}")
            found += [Item(f"{folder}/{file}", label, name) for file in files]
        return found


class ImageNetVariant(ClassFolders):
    """A test set only: every image is in it. The training list, which nothing trains on, is the same."""

    sampled = ()

    def read(self):
        listing = {name: image_names(self.image_dir / name) for name in class_folders(self.image_dir)}
        items = self.items(listing, self.classes(listing))
        return {"train": items, "test": items}


@DATASET_REGISTRY.register()
class ImageNet(ClassFolders):
    dataset_dir = "imagenet"
    image_dir = "images"
    sampled = ("train",)  # val is the test set and stays whole, as in CoOp

    def read(self):
        train, val = self._listings()
        classes = self.classes({folder.split("/")[1] for folder in (*train, *val)})
        test = self.items(val, classes)
        if lines_hash(sorted(item.path.partition("/")[2] for item in test)) != self.published.files:
            self.warn(f"{self.image_dir / 'val'} has not the published images in the published classes")
        return {"train": self.items(train, classes), "val": test, "test": test}

    def _listings(self):
        """[{"train/<id>": sorted file names}, {"val/<id>": ...}].

        Kept in index.json, as listing 1.3 million files can be slow. A folder whose modification time has
        changed is listed again, so an index made too early is no trap.
        """
        cache = self.dataset_dir / "index.json"
        known = read_index(cache)
        parts = [self._list_part(part, known) for part in ("train", "val")]
        index = parts[0] | parts[1]
        if index != known:
            write_cache(cache, index)
        return [{folder: files for folder, (_, files) in part.items()} for part in parts]

    def _list_part(self, part, known):
        names = class_folders(self.require(self.image_dir / part))
        if not names:
            raise self.missing(
                f"{self.image_dir / part} has no class folders: sort its images into one folder per class"
            )
        index = {}
        for name in names:
            folder = self.image_dir / part / name
            changed, stored = folder.stat().st_mtime_ns, known.get(f"{part}/{name}", [None])
            index[f"{part}/{name}"] = stored if stored[0] == changed else [changed, image_names(folder)]
        return index


def read_index(path):
    """{folder: [modification time in ns, file names]}; {} where there is none or it is damaged."""
    try:
        return {folder: [int(changed), list(files)] for folder, (changed, files) in read_json(path).items()}
    except (OSError, AttributeError, TypeError, ValueError):
        return {}


def class_folders(path):
    """Names of the folders in `path`, sorted; plain files (README.txt) and hidden folders are no classes."""
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))


def image_names(path):
    return listdir_nohidden(path, sort=True)
