"""LSkip: cut anywhere, the towers still compute what the whole ones do; the cache holds what it says."""

import errno
import os
import random

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks import plain
from clip import clip
from dassl.utils import UserError
from trainers.parts.lskip import DeepImage, DeepText, shallow_image, shallow_text

DEPTH = 3
TEXTS = {
    "of different lengths": ["a photo of a cat.", "a photo of a very long haired guinea pig.", "a photo of ox"],
    "of the same length": ["a photo of a cat.", "a photo of a dog.", "a photo of a cow."],
    "of one class": ["a photo of a cat."],
    "of one class under two names": ["a photo of a cat.", "a photo of a dog.", "a photo of a cat."],
    "all the same": ["a photo of a cat."] * 3,
    "whose common beginning reaches into the names": ["a red panda", "a red fox", "a red"],
    "without a common beginning": ["ox", "a photo of a cat."],
    "as long as the context": [" ".join(["cat"] * 75), " ".join(["cat"] * 74 + ["dog"]), "cat"],
}


@pytest.fixture(params=TEXTS)
def tokens(request):
    return clip.tokenize(TEXTS[request.param])


def plain_text(model, tokens):
    """Class features (C, E), all 77 positions through all blocks."""
    return plain.deep_text(model, plain.shallow_text(model, tokens, 0), tokens, 0)


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_gradients(found, expected):
    """Up to rounding, which goes with a gradient's largest element: small ones may be what is left of large sums."""
    for name, gradient in found.items():
        rounding = max(1e-5, 1e-4 * expected[name].abs().max().item())
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-3, atol=rounding, msg=lambda m, n=name: f"{n}: {m}"
        )


def blocks_of(names):
    return {int(name.split("resblocks.")[1].split(".")[0]) for name in names if "resblocks." in name}


# The towers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("omega", range(DEPTH + 1))
def test_cut_image_tower_gives_the_whole_towers_features_and_gradients(random_clip, omega):
    images = torch.randn(5, 3, 32, 32)
    whole = random_clip.encode_image(images)
    whole.square().sum().backward()
    expected = gradients(random_clip)
    features = DeepImage(random_clip.visual, omega)(shallow_image(random_clip.visual, images, omega))
    features.square().sum().backward()
    found = gradients(random_clip)
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    assert blocks_of(found) == set(range(omega, DEPTH))
    outside = {name for name in found if "resblocks" not in name}
    assert outside == {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("omega", range(DEPTH + 1))
def test_cut_text_tower_gives_the_whole_towers_features_and_gradients(random_clip, tokens, omega):
    whole = plain_text(random_clip, tokens)
    whole.square().sum().backward()
    expected = gradients(random_clip)
    features = DeepText(random_clip, omega)(shallow_text(random_clip, tokens, omega))
    features.square().sum().backward()
    found = gradients(random_clip)
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    assert blocks_of(found) == set(range(omega, DEPTH))
    assert {name for name in found if "resblocks" not in name} == {
        "ln_final.weight",
        "ln_final.bias",
        "text_projection",
    }
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("omega", range(DEPTH + 1))
def test_selected_classes_have_the_features_they_have_among_all(random_clip, omega):
    tokens = clip.tokenize(TEXTS["of different lengths"])
    texts, deep = shallow_text(random_clip, tokens, omega), DeepText(random_clip, omega)
    whole = plain_text(random_clip, tokens)
    for classes in ([1], [0, 2], [2], [0, 1, 2]):
        features = deep(texts.select(torch.tensor(classes)))
        torch.testing.assert_close(features, whole[classes], rtol=1e-4, atol=1e-5)


def test_each_token_is_held_once(random_clip):
    def held(kind):
        texts = shallow_text(random_clip, clip.tokenize(TEXTS[kind]), 1)
        return len(texts.prefix), texts.own.shape[1], texts.end.tolist()

    # start, a, photo, of | a, very, long, haired, guinea, pig, ".", end
    assert held("of different lengths") == (4, 8, [3, 7, 1])
    assert held("whose common beginning reaches into the names") == (3, 2, [1, 1, 0])
    assert held("of one class") == (7, 1, [0])  # its end-of-text token stays its own
    assert held("all the same") == (7, 1, [0, 0, 0])
    assert held("without a common beginning") == (1, 7, [1, 6])
    assert held("as long as the context") == (2, 75, [74, 74, 0])


def test_where_nothing_is_left_to_train_on_only_the_pooled_tokens_are_kept(random_clip):
    tokens = clip.tokenize(TEXTS["of different lengths"])
    texts = shallow_text(random_clip, tokens, DEPTH)
    assert texts.prefix.shape == (0, 64) and texts.own.shape == (3, 1, 64) and texts.end.tolist() == [0, 0, 0]
    images = torch.randn(2, 3, 32, 32)
    assert shallow_image(random_clip.visual, images, DEPTH).shape == (2, 1, 128)
    assert shallow_image(random_clip.visual, images, DEPTH - 1).shape == (2, 5, 128)


@pytest.mark.parametrize("omega", [0, 2, DEPTH])
def test_shallow_half_keeps_no_graph(random_clip, omega):
    assert not shallow_image(random_clip.visual, torch.randn(2, 3, 32, 32), omega).requires_grad
    texts = shallow_text(random_clip, clip.tokenize(TEXTS["of different lengths"]), omega)
    assert not texts.prefix.requires_grad and not texts.own.requires_grad


def test_state_dict_names_the_blocks_as_the_whole_tower_does(random_clip):
    assert blocks_of(DeepImage(random_clip.visual, 2).state_dict()) == {2}
    assert blocks_of(DeepText(random_clip, 1).state_dict()) == {1, 2}


# Memory ----------------------------------------------------------------------------------------------


def test_a_mapped_tensor_has_no_name_and_can_be_written(tmp_path):
    tensor = mapped((3, 4), torch.float16, tmp_path)
    assert tensor.shape == (3, 4) and tensor.dtype == torch.float16
    tensor.copy_(torch.arange(12).view(3, 4))
    assert tensor.flatten().tolist() == list(range(12))
    assert os.listdir(tmp_path) == []
    assert not tensor.untyped_storage().resizable()  # the memory is not PyTorch's own


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    def full(file, offset, size):
        assert (offset, size) == (0, 48)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match="No room for .* GB in .*No space left"):
        mapped((3, 4), torch.float32, tmp_path)
    assert os.listdir(tmp_path) == []


def test_shelved_parameters_are_empty_outside_and_the_same_bytes_inside(random_clip, tmp_path):
    parameters = list(random_clip.visual.transformer.resblocks[:2].requires_grad_(False).parameters())
    before = [p.detach().clone() for p in parameters]
    images = torch.randn(2, 3, 32, 32)
    expected = shallow_image(random_clip.visual, images, 2)
    shelf = Shelf(parameters, tmp_path)
    assert all(p.numel() == 0 and p.untyped_storage().nbytes() == 0 for p in parameters)
    with shelf:
        with shelf:
            assert all(map(torch.equal, parameters, before))
        assert torch.equal(shallow_image(random_clip.visual, images, 2), expected)  # still there
        assert not any(p.untyped_storage().resizable() for p in parameters)  # mapped, not copied
    assert all(p.numel() == 0 for p in parameters)
    with shelf:
        assert all(map(torch.equal, parameters, before))
    assert os.listdir(tmp_path) == []


def test_parameters_go_back_to_the_shelf_when_something_fails(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3), requires_grad=False)
    shelf = Shelf([weight], tmp_path)
    with pytest.raises(ZeroDivisionError), shelf:
        1 / 0  # noqa: B018
    assert weight.numel() == 0


def test_a_disk_too_full_for_the_shelf_leaves_the_parameters_where_they_were(tmp_path, monkeypatch):
    weights = [torch.nn.Parameter(torch.ones(size), requires_grad=False) for size in (2, 3)]

    def room_for_one(file, offset, size):
        if size > 8:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", room_for_one, raising=False)
    with pytest.raises(UserError, match="No space left"):
        Shelf(weights, tmp_path)
    assert [p.tolist() for p in weights] == [[1.0] * 2, [1.0] * 3]


# The cache -------------------------------------------------------------------------------------------


class Noise:
    """'Images' of random noise, drawn anew at every look like an augmentation; by default of classes 0 0 0 1 1 2."""

    def __init__(self, labels=(0, 0, 0, 1, 1, 2)):
        self.data_source = [type("Item", (), {"label": label}) for label in labels]

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, i):
        noise = torch.rand(3) + random.random()  # augmentations draw from both
        return {"img": noise / 2 + 10 * i, "label": self.data_source[i].label}


def make_cache(data=None, views=0, seed=1, batch_size=2, workers=0, looks=None, **options):
    def encode(images):
        if looks is not None:
            looks.append(len(images))
        return images[:, None]  # (N, 1, 3)

    loader = DataLoader(data or Noise(), batch_size=batch_size, num_workers=workers)
    return LayerCache(loader, encode, views, seed, **options)


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_view_depends_on_seed_and_number_alone_and_leaves_the_generators_as_they_were(workers):
    torch.manual_seed(5)
    random.seed(5)
    first = view_of(make_cache(workers=workers), 4)
    torch.manual_seed(6)
    random.seed(6)
    states = torch.get_rng_state(), random.getstate()
    assert torch.equal(view_of(make_cache(workers=workers), 4), first)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
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


def test_cache_keeps_what_the_encoder_returns_for_every_image_in_its_dtype():
    data = Noise(range(70))
    cache = LayerCache(DataLoader(data, 2), lambda images: images[:, None].half(), 0, 1)
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
        assert torch.equal(one["img"], other["img"]) and torch.equal(one["label"], other["label"])


def sorted_batches(cache):
    torch.manual_seed(0)
    return list(cache)


def test_cache_yields_every_sample_once_with_its_label():
    cache = make_cache()
    cache.start_epoch(0)
    batches = list(cache)
    assert len(batches) == len(cache) == 3
    features = torch.cat([batch["img"] for batch in batches])[:, 0, 0]
    labels = torch.cat([batch["label"] for batch in batches])
    order = features.argsort()
    assert torch.equal(labels[order], cache.labels)
    assert torch.equal((features[order] // 10).long(), torch.arange(6))
    assert [batch["label"].tolist() for batch in cache] != [batch["label"].tolist() for batch in cache]  # shuffled


def test_what_does_not_fill_a_batch_is_left_out_unless_it_is_all_there_is():
    cache = make_cache(batch_size=4)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [4] and len(cache) == 1
    cache = make_cache(batch_size=50)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [6] and len(cache) == 1


def test_single_class_batches_hold_one_class_each_and_leave_out_what_fills_none():
    cache = make_cache(Noise([0] * 5 + [1] * 2 + [2] + [3] * 4), single_class=True)
    cache.start_epoch(0)
    orders = set()
    for _ in range(10):
        batches = [batch["label"].tolist() for batch in cache]
        assert sorted(batches) == [[0, 0], [0, 0], [1, 1], [3, 3], [3, 3]] and len(cache) == 5
        orders.add(str(batches))
    assert len(orders) > 1  # classes come in random order
    images = torch.cat([batch["img"] for batch in cache])
    assert len(images.unique(dim=0)) == 10


def test_single_class_batches_fall_back_to_mixed_ones_where_no_class_fills_one():
    """As in the released code, which mixes the classes of 1 and 2 shots."""
    one, other = make_cache(batch_size=4, single_class=True), make_cache(batch_size=4)
    assert not one.single_class and len(one) == len(other) == 1
    one.start_epoch(0)
    other.start_epoch(0)
    (mixed,), (expected,) = sorted_batches(one), sorted_batches(other)
    assert torch.equal(mixed["img"], expected["img"]) and len(mixed["label"].unique()) > 1
