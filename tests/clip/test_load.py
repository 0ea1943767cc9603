"""`clip.load` and `clip.facts`: names and files in, a model with its facts and its transform out."""

import dataclasses
import hashlib
import pickle
import random
import re
import warnings

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clip
from clip.clip import _MODELS
from clip.origins import OPENAI_SIZES, PIXEL_MEAN, PIXEL_STD, Facts
from clip.weights import WeightsError

OWN = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 1, "mean": PIXEL_MEAN, "std": PIXEL_STD}


def test_load_takes_a_path_and_returns_the_model_with_its_transform(make_clip, tmp_path):
    state_dict = make_clip().state_dict()
    torch.save(state_dict, tmp_path / "own.pt")
    model, preprocess = clip.load(str(tmp_path / "own.pt"), device="cpu", facts=OWN)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual.ln_pre.weight, state_dict["visual.ln_pre.weight"])
    pixels = preprocess(Image.new("L", (50, 40), 255))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32
    white = (1 - torch.tensor(clip.clip.PIXEL_MEAN)) / torch.tensor(clip.clip.PIXEL_STD)
    torch.testing.assert_close(pixels, white[:, None, None].expand(3, 32, 32))


def test_load_downloads_a_name_to_the_given_folder(make_clip, tmp_path, monkeypatch):
    state_dict = make_clip(embed_dim=24).state_dict()
    torch.save(state_dict, tmp_path / "model.pt")
    sha256 = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    (tmp_path / sha256).mkdir()
    (tmp_path / "model.pt").rename(tmp_path / sha256 / "model.pt")
    monkeypatch.setitem(_MODELS, "ViT-B/16", (tmp_path / sha256 / "model.pt").as_uri())
    model, _ = clip.load("ViT-B/16", device="cpu", download_root=str(tmp_path / "cache"))
    assert torch.equal(model.visual.proj, state_dict["visual.proj"])
    assert (tmp_path / "cache" / "model.pt").is_file()


def test_load_refuses_weights_that_are_no_vit_clip_in_one_line_that_names_the_file(make_clip, tmp_path):
    resnet = {"visual.layer1.0.conv1.weight": torch.zeros(1)}
    image_tower = {key: value for key, value in make_clip().state_dict().items() if key.startswith("visual.")}
    without_bias = {key: value for key, value in make_clip().state_dict().items() if key != "ln_final.bias"}
    for name, state_dict in {"resnet.pt": resnet, "tower.pt": image_tower, "bias.pt": without_bias}.items():
        torch.save(state_dict, tmp_path / name)
        with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / name} doesn't hold")) as caught:
            clip.load(str(tmp_path / name), device="cpu")
        assert "\n" not in str(caught.value)


def test_the_transform_equals_open_clips_and_can_be_pickled():
    ours = pickle.loads(pickle.dumps(clip.clip._transform(64)))
    theirs = open_clip.image_transform(
        64, is_train=False, mean=clip.clip.PIXEL_MEAN, std=clip.clip.PIXEL_STD, interpolation="bicubic"
    )
    noise = random.Random(1).randbytes(3 * 90 * 130)
    for size in [(90, 130), (130, 90)]:
        image = Image.frombytes("RGB", size, noise)
        torch.testing.assert_close(ours(image), theirs(image))
    assert ours(Image.new("RGBA", (70, 80))).shape == ours(Image.new("P", (64, 64))).shape == (3, 64, 64)


# ---- facts ----


def test_openais_facts_are_known_without_a_file():
    facts = clip.facts("ViT-L/14@336px")
    assert (facts.activation, facts.vision_heads, facts.text_heads) == ("quick_gelu", 16, 12)
    assert (facts.image_size, facts.context_length, facts.vision_layers) == (336, 77, 24)
    assert (facts.mean, facts.std, facts.resize) == (PIXEL_MEAN, PIXEL_STD, "shortest")
    assert {facts.vocab_size for facts in map(clip.facts, OPENAI_SIZES)} == {49408}


def test_the_embedded_models_facts_are_those_of_its_file():
    facts = clip.facts("ViT-XS/16-icons")
    model, _ = clip.load("ViT-XS/16-icons", device="cpu")
    assert facts == model.facts == clip.model.facts_of(model) and facts.image_size == 64


@pytest.mark.parametrize("name", ["own.pt", "own.safetensors", "own.bin", "jit.pt"])
def test_a_file_of_unknown_origin_is_refused_with_the_options_to_give(make_clip, tmp_path, name):
    model, path = make_clip(), tmp_path / name
    if name == "jit.pt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            example = torch.zeros(1, 3, 32, 32), clip.tokenize("a")
            torch.jit.trace(model, example, check_trace=False).save(str(path))
    elif name == "own.safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    for ask in (clip.facts, clip.load):
        with pytest.raises(
            WeightsError, match=r"nothing says which activation, .*MODEL\.BACKBONE\.ACTIVATION, "
        ) as caught:
            ask(path)
        for option in ("ACTIVATION", "VISION_HEADS", "TEXT_HEADS", "MEAN", "STD", "LIKE"):
            assert f"MODEL.BACKBONE.{option}" in str(caught.value)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match="nothing says which vision_heads, std these"):
        clip.load(path, facts={key: value for key, value in OWN.items() if key not in ("vision_heads", "std")})
    assert clip.facts(path, OWN) == clip.load(path, device="cpu", facts=OWN)[0].facts


def test_given_facts_are_those_of_the_model(make_clip, tmp_path):
    torch.save(make_clip().state_dict(), tmp_path / "own.pt")
    given = OWN | {"activation": "gelu", "vision_heads": 4, "mean": [0.5, 0.5, 0.5]}
    model, preprocess = clip.load(tmp_path / "own.pt", device="cpu", facts=given)
    blocks = model.visual.transformer.resblocks
    assert isinstance(blocks[0].mlp.gelu, torch.nn.GELU) and blocks[0].attn.num_heads == 4
    assert model.transformer.resblocks[0].attn.num_heads == 1
    assert preprocess.transforms[-1].mean == (0.5, 0.5, 0.5) == model.facts.mean


def test_the_options_of_a_configuration_are_taken_as_they_are(make_clip, tmp_path):
    torch.save(make_clip().state_dict(), tmp_path / "own.pt")
    options = {"NAME": "own.pt", "PRETRAINED": True, "ACTIVATION": "gelu", "VISION_HEADS": 2, "TEXT_HEADS": 1}
    options |= {"MEAN": list(PIXEL_MEAN), "STD": list(PIXEL_STD), "LIKE": ""}
    assert clip.facts(tmp_path / "own.pt", options).activation == "gelu"
    unset = {
        "NAME": "ViT-B/16",
        "ACTIVATION": "",
        "VISION_HEADS": 0,
        "TEXT_HEADS": 0,
        "MEAN": (),
        "STD": [],
        "LIKE": "",
    }
    assert clip.given_facts(unset) == {} and clip.facts("ViT-B/16", unset) == clip.facts("ViT-B/16")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation", "relu"),
        ("activation", 1),
        ("vision_heads", -1),
        ("vision_heads", 2.0),
        ("text_heads", True),
        ("text_heads", "two"),
        ("mean", 0.5),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", ["a", "b", "c"]),
        ("std", [0.1, 0.1, 0.0]),
        ("std", [0.1, 0.1, float("inf")]),
        ("like", 7),
    ],
)
def test_values_out_of_range_are_named(make_clip, tmp_path, key, value):
    torch.save(make_clip().state_dict(), tmp_path / "own.pt")
    with pytest.raises(WeightsError, match=f"MODEL.BACKBONE.{key.upper()} is .*: it takes "):
        clip.load(tmp_path / "own.pt", facts=OWN | {key: value})


def test_heads_have_to_divide_the_width(make_clip, tmp_path):
    torch.save(make_clip().state_dict(), tmp_path / "own.pt")
    with pytest.raises(WeightsError, match="128 channels can't be split into 3 vision_heads"):
        clip.load(tmp_path / "own.pt", facts=OWN | {"vision_heads": 3})


def test_a_known_model_stands_for_its_facts(make_clip, tmp_path, monkeypatch):
    clip.save(make_clip(), tmp_path / "known.safetensors")
    torch.save(make_clip(seed=1).state_dict(), tmp_path / "tuned.pt")
    known = clip.facts(tmp_path / "known.safetensors")
    for like in (str(tmp_path / "known.safetensors"), {"LIKE": str(tmp_path / "known.safetensors")}):
        assert clip.load(tmp_path / "tuned.pt", device="cpu", facts=like)[0].facts == known
    with pytest.raises(WeightsError, match="embed_dim is 512 by what was given, 48 by its shapes|embed_dim is"):
        clip.load(tmp_path / "tuned.pt", facts="ViT-B/16")
    with pytest.raises(WeightsError, match="activation is quick_gelu by its configuration, gelu by what was given"):
        clip.load(tmp_path / "tuned.pt", facts={"LIKE": str(tmp_path / "known.safetensors"), "ACTIVATION": "gelu"})


def test_saved_weights_carry_their_facts(make_clip, tmp_path):
    model = make_clip(vision_heads=4, activation="gelu", vision_mlp=96)
    model.facts = dataclasses.replace(clip.model.facts_of(model), mean=(0.1, 0.2, 0.3), resize="squash")
    clip.save(model, tmp_path / "own.safetensors")
    loaded, preprocess = clip.load(tmp_path / "own.safetensors", device="cpu")
    assert loaded.facts == model.facts == clip.facts(tmp_path / "own.safetensors")
    assert isinstance(loaded.facts, Facts) and loaded.facts.vision_mlp == 96
    assert preprocess(Image.new("RGB", (90, 40))).shape == (3, 32, 32)
    image, text = torch.randn(2, 3, 32, 32), clip.tokenize(["a dog", "a cat"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(image, text)[0], model(image, text)[0])
    with pytest.raises(WeightsError, match="activation is gelu by its configuration, quick_gelu by what was given"):
        clip.load(tmp_path / "own.safetensors", facts={"activation": "quick_gelu"})


def test_a_file_beside_its_configuration_is_known_by_it(made, tmp_path):
    folder = made("ViT-B-16").write(tmp_path / "folder")
    assert clip.facts(folder / "open_clip_model.safetensors") == clip.facts(folder)
    assert clip.facts(folder).activation == "gelu"
    (folder / "open_clip_model.safetensors").rename(folder / "another.safetensors")
    with pytest.raises(WeightsError, match="nothing says which activation"):
        clip.facts(folder / "another.safetensors")


def test_facts_need_no_weights_where_a_configuration_says_all(theirs, tmp_path):
    folder = theirs.write(tmp_path / "folder")
    facts = clip.load(folder, device="cpu")[0].facts
    (folder / "open_clip_model.safetensors").unlink()
    assert clip.facts(folder) == facts
    with pytest.raises(WeightsError, match="holds none of open_clip_model.safetensors"):
        clip.load(folder)


def test_weights_that_are_not_finite_are_refused(make_clip, tmp_path):
    model = make_clip()
    model.visual.proj.data[3, 4] = float("nan")
    clip.save(model, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=r"nan\.safetensors holds weights that are not finite"):
        clip.load(tmp_path / "nan.safetensors", device="cpu")


def test_another_vocabulary_or_context_is_refused(make_clip, tmp_path):
    for sizes, words in (
        ({"vocab_size": 600}, "77 tokens out of 600"),
        ({"context_length": 64}, "64 tokens out of 494"),
    ):
        torch.save(make_clip(**sizes).state_dict(), tmp_path / "own.pt")
        with pytest.raises(WeightsError, match=words):
            clip.load(tmp_path / "own.pt", facts=OWN)


def test_a_wrong_number_of_positions_or_another_shape_is_named(make_clip, tmp_path):
    state_dict = make_clip().state_dict()
    wrong = {"visual.positional_embedding": torch.zeros(4, 128)}, {"visual.ln_post.weight": torch.zeros(3)}
    for change, words in zip(wrong, ("no square grid", r"'visual.ln_post.weight' has the shape \(3,\)"), strict=True):
        torch.save(state_dict | change, tmp_path / "own.pt")
        with pytest.raises(WeightsError, match=words):
            clip.load(tmp_path / "own.pt", facts=OWN)


def test_the_transform_can_squash():
    ours = clip.clip._transform(64, resize="squash")
    theirs = open_clip.image_transform(64, is_train=False, mean=PIXEL_MEAN, std=PIXEL_STD, resize_mode="squash")
    image = Image.frombytes("RGB", (90, 130), random.Random(1).randbytes(3 * 90 * 130))
    torch.testing.assert_close(ours(image), theirs(image))
