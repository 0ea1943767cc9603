"""A dataset file written as CoOp's are, on our OxfordPets and DescribableTextures."""

import json
import os
import random

import pytest
from PIL import Image

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum
from dassl.utils import UserError, mkdir_if_missing
from datasets import extend_cfg
from datasets.dtd import DescribableTextures as DTD
from datasets.imagenet import ImageNet
from datasets.oxford_pets import OxfordPets

CLASSES = ("ash", "birch", "cedar", "elm")


class Leaves(DatasetBase):
    """What a user brings along: folder names, a split that is made once, and few-shot picks."""

    dataset_dir = "leaves"

    def __init__(self, cfg):
        self.dataset_dir = os.path.join(cfg.DATASET.ROOT, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, "images")
        self.split_path = os.path.join(self.dataset_dir, "split_zhou_Leaves.json")
        mkdir_if_missing(os.path.join(self.dataset_dir, "split_fewshot"))
        if os.path.exists(self.split_path):
            train, val, test = OxfordPets.read_split(self.split_path, self.image_dir)
        else:
            train, val, test = DTD.read_and_split_data(self.image_dir, ignored=["moss"], new_cnames={"elm": "elm tree"})
            OxfordPets.save_split(train, val, test, self.split_path, self.image_dir)
        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            train = self.generate_fewshot_dataset(train, num_shots=shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4))
        train, val, test = OxfordPets.subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)


@pytest.fixture
def cfg(tmp_path):
    for name in (*CLASSES, "moss"):
        folder = tmp_path / "leaves" / "images" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (4, 4)).save(folder / f"{i}.png")
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.ROOT = str(tmp_path)
    return cfg


def paths(items):
    return [item.impath for item in items]


def test_a_dataset_file_of_coops_kind_makes_its_split_once_and_reads_it_back(cfg, tmp_path):
    made = Leaves(cfg)
    assert made.classnames == ["ash", "birch", "cedar", "elm tree"]
    assert (len(made.train_x), len(made.val), len(made.test)) == (20, 8, 12)
    stored = json.loads((tmp_path / "leaves" / "split_zhou_Leaves.json").read_text())
    assert stored["train"][0][0].startswith("ash/") and str(tmp_path) not in str(stored)
    read = Leaves(cfg)
    assert [paths(read.train_x), paths(read.val), paths(read.test)] == [
        paths(made.train_x),
        paths(made.val),
        paths(made.test),
    ]


def test_its_shots_and_base_and_new_classes_are_those_of_coop(cfg):
    whole = Leaves(cfg)
    cfg.DATASET.NUM_SHOTS = 2
    halves = []
    for part in ("base", "new"):
        cfg.DATASET.SUBSAMPLE_CLASSES = part
        halves.append(Leaves(cfg))
    assert [half.classnames for half in halves] == [["ash", "birch"], ["cedar", "elm tree"]]
    assert [half.num_classes for half in halves] == [2, 2] and [len(half.train_x) for half in halves] == [4, 4]
    assert sorted(paths(halves[0].test) + paths(halves[1].test)) == sorted(paths(whole.test))


def test_trainval_is_cut_per_class_by_the_global_random(cfg):
    items = Leaves(cfg).train_x
    random.seed(3)
    train, val = OxfordPets.split_trainval(items, p_val=0.4)
    assert [item.label for item in val] == [0, 0, 1, 1, 2, 2, 3, 3] and len(train) == 12
    assert sorted(paths(train + val)) == sorted(paths(items))
    random.seed(3)
    indices = [[i for i, item in enumerate(items) if item.label == label] for label in range(4)]
    for group in indices:
        random.shuffle(group)
    assert paths(val) == [items[i].impath for group in indices for i in group[:2]]


def test_too_few_images_are_named_instead_of_an_empty_part(cfg, tmp_path):
    with pytest.raises(UserError, match="'ash' has 1 images, too few for a share of 0.2 in val"):
        OxfordPets.split_trainval([Datum(str(tmp_path / "leaves/images/ash/0.png"), 0, classname="ash")])
    for path in (tmp_path / "leaves" / "images" / "elm").glob("[1-9].png"):
        path.unlink()
    with pytest.raises(UserError, match="elm has 1 images, too few for three parts"):
        Leaves(cfg)


def test_class_names_of_imagenet_are_read_from_any_file(tmp_path):
    (tmp_path / "classnames.txt").write_text("n2 crane bird\nn1 tench\n")
    assert list(ImageNet.read_classnames(str(tmp_path / "classnames.txt")).items()) == [
        ("n2", "crane bird"),
        ("n1", "tench"),
    ]
