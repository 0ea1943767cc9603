"""`clip.load` and `clip.facts`: names and files in, a model with its facts and its transform out."""

import hashlib
import pickle
import random
import re

import open_clip
import pytest
import torch
from PIL import Image

import clip
from clip.clip import _MODELS
from clip.origins import PIXEL_MEAN, PIXEL_STD
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
