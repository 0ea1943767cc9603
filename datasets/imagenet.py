"""ImageNet (ILSVRC 2012), and what its four variants share: class names and images in one folder per class.

There is no split file: images/train is the training set, images/val both val and test. File names are sorted,
so a seed selects the same images on every machine (in CoOp that depends on the file system).
"""

import os

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError, read_json, read_text

from .base import SplitDataset
from .files import class_folders, count_suffixes, is_image_name
from .published import Published, lines_hash
from .splits import Item, write_cache

# `lines_hash` of the "<WordNet id> <name>" lines of CLIP's classnames.txt, and of its sorted ids
CLASSNAMES = "51b5b1d8b800502030c5556eb206abaafdd682ef363ff7a7077591ea3c9befa5"
IMAGENET_IDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


class ClassFolders(SplitDataset):
    """Images in one folder per class, mostly named by WordNet id; classnames.txt names the ids."""

    @classmethod
    def find_classnames(cls, root):
        """The path of classnames.txt: the dataset's own, or else that of imagenet/, whether it is there or not."""
        folder = cls.locate(root)
        own = folder / "classnames.txt"
        return own if own.is_file() else folder.parent / ImageNet.dataset_dir / own.name

    @classmethod
    def names(cls, root):
        """{WordNet id: name} in label order. Names repeat, ids do not."""
        path = cls.require(cls.find_classnames(root), root)
        if classnames_problem(path):
            cls.warn(f"{path} has not the class names of CLIP")
        return cls.read_classnames(path)

    @staticmethod
    def read_classnames(text_file):
        """{WordNet id: name} in the order of a file; dataset files of CoOp's kind call it too."""
        rows = [line.split(" ", 1) for line in read_lines(text_file)]
        return {row[0]: row[1] for row in rows if len(row) == 2}

    @classmethod
    def classes(cls, folders, root):
        """{class folder: (label, name)}; the label is the rank among the folders (200 in A and R)."""
        names = cls.names(root)
        if lines_hash(sorted(folders)) != cls.published.ids:
            images = cls.locate_images(root)
            cls.warn(f"{images} has not the {cls.published.classes} class folders of {cls.__name__}")
        return {wnid: (rank, names.get(wnid)) for rank, wnid in enumerate(sorted(folders))}

    @classmethod
    def items(cls, listing, classes, root):
        """{folder in the image folder: file names} and {class folder: (label, name)} -> list of `Item`.

        Files that are no images by their extension (Thumbs.db) are left out, and that is printed.
        """
        found, others = [], []
        for folder, files in listing.items():
            label, name = classes.get(folder.split("/")[-1], (None, None))
            if name is None:
                place = cls.locate_images(root) / folder
                raise cls.missing(f"classnames.txt has no class for the folder {place}", root)
            for file in files:
                if is_image_name(file):
                    found.append(Item(f"{folder}/{file}", label, name))
                else:
                    others.append(f"{folder}/{file}")
        if others:
            kinds = count_suffixes(others)
            print(f"Left out: {len(others)} files that are no images by their extension ({kinds}; first: {others[0]})")
        return found


class ImageNetVariant(ClassFolders):
    """A test set only: every image is in it. The training list, which nothing trains on, is the same."""

    test_only = True

    @classmethod
    def read(cls, root):
        images = cls.locate_images(root)
        listing = {name: file_names(images / name) for name in class_folders(images)}
        items = cls.items(listing, cls.classes(listing, root), root)
        return {"train": items, "test": items}


@DATASET_REGISTRY.register()
class ImageNet(ClassFolders):
    dataset_dir = "imagenet"
    image_dir = "images"
    sampled = ("train",)  # val is the test set and stays whole, as in CoOp
    published = Published(
        classes=1000,
        images=dict(train=1281167, val=50000, test=50000),
        ids=IMAGENET_IDS,
        per_class=50,
        files="dc1395be7727d421ee079b005ea91fccada3ffd3409c4d8f61f043e6fb62c04f",
    )

    @classmethod
    def read(cls, root):
        train, val = cls._listings(root)
        classes = cls.classes({folder.split("/")[1] for folder in (*train, *val)}, root)
        test = cls.items(val, classes, root)
        if lines_hash(sorted(item.path.partition("/")[2] for item in test)) != cls.published.files:
            cls.warn(f"{cls.locate_images(root) / 'val'} has not the published images in the published classes")
        return {"train": cls.items(train, classes, root), "val": test, "test": test}

    @classmethod
    def _listings(cls, root):
        """[{"train/<id>": sorted file names}, {"val/<id>": ...}].

        Kept in index.json, as listing 1.3 million files can be slow. A folder whose modification time has
        changed is listed again, so an index made too early is no trap.
        """
        cache = cls.locate(root) / "index.json"
        known = read_index(cache)
        parts = [cls._list_part(part, known, root) for part in ("train", "val")]
        index = parts[0] | parts[1]
        if index != known:
            write_cache(cache, index)
        return [{folder: files for folder, (_, files) in part.items()} for part in parts]

    @classmethod
    def _list_part(cls, part, known, root):
        images = cls.require(cls.locate_images(root) / part, root)
        names = class_folders(images)
        if not names:
            raise cls.missing(f"{images} has no class folders: sort its images into one folder per class", root)
        index = {}
        for name in names:
            folder = images / name
            changed, stored = folder.stat().st_mtime_ns, known.get(f"{part}/{name}", [None])
            index[f"{part}/{name}"] = stored if stored[0] == changed else [changed, file_names(folder)]
        return index


def read_index(path):
    """{folder: [modification time in ns, file names]}; {} where there is none or it is damaged."""
    try:
        stored = read_json(path)
        return {folder: [int(changed), list(map(str, files))] for folder, (changed, files) in stored.items()}
    except (UserError, AttributeError, TypeError, ValueError):
        return {}


def read_lines(path):
    """The lines of classnames.txt that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def classnames_problem(path):
    """How the file differs from CLIP's classnames.txt, or ""."""
    lines = read_lines(path)
    if lines_hash(lines) == CLASSNAMES:
        return ""
    if len(lines) != 1000:
        return f"it has {len(lines)} lines instead of 1000"
    return "it has other names than CLIP's, or in another order"


def file_names(folder):
    """Names of all entries of a folder but hidden ones, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
