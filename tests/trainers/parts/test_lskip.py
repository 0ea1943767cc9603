"""LSkip: cut anywhere, the towers still compute what the whole ones do."""

import pytest
import torch

from benchmarks import plain
from clip import clip
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
