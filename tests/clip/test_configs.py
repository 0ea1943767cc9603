"""open_clip's and Hugging Face's configuration files: what they say, and every way in which they can be wrong."""

import dataclasses
import json

import pytest
from safetensors.torch import save_file

import clip
from clip.configs import facts_in_folder
from clip.weights import WeightsError

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}
# As laion's and OpenAI's repositories have them: what equals transformers' defaults is often left out.
HUGGING_FACE = {
    "model_type": "clip",
    "projection_dim": 1024,
    "vision_config": {
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 224,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
    },
    "text_config": {
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
    },
}
PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], "size": 224, "crop_size": 224}


@pytest.fixture
def put(tmp_path):
    """put(name, content, ...) -> a folder with these files, JSON where the content is no text."""

    def write(*files):
        for name, content in zip(files[::2], files[1::2], strict=True):
            content = content if isinstance(content, str | bytes) else json.dumps(content)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


def changed(config, *path_and_value):
    """A copy of `config` with another value at the path; without one where the value is missing."""
    copy = json.loads(json.dumps(config))
    *path, key, value = path_and_value
    part = copy
    for name in path:
        part = part[name]
    part[key] = value
    return copy


def test_both_families_say_the_same_of_vit_h_14(put):
    folder = put("open_clip_config.json", OPEN_CLIP)
    by_open_clip = clip.facts(folder)
    assert (by_open_clip.vision_heads, by_open_clip.text_heads, by_open_clip.vision_mlp) == (16, 16, 5120)
    assert (by_open_clip.activation, by_open_clip.mean, by_open_clip.std) == ("gelu", (0.5,) * 3, (0.2,) * 3)
    put("config.json", HUGGING_FACE, "preprocessor_config.json", PIXELS)
    assert clip.facts(folder) == by_open_clip  # and both together agree
    (folder / "open_clip_config.json").unlink()
    assert clip.facts(folder) == by_open_clip


def test_g_and_bigg_have_mlps_of_their_own_width(put):
    for width, ratio, hidden in ((1408, 4.3637, 6144), (1664, 4.9231, 8192)):
        vision = {"width": width, "head_width": width // 16, "mlp_ratio": ratio, "layers": 40, "patch_size": 14}
        facts = clip.facts(put("open_clip_config.json", changed(OPEN_CLIP, "model_cfg", "vision_cfg", vision)))
        assert (facts.vision_mlp, facts.vision_heads) == (hidden, 16)


def test_what_transformers_takes_for_granted_is_known(put):
    bare = {
        "model_type": "clip",
        "vision_config": {},
        "text_config": None,
        "text_config_dict": {"hidden_act": "quick_gelu"},
    }
    facts = clip.facts(put("config.json", bare, "preprocessor_config.json", PIXELS))
    assert facts == dataclasses.replace(clip.facts("ViT-B/32"), mean=(0.5,) * 3, std=(0.2,) * 3)


def test_an_older_version_of_a_value_is_overruled(put):
    both = HUGGING_FACE | {"vision_config_dict": {"num_attention_heads": 8}}
    assert clip.facts(put("config.json", both, "preprocessor_config.json", PIXELS)).vision_heads == 8


@pytest.mark.parametrize("crop", [True, False])
def test_a_height_and_a_width_squash_images_as_in_transformers_also_before_a_crop(put, crop):
    side = {"height": 224, "width": 224}
    pixels = PIXELS | {"size": side, "crop_size": side, "do_center_crop": crop}
    assert clip.facts(put("config.json", HUGGING_FACE, "preprocessor_config.json", pixels)).resize == "squash"
    assert clip.facts(put("preprocessor_config.json", PIXELS)).resize == "shortest"


@pytest.mark.parametrize("change", [{"size": {"shortest_edge": 256}}, {"size": 256}, {"crop_size": {"height": 240}}])
def test_a_resize_to_another_size_than_the_models_images_is_refused(put, change):
    folder = put("config.json", HUGGING_FACE, "preprocessor_config.json", PIXELS | change)
    key, side = next(iter(change.items()))
    with pytest.raises(WeightsError, match="the model takes 224 pixels") as caught:
        clip.facts(folder)
    assert f"{folder}/preprocessor_config.json: {key} is {side}" in str(caught.value)
    assert clip.facts(put("preprocessor_config.json", PIXELS | {key: None})).image_size == 224


def test_transformers_5_keeps_the_pixels_in_the_processors_file(put):
    facts = clip.facts(put("config.json", HUGGING_FACE, "processor_config.json", {"image_processor": PIXELS}))
    assert facts.mean == (0.5,) * 3


def test_a_folder_without_pixels_asks_for_mean_and_std_alone(put):
    folder = put("config.json", HUGGING_FACE)
    with pytest.raises(WeightsError, match="nothing says which mean, std these weights need"):
        clip.facts(folder)
    assert clip.facts(folder, {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}).std == (0.2,) * 3


def test_two_files_that_contradict_each_other_are_refused(put):
    wrong = changed(HUGGING_FACE, "vision_config", "hidden_act", "quick_gelu")
    wrong = changed(wrong, "text_config", "hidden_act", "quick_gelu")
    folder = put("open_clip_config.json", OPEN_CLIP, "config.json", wrong)
    with pytest.raises(WeightsError, match="open_clip_config.json says gelu, config.json quick_gelu for activation"):
        clip.facts(folder)


def test_another_programs_config_is_passed_over(put):
    assert facts_in_folder(put("config.json", {"hf_model_name": "something"})) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model_cfg", None), "has no section 'model_cfg'"),
        (("model_cfg", "vision_cfg", [1]), "has no section 'vision_cfg'"),
        (("model_cfg", "embed_dim", "wide"), "embed_dim is 'wide', and has to be a whole number"),
        (("model_cfg", "embed_dim", None), "embed_dim is None"),
        (("model_cfg", "text_cfg", "heads", 0), "heads is 0"),
        (("model_cfg", "text_cfg", "heads", True), "heads is True"),
        (("model_cfg", "text_cfg", "heads", 10**12), "heads is 1000000000000"),
        (("model_cfg", "vision_cfg", "mlp_ratio", "4"), "mlp_ratio is '4', and has to be a number"),
        (("model_cfg", "vision_cfg", "image_size", [224, 320]), "they have to be square"),
        (("model_cfg", "vision_cfg", "layers", [3, 4, 6, 3]), "a ResNet"),
        (("model_cfg", "vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"), "a SigLIP: .*softmax"),
        (("model_cfg", "vision_cfg", "timm_model_name", "eva02_base_patch16_clip_224"), "an EVA02-CLIP: .*rotary"),
        (("model_cfg", "vision_cfg", "timm_model_name", "convnext_base"), "timm's convnext_base: only OpenAI's"),
        (("model_cfg", "vision_cfg", "pool_type", "avg"), "pool_type is 'avg': only OpenAI's plain towers"),
        (("model_cfg", "vision_cfg", "no_ln_pre", True), "no_ln_pre is True: only"),
        (("model_cfg", "text_cfg", "no_causal_mask", True), "no_causal_mask is True: only"),
        (("model_cfg", "text_cfg", "hf_model_name", "roberta-base"), "its text tower is roberta-base"),
        (("model_cfg", "multimodal_cfg", {"width": 1}), "multimodal_cfg is set"),
        (("model_cfg", "init_logit_bias", -10), "init_logit_bias is set"),
        (("preprocess_cfg", "mean", [0.5]), "mean is .*: it takes three numbers"),
        (("preprocess_cfg", "std", [0, 0, 0]), "std is .*: it takes three numbers above 0"),
        (("preprocess_cfg", "resize_mode", "longest"), "images resized by 'longest' are not supported"),
        (("preprocess_cfg", 7), "is no mapping"),
    ],
)
def test_a_wrong_value_in_open_clips_file_is_named(put, change, words):
    folder = put("open_clip_config.json", changed(OPEN_CLIP, *change))
    with pytest.raises(WeightsError, match=words) as caught:
        clip.facts(folder)
    assert f"{folder}/open_clip_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model_type", "siglip"), "a SigLIP: .*softmax"),
        (("model_type", "clip_vision_model"), "model_type is 'clip_vision_model', and has to be 'clip'"),
        (("model_type", None), "model_type is None"),
        (("vision_config", "wide"), "vision_config is no mapping"),
        (("vision_config", "hidden_act", "gelu_new"), "hidden_act is 'gelu_new' and 'gelu'"),
        (("vision_config", "hidden_act", "quick_gelu"), "both have to be quick_gelu or both gelu"),
        (("vision_config", "layer_norm_eps", 1e-6), "layer_norm_eps has to be 1e-5"),
        (("vision_config", "num_attention_heads", None), "num_attention_heads is None"),
        (("text_config", "hidden_size", 0.5), "hidden_size is 0.5"),
        (("projection_dim", "x"), "projection_dim is 'x'"),
    ],
)
def test_a_wrong_value_in_hugging_faces_file_is_named(put, change, words):
    folder = put("config.json", changed(HUGGING_FACE, *change), "preprocessor_config.json", PIXELS)
    with pytest.raises(WeightsError, match=words) as caught:
        clip.facts(folder)
    assert f"{folder}/config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["open_clip_config.json", "config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON"),
        (b"{", "is no JSON"),
        (b"[" * 200_000, "is no JSON"),
        (b"[1, 2]", "holds no mapping"),
        ("{}".encode("utf-16"), "Can't read"),
        (b"\xff\xfe", "Can't read"),
        (b" " * 2_000_000, "bytes: a configuration has fewer"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(put, name, content, words):
    folder = put(name, content)
    with pytest.raises(WeightsError, match=words) as caught:
        clip.facts(folder)
    assert f"{folder}/{name}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", ["[]", "{", "{}", '{"activation": "gelu"}'])
def test_damaged_metadata_are_one_line(tmp_path, make_clip, metadata):
    save_file(make_clip().state_dict(), tmp_path / "own.safetensors", metadata={"clip": metadata})
    with pytest.raises(WeightsError, match=r"own\.safetensors"):
        clip.facts(tmp_path / "own.safetensors")


def test_sizes_that_are_not_the_weights_are_refused(made, tmp_path):
    folder = made("ViT-B-16").write(tmp_path / "folder")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["layers"] = 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="vision_layers is 3 by its configuration, 2 by their shapes"):
        clip.load(folder)
