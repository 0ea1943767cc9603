import open_clip
import pytest
import torch
import torch.nn.functional as F

import clip
from clip.model import CLIP, LayerNorm, QuickGELU, build_model, convert_weights

#            embed  pixels layers width patch  text width, heads, layers
BACKBONES = {
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
}
SIZES = {
    "tiny": {},
    "shallow ViT-B/32": dict(
        embed_dim=512,
        image_resolution=224,
        vision_layers=2,
        vision_width=768,
        vision_patch_size=32,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=2,
    ),
}
TEXTS = ["a photo of a dog.", "a", "", "an icon of a very long name " * 4]


@pytest.fixture(params=SIZES)
def pair(request, make_clip):
    """(ours, open_clip's) with the same random weights in fp32."""
    ours = make_clip(**SIZES[request.param])
    visual = ours.visual
    theirs = open_clip.model.CLIP(
        embed_dim=visual.output_dim,
        vision_cfg=dict(
            layers=visual.transformer.layers,
            width=visual.transformer.width,
            patch_size=visual.conv1.kernel_size[0],
            image_size=visual.input_resolution,
        ),
        text_cfg=dict(
            width=ours.transformer.width,
            heads=ours.transformer.width // 64,
            layers=ours.transformer.layers,
        ),
        quick_gelu=True,
    ).eval()
    theirs.load_state_dict(ours.state_dict())  # open_clip keeps OpenAI's keys
    return ours, theirs


@pytest.fixture
def images():
    def make(model, count=3):
        size = model.visual.input_resolution
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))

    return make


def meta_clip(name):
    with torch.device("meta"):
        return CLIP(*BACKBONES[name])


def test_features_and_logits_equal_open_clips(pair, images):
    ours, theirs = pair
    image, text = images(ours), clip.tokenize(TEXTS, truncate=True)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(image), theirs.encode_image(image), atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.encode_text(text), theirs.encode_text(text), atol=1e-4, rtol=0)
        per_image, per_text = ours(image, text)
        torch.testing.assert_close(per_image, theirs.get_logits(image, text)[0], atol=1e-4, rtol=0)
    assert per_image.shape == (3, 4) and torch.equal(per_text, per_image.t())


def test_gradients_equal_open_clips(pair, images):
    ours, theirs = pair
    image, text = images(ours), clip.tokenize(TEXTS, truncate=True)
    for model in pair:
        features = model.encode_image(image), model.encode_text(text)
        F.cross_entropy(10 * F.normalize(features[0]) @ F.normalize(features[1]).t(), torch.arange(3)).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name != "logit_scale":
            scale = expected[name].grad.abs().max()
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4 * scale, rtol=1e-3, msg=name)


def test_vit_b16_has_openais_keys_and_shapes():
    def block(prefix, width):
        shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
        }
        return {f"{prefix}.{key}": shape for key, shape in shapes.items()}

    expected = {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 16, 16),
        "visual.ln_pre.weight": (768,),
        "visual.ln_pre.bias": (768,),
        "visual.ln_post.weight": (768,),
        "visual.ln_post.bias": (768,),
    }
    for i in range(12):
        expected |= block(f"transformer.resblocks.{i}", 512) | block(f"visual.transformer.resblocks.{i}", 768)
    state_dict = meta_clip("ViT-B/16").state_dict()
    assert {key: tuple(value.shape) for key, value in state_dict.items()} == expected
    assert len(expected) == 302
    assert sum(value.numel() for value in state_dict.values()) == 149_620_737


@pytest.mark.parametrize("name", BACKBONES)
def test_build_model_infers_every_size_from_the_shapes(name):
    embed, pixels, layers, width, patch, context, vocabulary, text_width, text_heads, text_layers = BACKBONES[name]
    with torch.device("meta"):
        model = build_model(CLIP(*BACKBONES[name]).state_dict())
    visual = model.visual
    assert (visual.output_dim, visual.input_resolution) == (embed, pixels)
    assert (visual.transformer.layers, visual.transformer.width) == (layers, width)
    assert visual.conv1.kernel_size == visual.conv1.stride == (patch, patch)
    assert {block.attn.num_heads for block in visual.transformer.resblocks} == {width // 64}
    assert (model.context_length, model.vocab_size) == (context, vocabulary)
    assert (model.transformer.width, model.transformer.layers) == (text_width, text_layers)
    assert {block.attn.num_heads for block in model.transformer.resblocks} == {text_heads}
    assert not model.training


def test_build_model_takes_openais_archive_scalars_and_keeps_the_values(make_clip):
    state_dict = make_clip().state_dict()
    scalars = dict(input_resolution=torch.tensor(32), context_length=torch.tensor(77), vocab_size=torch.tensor(49408))
    model = build_model(state_dict | scalars)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state_dict[key].to(value.dtype)), key


def test_build_model_refuses_a_resnet_and_missing_keys(make_clip):
    with pytest.raises(RuntimeError, match="ViT"):
        build_model({"visual.layer1.0.conv1.weight": torch.zeros(1)})
    state_dict = make_clip().state_dict()
    del state_dict["visual.ln_post.bias"]
    with pytest.raises(RuntimeError, match="visual.ln_post.bias"):
        build_model(state_dict)


def test_convert_weights_halves_what_openais_archives_hold_in_fp16():
    model = meta_clip("ViT-B/16")
    convert_weights(model)
    single = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    half = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16}
    assert (len(half), len(single)) == (195, 107)
    others = {"logit_scale", "positional_embedding", "visual.positional_embedding"}
    others |= {"visual.class_embedding", "token_embedding.weight"}
    assert others < single
    assert all(".ln_" in f".{name}" for name in single - others)
    assert {"text_projection", "visual.proj", "visual.conv1.weight"} < half
    assert model.dtype == torch.float16


def test_the_fp16_mix_computes_what_fp32_computes(make_clip, images):
    model = build_model(make_clip().state_dict())
    image, text = images(model), clip.tokenize(TEXTS, truncate=True)
    with torch.no_grad():
        mixed = model.encode_image(image), model.encode_text(text)
        model.float()
        single = model.encode_image(image), model.encode_text(text)
    for half, exact in zip(mixed, single, strict=True):
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0)


def test_layer_norm_computes_in_fp32_and_returns_the_dtype_of_its_input():
    x = 100 + torch.randn(4, 64).half()
    norm = LayerNorm(64)
    assert torch.equal(norm(x), F.layer_norm(x.float(), (64,)).half())
    assert norm.half()(x).dtype == torch.float16


def test_quick_gelu_is_x_times_sigmoid_of_1_702_x():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), x * torch.sigmoid(1.702 * x))


def test_attention_runs_through_scaled_dot_product_attention(make_clip, images, monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or original(*a, **k))
    model = make_clip()
    model.encode_image(images(model))
    model.encode_text(clip.tokenize("a dog"))
    assert len(calls) == model.visual.transformer.layers + model.transformer.layers


def test_the_text_mask_is_causal_and_no_part_of_the_state_dict(make_clip):
    model = make_clip()
    mask = model.build_attention_mask()
    later = torch.ones(77, 77).triu(1).bool()
    assert (mask[later] == float("-inf")).all() and (mask[~later] == 0).all()
    assert not any("mask" in key for key in model.state_dict())


def test_tokens_behind_end_of_text_change_nothing(make_clip):
    model = make_clip()
    text = clip.tokenize(["a dog", "a photo of a cat"])
    noisy = text.clone()
    for row, end in zip(noisy, text.argmax(dim=-1), strict=True):
        row[end + 1 :] = torch.randint(1, 49000, (76 - int(end),))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(noisy), model.encode_text(text), atol=1e-6, rtol=0)


def test_a_token_before_end_of_text_changes_the_feature(make_clip):
    model = make_clip()
    with torch.no_grad():
        dog, cat = model.encode_text(clip.tokenize(["a dog", "a cat"]))
    assert (dog - cat).abs().max() > 1e-3


def uncut_text_features(model, text, edit):
    x = (model.token_embedding(text) + model.positional_embedding).transpose(0, 1)  # (77, N, D)
    for i, block in enumerate(model.transformer.resblocks):
        x = block(edit(i, x))
    x = model.ln_final(x.transpose(0, 1))
    return x[torch.arange(len(text)), text.argmax(dim=-1)] @ model.text_projection


def test_the_sequence_is_cut_after_the_last_end_of_text_and_the_features_stay(make_clip):
    model = make_clip()
    text = clip.tokenize(["a dog", "a photo of a cat", ""])
    lengths = []
    with torch.no_grad():
        cut = model.encode_text(text, edit=lambda i, x: lengths.append(len(x)) or x)
        torch.testing.assert_close(cut, uncut_text_features(model, text, lambda i, x: x), atol=1e-5, rtol=0)
    assert lengths == [7, 7, 7]  # start, five words, end
    with torch.no_grad():
        for row, feature in zip(text, cut, strict=True):  # each text alone, cut at its own end
            torch.testing.assert_close(model.encode_text(row[None])[0], feature, atol=1e-5, rtol=0)


def test_edit_rewrites_the_text_sequence_just_before_each_block(make_clip):
    model = make_clip()
    text = clip.tokenize(["a dog", "a photo of a cat"])
    prompts = torch.randn(3, 2, 1, 64)  # (blocks, tokens, 1, D)

    def edit(i, x):
        return torch.cat([x[:1], prompts[i].expand(-1, x.shape[1], -1), x[3:]])

    with torch.no_grad():
        edited = model.encode_text(text, edit=edit)
        torch.testing.assert_close(edited, uncut_text_features(model, text, edit), atol=1e-5, rtol=0)
        assert (edited - model.encode_text(text)).abs().max() > 1e-3


def test_edit_may_lengthen_the_image_sequence_and_is_asked_once_per_block(make_clip, images):
    model = make_clip()
    visual, image, asked = model.visual, images(model), []
    prompts = torch.randn(4, 1, 128)  # (tokens, 1, D)

    def edit(i, x):
        asked.append((i, tuple(x.shape)))
        return torch.cat([x[:5], i + prompts.expand(-1, x.shape[1], -1)])

    with torch.no_grad():
        edited = model.encode_image(image, edit=edit)
        assert asked == [(0, (5, 3, 128)), (1, (9, 3, 128)), (2, (9, 3, 128))]
        patches = F.conv2d(image, visual.conv1.weight, stride=16).flatten(2).transpose(1, 2)  # (N, 4, D)
        x = torch.cat([visual.class_embedding.expand(3, 1, -1), patches], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x).transpose(0, 1)  # (5, N, D)
        for i, block in enumerate(visual.transformer.resblocks):
            x = block(torch.cat([x[:5], i + prompts.expand(-1, 3, -1)]))
        torch.testing.assert_close(edited, visual.ln_post(x[0]) @ visual.proj, atol=1e-5, rtol=0)


def test_gradients_reach_what_the_edit_brings_in(make_clip, images):
    model = make_clip().requires_grad_(False)
    prompt = torch.zeros(1, 1, 128, requires_grad=True)
    model.encode_image(images(model), edit=lambda i, x: x + prompt if i == 1 else x).square().sum().backward()
    assert prompt.grad.abs().max() > 0


def test_design_details_of_maples_descendants_are_accepted_for_plain_blocks_only(make_clip):
    state_dict = make_clip().state_dict()
    plain = {"trainer": "CoOp", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
    assert build_model(state_dict, plain).state_dict().keys() == state_dict.keys()
    with pytest.raises(RuntimeError, match="prompts in the blocks"):
        build_model(state_dict, plain | {"vision_depth": 9, "vision_ctx": 2})
