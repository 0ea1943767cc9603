"""From a folder on disk to a `DatasetBase`: what every dataset of the CoOp family does in the same way."""

import shlex
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import MissingFile

from .published import PUBLISHED
from .splits import check_classes, few_shot, read_split, split_hash, subsample_classes


class SplitDataset(DatasetBase):
    """A dataset with fixed train, val and test lists.

    A subclass names its folders and its split file, or overrides `read`. As in CoOp, few-shot selection runs
    over all classes, then base or new classes are kept; test is never sampled. `split_hash` identifies the
    whole split, whatever is selected from it. The instance's `dataset_dir` and `image_dir` are full paths.
    """

    dataset_dir = ""  # folder under DATASET.ROOT
    aliases = ()  # other names that folder is accepted under
    image_dir = ""  # folder inside it where the paths of the split start
    split_file = ""
    sampled = ("train", "val")  # parts that few-shot selection cuts down

    def __init__(self, cfg):
        self.root = cfg.DATASET.ROOT
        self.dataset_dir = self.find_folder(self.root)
        self.image_dir = self.require(self.dataset_dir / self.image_dir)
        split = self.read()
        check_classes(split, type(self).__name__)
        self.split_hash = split_hash(split)
        if self.published and self.published.split not in ("", self.split_hash):
            self.warn(f"{self.split_file} is not the published split")
        if cfg.DATASET.NUM_SHOTS >= 1 and self.sampled:
            split |= few_shot(self.dataset_dir, split, self.split_hash, cfg.DATASET.NUM_SHOTS, cfg.SEED, self.sampled)
        kept = subsample_classes(*split.values(), subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        data = {part: self.datums(items) for part, items in zip(split, kept, strict=True)}
        super().__init__(train_x=data["train"], val=data.get("val"), test=data["test"])

    def read(self):
        """The whole split as {"train": items, "val": items, "test": items}."""
        return read_split(self.require(self.dataset_dir / self.split_file))

    def require(self, path):
        """`path`, which must exist: a missing split is never replaced by one drawn here."""
        if not path.exists():
            raise self.missing(f"{path.name} not found in {path.parent}")
        return path

    def missing(self, what):
        """The error for files that are not there."""
        return MissingFile(f"{type(self).__name__}: {what}; get it with {self.fetch()} (or by hand: DATASETS.md)")

    def warn(self, what):
        """Say that results can't be compared with published ones."""
        print(f"Warning: {what}: results don't compare; python -m datasets.doctor {self.stem()} says more")

    @classmethod
    def stem(cls):
        """The dataset's yaml name, which is also that of its module."""
        return cls.__module__.rpartition(".")[2]

    @property
    def published(self):
        """`Published`, or None for data that only we have."""
        return PUBLISHED.get(self.stem())

    def fetch(self):
        """The command that brings what is missing."""
        return f"python -m datasets.fetch {self.stem()} --root {shlex.quote(str(self.root))}"

    def find_folder(self, root):
        """Full path of the dataset's folder under `root`, by its name or an alias."""
        root = Path(root).expanduser().absolute()
        for name in (self.dataset_dir, *self.aliases):
            if (root / name).is_dir():
                return root / name
        raise self.missing(f"folder {self.dataset_dir} not found in {root}")

    def datums(self, items):
        """`Item`s as Datum; one whose image does not exist raises MissingFile with its path."""
        return [Datum(str(self.image_dir / path), label, classname=name) for path, label, name in items]
