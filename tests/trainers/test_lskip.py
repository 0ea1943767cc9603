"""LSkip: cut anywhere, the towers still compute what the whole ones do; the cache holds what it says."""

import pytest
import torch
from torch.utils.data import DataLoader

from clip import clip
from dassl.utils import UserError
from trainers.lskip import DeepImage, DeepText, LayerCache, run_blocks, run_last_block, shallow_image, shallow_text

TEXTS = ["a photo of a cat.", "a photo of a very long haired guinea pig.", "ox"]


@pytest.mark.parametrize("omega", [0, 1, 2])
def test_cut_image_tower_gives_the_whole_towers_features_and_gradients(random_clip, omega):
    images = torch.randn(5, 3, 32, 32)
    whole = random_clip.encode_image(images)
    whole.square().sum().backward()
    parts = dict(random_clip.visual.named_parameters())
    expected = {name: p.grad.clone() for name, p in parts.items()}
    random_clip.zero_grad()
    deep = DeepImage(random_clip.visual, omega)
    features = deep(shallow_image(random_clip.visual, images, omega))
    features.square().sum().backward()
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    learned = [name for name, p in parts.items() if p.grad is not None]
    assert learned and not any(f"resblocks.{i}." in name for name in learned for i in range(omega))
    for name in learned:
        torch.testing.assert_close(parts[name].grad, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("omega", [0, 1, 2])
def test_cut_text_tower_gives_the_whole_towers_features_and_gradients(random_clip, omega):
    tokens = clip.tokenize(TEXTS)
    # The reference runs all 77 positions through OpenAI's order of operations.
    x = random_clip.token_embedding(tokens) + random_clip.positional_embedding
    x = random_clip.ln_final(random_clip.transformer(x.transpose(0, 1)).transpose(0, 1))
    whole = x[torch.arange(len(x)), tokens.argmax(-1)] @ random_clip.text_projection
    whole.square().sum().backward()
    parts = dict(random_clip.named_parameters())
    expected = {name: None if p.grad is None else p.grad.clone() for name, p in parts.items()}
    random_clip.zero_grad()
    deep = DeepText(random_clip, omega)
    features = deep(shallow_text(random_clip, tokens, omega), tokens.argmax(-1))
    features.square().sum().backward()
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    learned = [name for name, p in parts.items() if p.grad is not None]
    assert "text_projection" in learned and "token_embedding.weight" not in learned
    for name in learned:
        torch.testing.assert_close(parts[name].grad, expected[name], rtol=1e-3, atol=1e-5)


def test_text_is_cut_behind_its_last_end_of_text_token(random_clip):
    tokens = clip.tokenize(TEXTS)
    assert shallow_text(random_clip, tokens, 1).shape == (3, int(tokens.argmax(-1).max()) + 1, 64)


def test_shallow_half_keeps_no_graph(random_clip):
    assert not shallow_image(random_clip.visual, torch.randn(2, 3, 32, 32), 2).requires_grad
    assert not shallow_text(random_clip, clip.tokenize(TEXTS), 2).requires_grad


@pytest.mark.parametrize("causal", [False, True])
def test_last_block_at_one_position_equals_the_whole_block_there(random_clip, causal):
    block = random_clip.transformer.resblocks[0]
    x, position = torch.randn(7, 4, 64), torch.tensor([0, 6, 3, 2])
    mask = torch.full((7, 7), float("-inf")).triu(1) if causal else None
    whole = run_blocks([block], x, mask)[position, torch.arange(4)]
    torch.testing.assert_close(run_last_block(block, x, position, causal), whole, rtol=1e-4, atol=1e-5)


def test_state_dict_names_the_blocks_as_the_whole_tower_does(random_clip):
    numbers = {key.split(".")[1] for key in DeepImage(random_clip.visual, 2).state_dict() if "resblocks" in key}
    assert numbers == {"2"}


class Noise:
    """Six 'images' of random noise, drawn anew at every look like an augmentation, of classes 0 0 0 1 1 2."""

    data_source = [type("Item", (), {"label": label}) for label in (0, 0, 0, 1, 1, 2)]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"img": torch.rand(3) + 10 * i, "label": self.data_source[i].label}


def make_cache(views=0, seed=1, batch_size=2, single_class=False, looks=None):
    def encode(images):
        if looks is not None:
            looks.append(len(images))
        return images[:, None]  # (N, 1, 3)

    return LayerCache(DataLoader(Noise(), batch_size=batch_size), encode, views, seed, single_class)


def test_cache_makes_a_fresh_view_in_every_epoch_and_keeps_only_that():
    cache = make_cache()
    cache.start_epoch(0)
    first = cache.features
    cache.start_epoch(1)
    assert not torch.equal(cache.features, first)
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


def test_a_view_depends_on_seed_and_number_alone_and_leaves_the_generator_as_it_was():
    one, other = make_cache(), make_cache()
    torch.manual_seed(5)
    one.start_epoch(4)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    other.start_epoch(4)
    assert torch.equal(one.features, other.features)
    assert torch.equal(torch.get_rng_state(), state)
    different = make_cache(seed=2)
    different.start_epoch(4)
    assert not torch.equal(one.features, different.features)


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


def test_what_does_not_fill_a_batch_is_left_out_unless_it_is_all_there_is():
    cache = make_cache(batch_size=4)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [4] and len(cache) == 1
    cache = make_cache(batch_size=50)
    cache.start_epoch(0)
    assert [len(batch["label"]) for batch in cache] == [6] and len(cache) == 1


def test_single_class_batches_hold_one_class_each():
    cache = make_cache(single_class=True)
    cache.start_epoch(0)
    batches = [batch["label"].tolist() for batch in cache]
    assert sorted(batches) == [[0, 0], [1, 1]] and len(cache) == 2
    with pytest.raises(UserError, match="no class has 4 images .* BATCHES to mixed"):
        make_cache(batch_size=4, single_class=True)
