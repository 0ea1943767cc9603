"""From a folder on disk to a `DatasetBase`: what every dataset of the CoOp family does in the same way."""

import shlex
import string
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import MissingFile, UserError

from .splits import check_classes, few_shot, read_split, split_hash, subsample_classes


def spellings(classes):
    """{key: class} -> {what a user may call it, in lower case: key}: the key, and the names of class and folders."""
    return {
        name.lower(): key
        for key, cls in classes.items()
        for name in (key, cls.__name__, cls.dataset_dir, *cls.aliases)
        if name
    }


class SplitDataset(DatasetBase):
    """A dataset with fixed train, val and test lists.

    A subclass names its folders and its split file, or overrides `read`. Loading has three steps: `locate` the
    folder, `read` the split, `load` what the configuration selects from it. The first two can be called without a
    dataset. As in CoOp, few-shot selection runs over all classes, then base or new classes are kept; test is never
    sampled. `split_hash` identifies the whole split, whatever is selected from it; `whole_classnames` are its classes
    in the order of their labels, and class 0 here has the label `first_label` there. In an instance, `dataset_dir` and
    `image_dir` are full paths.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    aliases = ()  # other names that folder is accepted under
    image_dir = ""  # folder inside it where the paths of the split start
    split_file = ""
    sampled = ("train", "val")  # parts that few-shot selection cuts down
    test_only = False  # whether all images are for tests; the training list then only says which classes there are
    published = None  # `Published`, or None for data that only we have

    def __init__(self, cfg):
        if cfg.DATASET.TEMPLATE:
            check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        root = cfg.DATASET.ROOT
        folder = self.locate(root)
        images = self.locate_images(root)
        split = self.read(root)
        if self.published and self.published.split not in ("", split_hash(split)):
            self.warn(f"{self.split_file} is not the published split")
        self.load(split, folder, images, cfg)

    def load(self, split, folder, images, cfg):
        """Become the images of `split` that `cfg` selects; few-shot picks are kept in `folder`.

        The paths of the split start in the folder `images`.
        """
        check_classes(split, type(self).__name__)
        names = {item.label: item.classname for item in split["train"]}
        self.whole_classnames = [names[label] for label in range(len(names))]
        self.dataset_dir, self.image_dir = folder, images
        self.split_hash = split_hash(split)
        if cfg.DATASET.NUM_SHOTS >= 1 and not self.test_only:
            split |= few_shot(folder, split, self.split_hash, cfg.DATASET.NUM_SHOTS, cfg.SEED, self.sampled)
        kept = subsample_classes(*split.values(), subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        data = {part: self.datums(items) for part, items in zip(split, kept, strict=True)}
        super().__init__(train_x=data["train"], val=data.get("val"), test=data["test"])
        new = cfg.DATASET.SUBSAMPLE_CLASSES == "new"  # these are the last ones
        self.first_label = len(names) - self.num_classes if new else 0

    def datums(self, items):
        """`Item`s as Datum; one whose image does not exist raises MissingFile with its path."""
        return [Datum(str(self.image_dir / path), label, classname=name) for path, label, name in items]

    # ---- where it is, and what it holds: no dataset needed -------------------------------------------------

    @classmethod
    def find_folder(cls, root):
        """Full path of the dataset's folder under `root`, by its name or an alias; None if there is none."""
        root = Path(root).expanduser().absolute()
        for name in (cls.dataset_dir, *cls.aliases):
            if (root / name).is_dir():
                return root / name
        return None

    @classmethod
    def locate(cls, root):
        """`find_folder`, which must be there."""
        folder = cls.find_folder(root)
        if folder is None:
            raise cls.missing(f"folder {cls.dataset_dir} not found in {Path(root).expanduser().absolute()}", root)
        return folder

    @classmethod
    def locate_images(cls, root):
        """Full path of the folder where the paths of the split start."""
        return cls.require(cls.locate(root) / cls.image_dir, root)

    @classmethod
    def read(cls, root):
        """The whole split as {"train": items, "val": items, "test": items}."""
        return read_split(cls.require(cls.locate(root) / cls.split_file, root))

    @classmethod
    def require(cls, path, root):
        """`path`, which must exist: a missing split is never replaced by one drawn here."""
        if not path.exists():
            raise cls.missing(f"{path.name} not found in {path.parent}", root)
        return path

    @classmethod
    def missing(cls, what, root):
        """The error for files that are not there."""
        command = cls.fetch_command(root)
        return MissingFile(f"{cls.__name__}: {what}; get it with {command} (or by hand: docs/DATASETS.md)")

    @classmethod
    def warn(cls, what):
        """Say that results can't be compared with published ones."""
        print(f"Warning: {what}: results don't compare; python -m datasets.doctor {cls.stem()} says more")

    @classmethod
    def stem(cls):
        """The dataset's yaml name, which is also that of its module."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def fetch_command(cls, root):
        """The command that brings what is missing."""
        return f"python -m datasets.fetch {cls.stem()} --root {shlex.quote(str(root))}"


def check_template(template, option):
    """Raise UserError unless `template` has exactly one {} for the class name, and no other field.

    Without it all classes would have the same prompt. `option` is what the user has to correct.
    """
    try:
        fields = [field for _, *field in string.Formatter().parse(template) if field[0] is not None]
    except ValueError:  # a single brace
        fields = []
    if fields != [["", "", None]]:
        raise UserError(f"{option} is {template!r}: it needs {{}} where the class name goes, once, and no other braces")
