"""The cache holds what it says, and every number of a training image follows from (seed, view, index)."""

import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from trainers.parts.cache import FeatureCache, TrainingLoader


class Noise:
    """'Images' of random noise, drawn anew at every look like an augmentation; by default of classes 0 0 0 1 1 2."""

    def __init__(self, labels=(0, 0, 0, 1, 1, 2)):
        self.data_source = [type("Item", (), {"label": label}) for label in labels]

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, i):
        noise = torch.rand(3) + random.random() + np.random.rand()  # augmentations draw from all three
        return {"img": noise / 3 + 10 * i, "label": self.data_source[i].label}


def make_cache(data=None, views=0, seed=1, batch_size=2, workers=0, looks=None, **options):
    def encode(images):
        if looks is not None:
            looks.append(len(images))
        return images[:, None]  # (N, 1, 3)

    loader = DataLoader(data or Noise(), batch_size=batch_size, num_workers=workers)
    return FeatureCache(loader, encode, views, seed, **options)


def view_of(cache, epoch):
    cache.start_epoch(epoch)
    return cache.features.clone()


def test_cache_makes_a_fresh_view_in_every_epoch_and_keeps_only_that():
    cache = make_cache()
    first, second = view_of(cache, 0), view_of(cache, 1)
    assert not torch.equal(first, second)
    assert list(cache.cached) == [1]


@pytest.mark.parametrize("views", [1, 3])
def test_cache_extracts_each_fixed_view_once_and_goes_round(views):
    looks = []
    cache = make_cache(views=views, looks=looks)
    seen = []
    for epoch in range(7):
        cache.start_epoch(epoch)
        seen.append(cache.features)
    assert sum(looks) == 6 * views
    assert all(torch.equal(seen[epoch], seen[epoch % views]) for epoch in range(7))
    assert len({view.sum().item() for view in seen}) == views


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_image_of_a_view_depends_on_seed_view_and_index_alone(workers):
    data = Noise(range(70))
    whole, one = view_of(make_cache(data, workers=workers), 2), make_cache(data)
    assert torch.equal(whole, view_of(one, 2))
    (batch,) = one.load(2, [[69, 3]])
    assert torch.equal(batch["img"][:, None], whole[[69, 3]])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pixels_are_the_same_for_any_number_of_workers(workers):
    def pixels(workers, epoch):
        loader = TrainingLoader(DataLoader(Noise(), batch_size=2, num_workers=workers), seed=1)
        loader.start_epoch(epoch)
        return torch.cat([batch["img"] for batch in loader])

    states = torch.get_rng_state(), random.getstate()
    assert torch.equal(pixels(workers, 1), pixels(0, 1)) and not torch.equal(pixels(0, 1), pixels(0, 2))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_depends_on_seed_and_number_alone_and_leaves_the_generators_as_they_were(workers):
    torch.manual_seed(5)
    random.seed(5)
    first = view_of(make_cache(workers=workers), 4)
    torch.manual_seed(6)
    random.seed(6)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(view_of(make_cache(workers=workers), 4), first)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert not torch.equal(view_of(make_cache(workers=workers, seed=2), 4), first)


@pytest.mark.parametrize("views", [0, 2])
def test_views_that_workers_prepared_during_training_equal_those_made_on_demand(views):
    data = Noise(range(70))  # three batches of images, the last one not full
    prepared, looked = make_cache(data, views=views, workers=2), []
    for epoch in range(3):
        if epoch and not views:
            assert prepared.upcoming[0] == epoch
        torch.manual_seed(epoch)
        looked.append(view_of(prepared, epoch))
        list(prepared)  # training draws from the global generator
    for epoch, view in enumerate(looked):
        assert torch.equal(view_of(make_cache(data, views=views, workers=2), epoch), view)


def test_a_prepared_view_is_not_taken_for_another():
    data = Noise(range(70))
    cache = make_cache(data, workers=2)
    cache.start_epoch(0)  # has view 1 prepared
    assert torch.equal(view_of(cache, 5), view_of(make_cache(data, workers=2), 5))


def test_nothing_is_prepared_that_no_epoch_will_use():
    cache = make_cache(workers=2)
    cache.start_epoch(0, last=True)
    assert cache.upcoming is None
    fixed = make_cache(workers=2, views=1)
    fixed.start_epoch(0)
    assert fixed.upcoming is None


def test_a_view_that_is_there_is_not_prepared_again_where_a_resumed_run_began_in_the_middle():
    cache = make_cache(views=3, workers=1)
    for epoch in (1, 2, 3):  # view 0 comes last
        cache.start_epoch(epoch)
    assert sorted(cache.cached) == [0, 1, 2] and cache.upcoming is None


def test_cache_keeps_what_the_encoder_returns_for_every_image_in_its_dtype():
    data = Noise(range(70))
    cache = FeatureCache(DataLoader(data, 2), lambda images: images[:, None].half(), 0, 1)
    features = view_of(cache, 0)
    assert features.shape == (70, 1, 3) and features.dtype == torch.float16
    assert torch.equal((features[:, 0, 0] / 10).long(), torch.arange(70))


def test_above_its_limit_the_cache_lies_in_an_unnamed_file_with_the_same_bytes(tmp_path):
    size = 6 * 3 * 4
    inside, outside = make_cache(limit=size, folder=tmp_path), make_cache(limit=size - 1, folder=tmp_path)
    for epoch in range(2):
        assert torch.equal(view_of(inside, epoch), view_of(outside, epoch))
        assert inside.features.untyped_storage().resizable() and not outside.features.untyped_storage().resizable()
        assert os.listdir(tmp_path) == []
    for one, other in zip(sorted_batches(inside), sorted_batches(outside), strict=True):
        assert torch.equal(one["features"], other["features"]) and torch.equal(one["label"], other["label"])


def test_the_limit_is_for_all_views_together(tmp_path):
    size = 6 * 3 * 4
    for limit, inside in ((2 * size, True), (2 * size - 1, False)):
        cache = make_cache(views=2, limit=limit, folder=tmp_path)
        view_of(cache, 0)
        assert cache.features.untyped_storage().resizable() == inside


def sorted_batches(cache):
    torch.manual_seed(0)
    return list(cache)


def test_cache_yields_every_sample_once_with_its_label():
    cache = make_cache()
    cache.start_epoch(0)
    batches = list(cache)
    assert len(batches) == len(cache) == 3
    features = torch.cat([batch["features"] for batch in batches])[:, 0, 0]
    labels = torch.cat([batch["label"] for batch in batches])
    order = features.argsort()
    assert torch.equal(labels[order], cache.labels)
    assert torch.equal((features[order] // 10).long(), torch.arange(6))


def test_cached_batches_are_pinned_where_the_loader_pins(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    cache = make_cache()
    cache.start_epoch(0)
    list(cache)
    assert pinned == []
    cache._options["pin_memory"] = True  # as with a GPU
    assert len(list(cache)) == len(pinned) == 3


def labels_of(cache, epoch):
    cache.start_epoch(epoch)
    return [batch["label"].tolist() for batch in cache]


def test_the_order_of_batches_depends_on_seed_and_epoch_alone():
    data = Noise(range(70))
    torch.manual_seed(1)
    first = labels_of(make_cache(data), 3)
    torch.manual_seed(2)
    assert labels_of(make_cache(data, workers=2), 3) == first
    assert labels_of(make_cache(data), 4) != first != labels_of(make_cache(data, seed=2), 3)


def test_what_does_not_fill_a_batch_is_left_out_unless_it_is_all_there_is():
    cache = make_cache(batch_size=4)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [4] and len(cache) == 1
    cache = make_cache(batch_size=50)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [6] and len(cache) == 1


def test_single_class_batches_hold_one_class_each_and_leave_out_what_fills_none():
    cache = make_cache(Noise([0] * 5 + [1] * 2 + [2] + [3] * 4), single_class=True)
    orders = set()
    for epoch in range(10):
        cache.start_epoch(epoch)
        batches = [batch["label"].tolist() for batch in cache]
        assert sorted(batches) == [[0, 0], [0, 0], [1, 1], [3, 3], [3, 3]] and len(cache) == 5
        orders.add(str(batches))
    assert len(orders) > 1  # classes come in random order
    images = torch.cat([batch["features"] for batch in cache])
    assert len(images.unique(dim=0)) == 10


def test_single_class_batches_fall_back_to_mixed_ones_where_no_class_fills_one():
    """As in the released code, which mixes the classes of 1 and 2 shots."""
    one, other = make_cache(batch_size=4, single_class=True), make_cache(batch_size=4)
    assert not one.single_class and len(one) == len(other) == 1
    one.start_epoch(0)
    other.start_epoch(0)
    (mixed,), (expected,) = sorted_batches(one), sorted_batches(other)
    assert torch.equal(mixed["features"], expected["features"]) and len(mixed["label"].unique()) > 1
