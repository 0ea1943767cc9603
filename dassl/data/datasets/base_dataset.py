"""What a dataset is to the engine: lists of Datum, and the few-shot subset of them."""

import itertools
import os
import random
from collections import defaultdict
from numbers import Integral

from ...utils import MissingFile, UserError


def tests_on_validation(dataset):
    """Whether images of the test are among the validation images, as in ImageNet: then these can choose nothing."""
    return bool({item.impath for item in dataset.val or ()} & {item.impath for item in dataset.test or ()})


class Datum:
    """One image. The four underscore names are what few-shot pickles of the CoOp family hold.

    Args: impath (str), label (int), domain (int), classname (str). MissingFile if there is no such image.
    """

    def __init__(self, impath="", label=0, domain=0, classname=""):
        if not os.path.isfile(impath):
            raise MissingFile(f'No image at "{impath}"; docs/DATASETS.md says where each file belongs')
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self):
        return self._impath

    @property
    def label(self):
        return self._label

    @property
    def domain(self):
        return self._domain

    @property
    def classname(self):
        return self._classname


class DatasetBase:
    """Train (train_x), validation and test lists, and the class names in the order of their labels.

    UserError if train_x or test is empty, a label is no class number, or some class has no training image.
    """

    dataset_dir = ""
    domains = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        name = type(self).__name__
        for split, items in (("training", train_x), ("test", test)):
            if not items:
                raise UserError(f"The {split} set of {name} is empty; check its split file and its images")
        self._check_labels(train_x, [*train_x, *(val or []), *test])
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    def _check_labels(self, train, everything):
        for item in everything:
            if not isinstance(item.label, Integral) or isinstance(item.label, bool) or item.label < 0:
                raise UserError(f'"{item.impath}" has the label {item.label!r}, no class number; check its split file')
        names = {item.label: item.classname for item in everything}
        present = {item.label for item in train}
        missing = max(names) + 1 - len(present)
        if missing:
            first = itertools.islice((label for label in itertools.count() if label not in present), min(missing, 3))
            which = ", ".join(f'{label} "{names.get(label, "?")}"' for label in first)
            more = f" and {missing - 3} more" if missing > 3 else ""
            raise UserError(f"No training image for class {which}{more} of {type(self).__name__}; check its split file")

    @property
    def train_x(self):
        return self._train_x

    @property
    def train_u(self):
        return self._train_u

    @property
    def val(self):
        return self._val

    @property
    def test(self):
        return self._test

    @property
    def lab2cname(self):
        return self._lab2cname

    @property
    def classnames(self):
        return self._classnames

    @property
    def num_classes(self):
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source):
        """The highest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """{label: name}, and the names in the order of the labels."""
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    @staticmethod
    def split_dataset_by_label(data_source):
        by_label = defaultdict(list)
        for item in data_source:
            by_label[item.label].append(item)
        return by_label

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False):
        """At most `num_shots` images of each class: a list for one source, a list of lists for several.

        Upstream's draws from Python's global `random`: classes in order of first appearance; `sample` where
        there are enough images, `choices` where there are fewer and `repeat`, else all images without a draw.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = [self._few_shots(source, num_shots, repeat) for source in data_sources]
        return output[0] if len(output) == 1 else output

    def _few_shots(self, data_source, num_shots, repeat):
        chosen = []
        for items in self.split_dataset_by_label(data_source).values():
            if len(items) >= num_shots:
                chosen += random.sample(items, num_shots)
            else:
                chosen += random.choices(items, k=num_shots) if repeat else items
        return chosen
