import os
import pickle
import random
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader, build_transform
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.samplers import (
    RandomClassSampler,
    RandomDomainSampler,
    SeqDomainSampler,
    build_sampler,
)
from dassl.engine.checkpoint import random_state, set_random_state
from dassl.utils import UserError, set_random_seed


@pytest.fixture
def items(tmp_path):
    """12 Datum: labels 0 0 0 0 0 0 1 1 1 1 2 2, domains 0 1 0 1 ..."""
    path = tmp_path / "image.png"
    path.touch()
    labels = [0] * 6 + [1] * 4 + [2] * 2
    return [Datum(str(path), label, i % 2, f"class {label}") for i, label in enumerate(labels)]


def test_a_datum_is_pickled_as_upstream_pickles_it(items):
    state = {"_impath": items[0].impath, "_label": 0, "_domain": 0, "_classname": "class 0"}
    assert items[0].__dict__ == state
    assert Datum.__module__ == "dassl.data.datasets.base_dataset"
    copy = pickle.loads(pickle.dumps(items[0]))
    assert (copy.impath, copy.label, copy.domain, copy.classname) == tuple(state.values())


def test_a_missing_image_is_named():
    with pytest.raises(FileNotFoundError, match='No image at "nowhere.jpg"') as caught:
        Datum("nowhere.jpg")
    assert isinstance(caught.value, UserError)


def test_few_shots_are_drawn_as_upstream_draws_them(items, capsys):
    shuffled = items[6:] + items[:6]  # classes in the order 1 2 0
    random.seed(5)
    got = DatasetBase.generate_fewshot_dataset(DatasetBase.__new__(DatasetBase), shuffled, num_shots=4)
    random.seed(5)
    ones, twos, zeros = shuffled[:4], shuffled[4:6], shuffled[6:]
    expected = random.sample(ones, 4) + twos + random.sample(zeros, 4)  # no draw for the short class
    assert got == expected
    assert capsys.readouterr().out == "Creating a 4-shot dataset\n"


def test_few_shots_of_several_sources_with_repeats_or_of_all_images(items):
    make = DatasetBase.__new__(DatasetBase).generate_fewshot_dataset
    train, val = make(items, items[:1], num_shots=3, repeat=True)
    assert [item.label for item in train] == [0] * 3 + [1] * 3 + [2] * 3
    assert val == [items[0]] * 3
    assert make(items, num_shots=0) is items
    assert make(items, items[:1]) == (items, items[:1])


def test_names_and_classes_come_from_the_labels_of_the_training_set(items):
    dataset = DatasetBase(train_x=items[::-1], test=items)
    assert dataset.classnames == ["class 0", "class 1", "class 2"]
    assert dataset.num_classes == 3 and dataset.lab2cname[1] == "class 1" and dataset.val is None


@pytest.mark.parametrize(
    "train, test, text",
    [
        (slice(0, 0), slice(0, 12), "training set of DatasetBase is empty"),
        (slice(0, 12), slice(0, 0), "test set of DatasetBase is empty"),
        (slice(0, 10), slice(0, 12), 'No training image for class 2 "class 2"'),
        (slice(6, 12), slice(6, 12), 'No training image for class 0 "?"'),
    ],
)
def test_empty_sets_and_empty_classes_are_user_errors(items, train, test, text):
    with pytest.raises(UserError) as caught:
        DatasetBase(train_x=items[train], test=items[test])
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [0.7, -1, "1", None, True])
def test_a_label_that_is_no_class_number_is_named(items, label):
    items[3]._label = label
    with pytest.raises(UserError, match=rf'image.png" has the label {label!r}, no class number'):
        DatasetBase(train_x=items, test=items)


def test_a_label_far_too_high_is_named_at_once(items):
    items[3]._label = 10**15  # a list of all classes below it would not fit into memory
    with pytest.raises(UserError, match=r'class 3 "\?", 4 "\?", 5 "\?" and 999999999999994 more of DatasetBase'):
        DatasetBase(train_x=items, test=items)


def test_the_manager_builds_loaders_and_a_summary(cfg, capsys):
    dm = DataManager(cfg)
    out = capsys.readouterr().out
    assert "Loading dataset: Squares\nBuilding transform_train\n" in out
    for line in (
        "+ random resized crop (size=(16, 16), scale=(0.08, 1.0))",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_test",
        "+ resize the smaller edge to 16",
        "+ 16x16 center crop",
    ):
        assert line in out.splitlines()
    table = [" ".join(row.split()) for row in out.splitlines()]
    assert table[-6:-1] == ["Dataset Squares", "# classes 3", "# train_x 18", "# val 6", "# test 12"]
    assert len(dm.train_loader_x) == 4 and dm.train_loader_x.drop_last  # 18 images in batches of 4
    assert not dm.test_loader.drop_last and dm.train_loader_u is None
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].shape == (4, 3, 16, 16) and set(batch) == {
        "img",
        "label",
        "domain",
        "impath",
        "index",
    }
    assert dm.dataset.train_x[batch["index"][0]].impath == batch["impath"][0]


def test_a_small_training_set_makes_one_smaller_batch(cfg):
    cfg.merge_from_list(["DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 32])
    assert [len(b["label"]) for b in DataManager(cfg).train_loader_x] == [3]


def test_items_with_several_views_and_the_plain_image(cfg):
    source = DataManager(cfg).dataset.train_x
    augment = build_transform(cfg)
    cfg.merge_from_list(["DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True])
    item = DatasetWrapper(cfg, source, augment, is_train=True)[0]
    assert len(item["img"]) == 2 and not torch.equal(*item["img"]) and item["img0"].shape == (3, 16, 16)
    assert DatasetWrapper(cfg, source, augment)[0]["img"].shape == (3, 16, 16)  # only when training
    pair = DatasetWrapper(cfg, source, [augment, augment])[0]
    assert {"img", "img2"} <= set(pair) and "img1" not in pair
    with pytest.raises(ValueError, match="transform is None"):
        DatasetWrapper(cfg, source, None, is_train=True)
    cfg.DATALOADER.K_TRANSFORMS = 1
    assert DatasetWrapper(cfg, source)[0]["img"].size == (20, 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_or_lost_image_is_named_in_one_line_also_from_a_worker(cfg, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    dm = DataManager(cfg)
    with open(dm.dataset.test[5].impath, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError) as caught:
        list(dm.test_loader)
    assert str(caught.value).startswith(f'Cannot read the image "{dm.dataset.test[5].impath}"')
    assert "\n" not in str(caught.value)
    os.remove(dm.dataset.train_x[0].impath)
    with pytest.raises(FileNotFoundError, match='^No image at "') as caught:
        list(dm.train_loader_x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentations_repeat_from_the_state_of_the_global_generators(cfg, workers):
    """What byte-identical resumes rest on: an epoch depends on the generators alone, not on the epochs before."""
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = DataManager(cfg).train_loader_x
    set_random_seed(7)
    first = torch.stack([batch["img"] for batch in loader])
    state = random_state()
    second = torch.stack([batch["img"] for batch in loader])
    set_random_state(state)
    again = torch.stack([batch["img"] for batch in DataManager(cfg).train_loader_x])
    assert torch.equal(second, again) and not torch.equal(first, second)


def test_a_loader_without_a_batch_is_a_user_error(cfg, items):
    with pytest.raises(UserError, match="empty"):
        build_data_loader(cfg, data_source=[])
    cfg.merge_from_list(["DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 4])
    cfg.merge_from_list(["DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 16])
    with pytest.raises(UserError, match="needs 4 classes, there are 3"):
        DataManager(cfg)


def test_class_batches_hold_n_ins_images_of_each_class_and_top_up_short_classes(items):
    random.seed(0)
    sampler = RandomClassSampler(items, batch_size=8, n_ins=4)
    order = list(sampler)
    assert len(order) == len(sampler) == 8
    for start in range(0, len(order), 4):
        assert len({items[i].label for i in order[start : start + 4]}) == 1
    with pytest.raises(ValueError, match="batch_size=2"):
        RandomClassSampler(items, 2, 4)


@pytest.mark.parametrize("make", [lambda s: RandomDomainSampler(s, 4, 2), lambda s: SeqDomainSampler(s, 4)])
def test_domain_batches_hold_equal_parts_and_no_image_twice(items, make):
    sampler = make(items)
    order = list(sampler)
    assert len(order) == len(sampler) == 12 == len(set(order))
    for start in range(0, 12, 2):
        assert len({items[i].domain for i in order[start : start + 2]}) == 1


def test_an_unknown_sampler_or_transform_says_what_there_is(cfg, items):
    with pytest.raises(ValueError, match="Unknown sampler type: RandomSample .*RandomSampler"):
        build_sampler("RandomSample", data_source=items)
    with pytest.raises(UserError, match="random_flp.*random_flip.*gaussian_blur"):
        build_transform(cfg, choices=["random_flp"])
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(UserError, match="bicubic"):
        build_transform(cfg)


def test_every_offered_transform_gives_a_tensor_of_the_size(cfg):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    cfg.merge_from_list(["INPUT.SIZE", (24, 16), "INPUT.GB_K", 3, "INPUT.GB_P", 1.0, "INPUT.RGS_P", 1.0])
    for choices in (
        ["random_translation", "center_crop"],
        ["colorjitter", "randomgrayscale", "gaussian_blur"],
    ):
        for _ in range(4):
            assert build_transform(cfg, choices=choices)(image).shape == (3, 24, 16)
    gray = build_transform(cfg, choices=["randomgrayscale"])(image)
    assert torch.equal(gray[0], gray[1])
    assert build_transform(cfg, is_train=False, choices=[])(image).shape == (3, 24, 16)
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


def test_workers_that_have_no_room_for_temporary_files_are_one_line_instead_of_a_wait_for_ever(cfg, monkeypatch):
    cfg.DATALOADER.NUM_WORKERS = 1
    loader = DataManager(cfg).train_loader_x
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    advice = r"can't use /proc/nowhere \(.*\): make room there, set TMPDIR .*NUM_WORKERS 0$"
    with pytest.raises(UserError, match=advice):
        next(iter(loader))


def test_a_label_far_beyond_the_classes_takes_no_memory(items, tmp_path):
    tracemalloc.start()
    with pytest.raises(UserError, match=r'No training image for class 3 "\?", 4 "\?", 5 "\?" and 99999995 more'):
        DatasetBase(train_x=items, test=[Datum(items[0].impath, 10**8, classname="far")])
    assert tracemalloc.get_traced_memory()[1] < 10e6  # bytes
    tracemalloc.stop()
