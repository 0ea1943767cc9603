"""Models of open_clip and of transformers: their features are ours, in every form in which they are stored."""

import copy
import dataclasses
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import clip
from clip.keys import to_hugging_face, to_openai
from clip.weights import WeightsError, read_state_dict

TEXTS = ["a photo of a dog.", "a", "", "an icon of a very long name " * 4]


@pytest.fixture
def hugging_face(tmp_path):
    """hugging_face(folder, activation, ...) -> a random CLIPModel, which transformers has written to `folder`."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def make(folder, activation="quick_gelu", size=32, mean=(0.5, 0.5, 0.5), shard="1GB", **options):
        towers = {"hidden_act": activation, "num_hidden_layers": 2}
        text = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4} | towers
        vision = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3} | towers
        vision |= {"image_size": size, "patch_size": 16}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)
        torch.manual_seed(4)
        model = transformers.CLIPModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(folder, max_shard_size=shard, **options)
        sizes = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        pixels = transformers.CLIPImageProcessor(image_mean=list(mean), image_std=[0.5, 0.5, 0.5], **sizes)
        pixels.save_pretrained(folder)
        return model

    return make


def inputs(model):
    size = model.visual.input_resolution
    return torch.randn(3, 3, size, size), clip.tokenize(TEXTS, truncate=True)


def features(model, image, text):
    return F.normalize(model.encode_image(image), dim=-1), F.normalize(model.encode_text(text), dim=-1)


def hf_features(model, image, text):
    outputs = model(pixel_values=image, input_ids=text)
    return outputs.image_embeds, outputs.text_embeds


def assert_equal(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)


# ---- open_clip ----


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_open_clip_folder_gives_open_clips_features(theirs, tmp_path, file):
    model, preprocess = clip.load(theirs.write(tmp_path / "folder", file), device="cpu")
    image, text = inputs(model)
    with torch.no_grad():
        assert_equal(features(model, image, text), features(theirs.model, image, text))
    assert preprocess.transforms[0].size == theirs.config["vision_cfg"]["image_size"]


def test_open_clip_reads_the_folder_too_and_sees_the_same(made, tmp_path):
    folder = made("ViT-B-16-quickgelu").write(tmp_path / "folder")
    model, preprocess = clip.load(folder, device="cpu")
    theirs, their_preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    torch.testing.assert_close(preprocess(image), their_preprocess(image))
    image, text = inputs(model)
    with torch.no_grad():
        assert_equal(features(model, image, text), features(theirs, image, text))


def test_a_step_of_training_is_open_clips(theirs, tmp_path):
    ours, _ = clip.load(theirs.write(tmp_path / "folder"), device="cpu")
    image, text = inputs(ours)
    trained = [ours, copy.deepcopy(theirs.model)]
    for model in trained:
        images, texts = features(model, image, text)
        F.cross_entropy(20 * images @ texts.t(), torch.arange(3)).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        found, expected = (features(model, image, text) for model in trained)
        assert_equal(found, expected)
        assert (found[0] - features(theirs.model, image, text)[0]).abs().max() > 1e-3  # it did move


def test_the_other_activation_or_number_of_heads_gives_other_features(made, tmp_path):
    """What the facts are for: the same file with wrong ones loads nowhere, and would be wrong by this much."""
    theirs = made("ViT-H-14")
    folder = theirs.write(tmp_path / "folder")
    right, _ = clip.load(folder, device="cpu")
    image, text = inputs(right)
    weights = right.state_dict()
    wrong = clip.model.assemble(weights, dataclasses.replace(right.facts, vision_heads=4))
    other = clip.model.assemble(weights, dataclasses.replace(right.facts, activation="quick_gelu"))
    with torch.no_grad():
        expected = features(right, image, text)[0]
        assert (features(wrong, image, text)[0] - expected).abs().max() > 1e-3
        assert (features(other, image, text)[0] - expected).abs().max() > 1e-3
    for facts in ({"vision_heads": 4}, {"activation": "quick_gelu"}, {"mean": (0, 0, 0)}):
        with pytest.raises(WeightsError, match=f"{next(iter(facts))} is .* by its configuration, .* by what was given"):
            clip.load(folder, device="cpu", facts=facts)


def test_a_text_tower_of_its_own_is_read(made, tmp_path):
    theirs = made("ViT-B-16")
    torch.manual_seed(0)
    custom = open_clip.model.CustomTextCLIP(**theirs.config).eval()
    folder = theirs.write(tmp_path / "folder")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["custom_text"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {key: value.contiguous() for key, value in custom.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    model, _ = clip.load(folder, device="cpu")
    image, text = inputs(model)
    with torch.no_grad():
        assert_equal(features(model, image, text), features(custom, image, text))


# ---- Hugging Face ----


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_hugging_face_folder_gives_transformers_features(hugging_face, tmp_path, activation):
    theirs = hugging_face(tmp_path, activation)
    model, preprocess = clip.load(tmp_path, device="cpu")
    assert model.facts.activation == activation and model.facts.mean == (0.5, 0.5, 0.5)
    assert preprocess.transforms[-1].mean == (0.5, 0.5, 0.5) and preprocess.transforms[0].size == 32
    image, text = inputs(model)
    with torch.no_grad():
        assert_equal(features(model, image, text), hf_features(theirs, image, text))


def test_a_step_of_training_is_transformers(hugging_face, tmp_path):
    theirs = hugging_face(tmp_path)
    ours, _ = clip.load(tmp_path, device="cpu")
    image, text = inputs(ours)
    for model, outputs in ((ours, features), (theirs, hf_features)):
        images, texts = outputs(model, image, text)
        F.cross_entropy(20 * images @ texts.t(), torch.arange(3)).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    with torch.no_grad():
        assert_equal(features(ours, image, text), hf_features(theirs, image, text))


def test_a_model_in_several_files_is_read(hugging_face, tmp_path):
    theirs = hugging_face(tmp_path, shard="2MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model, _ = clip.load(tmp_path, device="cpu")
    image, text = inputs(model)
    with torch.no_grad():
        assert_equal(features(model, image, text), hf_features(theirs, image, text))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(WeightsError, match="index.json doesn't list the .safetensors files beside it"):
        clip.load(tmp_path, device="cpu")


def test_the_names_go_there_and_back(hugging_face, tmp_path):
    theirs = hugging_face(tmp_path).state_dict()
    theirs = {key: value for key, value in theirs.items() if not key.endswith("position_ids")}
    ours, words = to_openai(theirs)
    assert words == "Hugging Face's names"
    back = to_hugging_face(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


# ---- other names ----


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "clip_model.", "_orig_mod.module."])
@pytest.mark.parametrize("nest", ["state_dict", "model", None])
def test_prefixes_are_taken_off(make_clip, tmp_path, prefix, nest):
    state_dict = make_clip().state_dict()
    weights = {f"{prefix}{key}": value for key, value in state_dict.items()}
    torch.save({nest: weights, "epoch": 3} if nest else weights, tmp_path / "model.pt")
    found = read_state_dict(tmp_path / "model.pt")
    assert found.keys() == state_dict.keys() and all(torch.equal(found[key], state_dict[key]) for key in found)


def test_hugging_faces_names_behind_a_prefix_are_read(make_clip, tmp_path):
    state_dict = make_clip().state_dict()
    weights = {f"module.{key}": value for key, value in to_hugging_face(state_dict).items()}
    weights["module.text_model.embeddings.position_ids"] = torch.arange(77)[None]  # of older versions
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = read_state_dict(tmp_path / "pytorch_model.bin")
    assert found.keys() == state_dict.keys() and all(torch.equal(found[key], state_dict[key]) for key in found)


def test_loading_says_which_names_were_recognised(make_clip, tmp_path, capsys):
    state_dict = make_clip().state_dict()
    clip.save(make_clip(), tmp_path / "known.safetensors")
    weights = {f"module.{key}": value for key, value in to_hugging_face(state_dict).items()}
    torch.save(weights, tmp_path / "model.pt")
    clip.load(tmp_path / "model.pt", device="cpu", facts=str(tmp_path / "known.safetensors"))
    assert capsys.readouterr().out == f"{tmp_path}/model.pt: Hugging Face's names behind the prefix 'module.'\n"
    clip.load(tmp_path / "known.safetensors", device="cpu")
    assert capsys.readouterr().out == ""


def only(part):
    return lambda weights: {key: value for key, value in weights.items() if key.startswith(part)}


def beside(**extra):
    return lambda weights: weights | {key.replace("__", "."): torch.zeros(1) for key in extra}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: {"visual.layer1.0.conv1.weight": torch.zeros(1)}, "a CLIP with a ResNet: only ViT"),
        (only("visual."), "an image tower alone: a CLIP has two"),
        (lambda weights: {k: v for k, v in weights.items() if "visual" not in k}, "a text tower alone: a CLIP has two"),
        (lambda weights: only("vision_model.")(to_hugging_face(weights)), "an image tower alone"),
        (lambda weights: only("text_model.")(to_hugging_face(weights)), "a text tower alone"),
        (beside(logit_bias=1), "a SigLIP: its loss has no softmax over classes"),
        (lambda weights: {"visual.trunk.blocks.0.attn.q_proj.weight": torch.zeros(1)}, "an EVA02-CLIP: .*rotary"),
        (lambda weights: {"visual.trunk.patch_embed.weight": torch.zeros(1)}, "one of timm's image towers"),
        (lambda weights: {"prompt_learner.ctx": torch.zeros(1)}, "what a prompt method has learned.*--model-dir"),
        (lambda weights: {"text_encoder.blocks.0.ln_1.weight": torch.zeros(1)}, "a checkpoint of a run"),
        (lambda weights: {"base_model.x.lora_A.weight": torch.zeros(1)}, "a LoRA adapter"),
        (lambda weights: {"fc.weight": torch.zeros(1)}, "no CLIP that is known here; its names begin with 'fc.weight'"),
        (
            lambda weights: {f"{who}.{k}": v for k, v in weights.items() for who in ("student", "teacher")},
            "it holds 2 CLIPs, with the prefixes 'student.' and 'teacher.'",
        ),
        (
            lambda weights: {f"model.{k}": v for k, v in weights.items()} | {"loss.weight": torch.zeros(1)},
            "a CLIP with the prefix 'model.', and 'loss.weight' beside it",
        ),
    ],
)
def test_what_is_no_whole_clip_is_refused_by_what_it_is(make_clip, tmp_path, change, words):
    torch.save(change(make_clip().state_dict()), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=words) as caught:
        read_state_dict(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in str(caught.value) and "\n" not in str(caught.value)


def test_fp32_files_stay_fp32_and_small_updates_survive(make_clip, tmp_path):
    model = make_clip(embed_dim=32)
    stored = model.visual.proj.data.half().float()
    model.visual.proj.data = stored + 1e-5
    clip.save(model, tmp_path / "fp32.safetensors")
    loaded, _ = clip.load(tmp_path / "fp32.safetensors", device="cpu")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    rounded = clip.model.build_model(model.state_dict()).float()  # OpenAI's function
    assert (rounded.visual.proj == stored).float().mean() > 0.5  # most of the updates are gone there
