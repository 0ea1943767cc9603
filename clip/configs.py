"""What open_clip's and Hugging Face's configuration files say of a CLIP, in the words of origins.py."""

import json
from collections.abc import Mapping
from pathlib import Path

from .errors import WeightsError
from .origins import ACTIVATIONS, ASKED, METADATA, Facts, checked

LARGEST = 1 << 20  # bytes of a configuration file


def facts_in_metadata(metadata: Mapping[str, str] | None, where: str) -> dict:
    """The facts that a .safetensors file of ours carries; {} for another's."""
    if METADATA not in (metadata or {}):
        return {}
    found = _parsed(metadata[METADATA], where)
    names = set(Facts.__dataclass_fields__)
    if set(found) != names:
        raise WeightsError(f"{where}: its metadata lack or add facts: {', '.join(sorted(set(found) ^ names))}")
    for key in names - {"resize", *ASKED}:
        _whole(found, key, where)
    return found | {key: checked(f"{where}, {key}", key, found[key]) for key in ASKED} | _resize(found["resize"], where)


def facts_in_folder(folder: Path) -> dict:
    """What the configuration files in `folder` say; {} if there are none. Where two speak, they have to agree."""
    found = {}
    for name, read in (("open_clip_config.json", _open_clip), ("config.json", _hugging_face)):
        if (folder / name).is_file():
            facts = read(folder)
            for key in facts.keys() & found.keys():
                if facts[key] != found[key]:
                    both = f"open_clip_config.json says {found[key]}, config.json {facts[key]}"
                    raise WeightsError(f"{folder}: {both} for {key}: remove the wrong one")
            found |= facts
    return found


def read_config(path: Path) -> dict:
    """A JSON file with a mapping. Raises WeightsError, naming the file, for anything else."""
    try:
        if path.stat().st_size > LARGEST:
            raise WeightsError(f"{path} has {path.stat().st_size:,} bytes: a configuration has fewer")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"Can't read {path} ({error}): replace it") from error
    return _parsed(text, path)


def _parsed(text, where):
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} is no JSON ({error}): replace it") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{where} holds no mapping: replace it")
    return found


def _section(config, key, where):
    found = config.get(key)
    if not isinstance(found, dict):
        raise WeightsError(f"{where} has no section {key!r}: it is no CLIP's")
    return found


def _whole(section, key, where, default=None):
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 24:
        raise WeightsError(f"{where}: {key} is {value!r}, and has to be a whole number from 1")
    return value


def _resize(value, where):
    if value not in ("shortest", "squash"):
        raise WeightsError(f"{where}: images resized by {value!r} are not supported, only shortest and squash")
    return {"resize": value}


# What an open_clip configuration may say besides sizes without changing what is computed.
_HARMLESS = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "hf_tokenizer_name", "output_tokens"}
_PLAIN = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}
_READ = {
    "layers",
    "width",
    "head_width",
    "heads",
    "mlp_ratio",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
}


def _open_clip(folder):
    """The facts in an `open_clip_config.json` (https://github.com/mlfoundations/open_clip, factory.py)."""
    where = folder / "open_clip_config.json"
    config = read_config(where)
    model, pixels = _section(config, "model_cfg", where), config.get("preprocess_cfg", {})
    vision, text = _section(model, "vision_cfg", where), _section(model, "text_cfg", where)
    _refuse_other_towers(where, model, vision, text)
    width, text_width = _whole(vision, "width", where, 768), _whole(text, "width", where, 512)
    found = {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "vision_heads": width // _whole(vision, "head_width", where, 64),
        "text_heads": _whole(text, "heads", where, 8),
        "embed_dim": _whole(model, "embed_dim", where),
        "image_size": _square(vision.get("image_size", 224), where),
        "patch_size": _square(vision.get("patch_size", 16), where),
        "vision_width": width,
        "vision_layers": _whole(vision, "layers", where, 12),
        "vision_mlp": _hidden(vision, width, where),
        "context_length": _whole(text, "context_length", where, 77),
        "vocab_size": _whole(text, "vocab_size", where, 49408),
        "text_width": text_width,
        "text_layers": _whole(text, "layers", where, 12),
        "text_mlp": _hidden(text, text_width, where),
    }
    return found | _pixels(pixels, "mean", "std", where) | _resize(pixels.get("resize_mode", "shortest"), where)


def _hidden(tower, width, where):
    """Hidden width of the MLPs."""
    ratio = tower.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 64:
        raise WeightsError(f"{where}: mlp_ratio is {ratio!r}, and has to be a number such as 4.0")
    return int(width * ratio)


def _refuse_other_towers(where, model, vision, text):
    """WeightsError for what open_clip computes and clip/ doesn't."""
    name = str(vision.get("timm_model_name") or "")
    for part, reason in OTHER_TOWERS.items():
        if part in name.lower():
            raise WeightsError(f"{where}: {reason}")
    if name:
        raise WeightsError(f"{where}: its image tower is timm's {name}: only OpenAI's plain ViT is supported")
    if text.get("hf_model_name"):
        raise WeightsError(f"{where}: its text tower is {text['hf_model_name']}: only CLIP's own is supported")
    if isinstance(vision.get("layers"), list):
        raise WeightsError(f"{where}: a ResNet: only ViT backbones are supported")
    for extra in ("multimodal_cfg", "init_logit_bias", "nonscalar_logit_scale"):
        if model.get(extra):
            raise WeightsError(f"{where}: {extra} is set: only plain CLIPs are supported")
    for tower in (vision, text):
        for key in sorted(tower.keys() - _READ - _HARMLESS):
            if tower[key] and tower[key] not in _PLAIN.get(key, ()):
                raise WeightsError(f"{where}: {key} is {tower[key]!r}: only OpenAI's plain towers are supported")


# Why not: what Skip Tuning and its exact savings rest on and these towers don't have.
SIGLIP = (
    "a SigLIP: its loss has no softmax over classes, which CSkip's choice of classes rests on, and its texts are not "
    "causal, so they can't be cut at their end; it is not supported"
)
EVA02 = (
    "an EVA02-CLIP: its image tower has rotary positions, gated MLPs and norms within blocks, which clip/'s blocks "
    "don't compute; it is not supported"
)
OTHER_TOWERS = {"siglip": SIGLIP, "eva": EVA02}


def _hugging_face(folder):
    """The facts in transformers' `config.json` and `preprocessor_config.json` of a CLIPModel."""
    where = folder / "config.json"
    config = read_config(where)
    kind = config.get("model_type")
    if kind != "clip":
        if "siglip" in str(kind):
            raise WeightsError(f"{where}: {SIGLIP}")
        if "vision_config" not in config and kind is None:
            return {}  # of another program, such as open_clip's older repositories
        raise WeightsError(f"{where}: its model_type is {kind!r}, and has to be 'clip' (a CLIPModel with both towers)")
    towers = {}
    for tower, defaults in _HF_DEFAULTS.items():  # an older version wrote some values into *_config_dict only
        sections = [config.get(f"{tower}_config"), config.get(f"{tower}_config_dict")]
        found = dict(defaults)
        for section in sections:
            if section is not None and not isinstance(section, dict):
                raise WeightsError(f"{where}: {tower}_config is no mapping")
            found |= section or {}
        towers[tower] = found
    vision, text = towers["vision"], towers["text"]
    if vision["hidden_act"] != text["hidden_act"] or vision["hidden_act"] not in ACTIVATIONS:
        both = f"{vision['hidden_act']!r} and {text['hidden_act']!r}"
        raise WeightsError(f"{where}: hidden_act is {both}: both have to be quick_gelu or both gelu")
    if not vision["layer_norm_eps"] == text["layer_norm_eps"] == 1e-5:
        raise WeightsError(f"{where}: layer_norm_eps has to be 1e-5")
    found = {
        "activation": vision["hidden_act"],
        "vision_heads": _whole(vision, "num_attention_heads", where),
        "text_heads": _whole(text, "num_attention_heads", where),
        "embed_dim": _whole(config, "projection_dim", where, 512),
        "image_size": _square(vision["image_size"], where),
        "patch_size": _square(vision["patch_size"], where),
        "vision_width": _whole(vision, "hidden_size", where),
        "vision_layers": _whole(vision, "num_hidden_layers", where),
        "vision_mlp": _whole(vision, "intermediate_size", where),
        "context_length": _whole(text, "max_position_embeddings", where),
        "vocab_size": _whole(text, "vocab_size", where),
        "text_width": _whole(text, "hidden_size", where),
        "text_layers": _whole(text, "num_hidden_layers", where),
        "text_mlp": _whole(text, "intermediate_size", where),
    }
    return found | _preprocessor(folder, found["image_size"])


# What CLIPConfig takes for granted, so that it isn't written.
_HF_DEFAULTS = {
    "vision": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "text": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}


def _preprocessor(folder, image_size):
    """Mean, std and resize; transformers 5 writes them into processor_config.json. {} where neither file is there."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        where = folder / name
        if where.is_file():
            pixels = read_config(where)
            pixels = pixels.get("image_processor", pixels)
            if not isinstance(pixels, dict):
                raise WeightsError(f"{where}: image_processor is no mapping")
            size = pixels.get("size", {})
            for key in ("size", "crop_size"):
                _check_side(key, pixels.get(key), image_size, where)
            squash = isinstance(size, dict) and "height" in size  # transformers then keeps no proportions
            return _pixels(pixels, "image_mean", "image_std", where) | {"resize": "squash" if squash else "shortest"}
    return {}


def _check_side(key, side, image_size, where):
    """WeightsError unless images are resized to, and cut to, the pixels that the model takes, or nothing is said."""
    for value in side.values() if isinstance(side, dict) else [side]:
        if value not in (None, image_size):
            raise WeightsError(
                f"{where}: {key} is {side}, and the model takes {image_size} pixels: a resize to another size than is"
                f" then cut out is not supported; with {image_size} there, features of image files differ a little"
            )


def _pixels(section, mean, std, where):
    if not isinstance(section, dict):
        raise WeightsError(f"{where}: what it says of the images is no mapping")
    named = {"mean": mean, "std": std}
    return {key: checked(f"{where}, {name}", key, section[name]) for key, name in named.items() if name in section}


def _square(value, where):
    """224 or [224, 224] -> 224."""
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if sides[0] != sides[1]:
        raise WeightsError(f"{where}: images or patches of {value} pixels: they have to be square")
    return _whole({"image or patch size": sides[0]}, "image or patch size", where)
