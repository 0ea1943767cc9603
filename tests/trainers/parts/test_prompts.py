"""Learned vectors in the towers, with all savings, against CLIP's own towers and their `edit` hook."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clip import clip
from dassl.config import Config
from dassl.utils import UserError
from trainers.frozen import template
from trainers.parts.prompts import Context, embed, encode_image, encode_text, word_vectors

NAMES = ["dog", "a very long name", "red box", "cat"]


def plain_text(model, texts, prompts, positions):
    """The same through `clip_model.encode_text`: whole sequences, every block for all tokens."""
    tokens = clip.tokenize(texts)
    rows = positions.expand(len(tokens), -1).t()[..., None].expand(-1, -1, 64)  # (n, C, D)

    def edit(i, x):
        if i not in prompts:
            return x
        vectors = prompts[i].expand(len(tokens), -1, -1)  # (C, n, D)
        if i == 0:
            vectors = vectors + model.positional_embedding[positions]
        return x.scatter(0, rows, vectors.transpose(0, 1))

    return model.encode_text(tokens, edit=edit)


def gradients(features, prompts):
    weights = torch.linspace(-1, 1, features.numel()).view_as(features)
    return torch.autograd.grad((features * weights).sum(), list(prompts.values()))


SHAPES = {
    "a context": {0: (4, 64)},
    "deep prompts": {0: (2, 64), 1: (2, 64), 2: (2, 64)},
    "a context for each class": {0: (4, 4, 64)},
    "class-aware vectors in a later block": {0: (4, 64), 2: (4, 4, 64)},
    "nothing": {},
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_text_features_and_their_gradients_are_those_of_the_edited_tower(make_clip, shapes):
    model = make_clip().requires_grad_(False)
    prompts = {block: torch.randn(shape, requires_grad=True) for block, shape in shapes.items()}
    positions = torch.arange(1, 1 + (next(iter(shapes.values()))[-2] if shapes else 0))
    texts = [f"a photo of a {name}." for name in NAMES]
    found = encode_text(model, embed(model, texts), prompts, positions)
    expected = plain_text(model, texts, prompts, positions)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if shapes:
        for ours, theirs in zip(gradients(found, prompts), gradients(expected, prompts), strict=True):
            assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shapes", [{}, {0: (2, 128)}, {0: (3, 128), 1: (3, 128), 2: (3, 128)}])
def test_image_features_and_their_gradients_are_those_of_the_edited_tower(make_clip, shapes):
    model = make_clip().requires_grad_(False)
    prompts = {block: torch.randn(shape, requires_grad=True) for block, shape in shapes.items()}
    image = torch.randn(2, 3, 32, 32)

    def edit(i, x):
        if i not in prompts:
            return x
        vectors = prompts[i][:, None].expand(-1, 2, -1)
        return torch.cat([x, model.visual.ln_pre(vectors)]) if i == 0 else torch.cat([x[: -len(vectors)], vectors])

    found, expected = encode_image(model.visual, image, prompts), model.encode_image(image, edit=edit)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    if shapes:
        for ours, theirs in zip(gradients(found, prompts), gradients(expected, prompts), strict=True):
            assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_stands_where_its_position_says(make_clip, position, per_class):
    model = make_clip().requires_grad_(False)
    vectors = torch.randn(*([4] if per_class else []), 3, 64)
    context = Context(model, NAMES, vectors, position)
    found = encode_text(model, *context.prompts())

    expected = []
    for row, name in enumerate(NAMES):
        words = model.token_embedding(clip.tokenize(f"{name}.")[0])
        end = int(clip.tokenize(name).argmax())  # the name's tokens are 1 ... end - 1
        mine = vectors[row] if per_class else vectors
        before = {"end": 3, "middle": 1, "front": 0}[position]
        x = torch.cat([words[:1], mine[:before], words[1:end], mine[before:], words[end : end + 2]])
        x = (x + model.positional_embedding[: len(x)])[:, None]
        x = model.ln_final(model.transformer(x))[-1, 0]
        expected.append(x @ model.text_projection)
    assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_context_of_the_words_themselves_is_the_hand_written_prompt(make_clip):
    model = make_clip().requires_grad_(False)
    context = Context(model, NAMES, word_vectors(model, "a photo of a"))
    expected = model.encode_text(clip.tokenize([f"a photo of a {name}." for name in NAMES]))
    assert_close(encode_text(model, *context.prompts()), expected, rtol=1e-4, atol=1e-5)
    assert list(context.state_dict()) == ["ctx"]


def test_half_precision_towers_take_vectors_in_fp32(make_clip):
    model = make_clip().requires_grad_(False)
    context = Context(model, NAMES, word_vectors(model, "a photo of a"))
    exact = encode_text(model, *context.prompts())
    model = model.bfloat16()
    context = Context(model, NAMES, context.ctx.detach())
    found = encode_text(model, *context.prompts())
    assert found.dtype == torch.bfloat16 and F.cosine_similarity(found.float(), exact).min() > 0.99
    found.float().sum().backward()
    assert context.ctx.grad.dtype == torch.float32 and context.ctx.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name, use, expected",
    [
        ("OxfordPets", "prograd", "a type of pet, a photo of a {}."),
        ("OxfordPets", "kgcoop", "a photo of a {}, a type of pet."),
        ("Caltech101", "kgcoop", "a photo of a {}."),
        ("Emoji", "zero_shot", "an emoji of a {}."),
    ],
)
def test_the_table_falls_back_to_zero_shot_and_to_the_default(name, use, expected):
    assert template(Config({"NAME": name, "TEMPLATE": ""}), use) == expected
    assert template(Config({"NAME": name, "TEMPLATE": "my {}"}), use) == "my {}"


@pytest.mark.parametrize("texts", [["a dog.", "a photo of a " + "dog " * 80], "dog " * 80])
def test_a_prompt_that_the_tower_has_no_room_for_is_named(random_clip, texts):
    with pytest.raises(UserError, match="dog dog .* is too long for context length 77 tokens: shorten the class name"):
        embed(random_clip, texts) if isinstance(texts, list) else word_vectors(random_clip, texts)
