"""The facts of a CLIP that its weights don't show, and where they are written down.

Activation, heads, mean and standard deviation of the pixels can't be seen in a state dict: a file of laion's ViT-B-16
has the names and shapes of OpenAI's, and every feature is wrong if it runs with QuickGELU. So they travel with the
weights: `open_clip_config.json`, Hugging Face's `config.json` with `preprocessor_config.json`, the metadata of our own
.safetensors files, OpenAI's names, or what the user says. Nothing is guessed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .errors import WeightsError

ACTIVATIONS = ("quick_gelu", "gelu")
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
CONTEXT, VOCABULARY = 77, 49408  # what clip.tokenize gives
ASKED = ("activation", "vision_heads", "text_heads", "mean", "std")  # what no shape tells
METADATA = "clip"  # the key under which a .safetensors file of ours has its facts, as JSON


@dataclass(frozen=True)
class Facts:
    """All that is needed to build a CLIP and to feed it; sizes in tokens, channels and pixels."""

    activation: str  # "quick_gelu" or "gelu"
    vision_heads: int
    text_heads: int
    mean: tuple[float, float, float]  # of the pixels in 0 ... 1
    std: tuple[float, float, float]
    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_mlp: int  # hidden width
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    text_mlp: int
    resize: str = "shortest"  # the shorter side becomes image_size, then a centre crop; "squash": both sides do

    def metadata(self) -> dict[str, str]:
        """What a .safetensors file carries so that `facts_in_metadata` finds these facts again."""
        return {"format": "pt", METADATA: json.dumps(asdict(self))}


# ---- sizes, which the shapes tell ----


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """{key: shape} in OpenAI's names -> the sizes among the facts; WeightsError for what is no CLIP with a ViT."""

    def size(key, dimensions, index):
        if len(shapes.get(key, ())) != dimensions:
            state = f"has the shape {tuple(shapes[key])}" if key in shapes else "is missing"
            raise WeightsError(f"not a CLIP with a ViT: {key!r} {state}")
        return int(shapes[key][index])

    grid = math.isqrt(max(size("visual.positional_embedding", 2, 0) - 1, 0))
    if grid**2 + 1 != shapes["visual.positional_embedding"][0] or not grid:
        raise WeightsError("not a CLIP with a ViT for square images: 'visual.positional_embedding' has no square grid")
    patch = size("visual.conv1.weight", 4, 3)
    return {
        "embed_dim": size("text_projection", 2, 1),
        "image_size": patch * grid,
        "patch_size": patch,
        "vision_width": size("visual.conv1.weight", 4, 0),
        "vision_layers": _depth(shapes, "visual.transformer.resblocks."),
        "vision_mlp": size("visual.transformer.resblocks.0.mlp.c_fc.weight", 2, 0),
        "context_length": size("positional_embedding", 2, 0),
        "vocab_size": size("token_embedding.weight", 2, 0),
        "text_width": size("ln_final.weight", 1, 0),
        "text_layers": _depth(shapes, "transformer.resblocks."),
        "text_mlp": size("transformer.resblocks.0.mlp.c_fc.weight", 2, 0),
    }


def _depth(shapes, prefix):
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


def _openai_sizes(embed_dim, image_size, patch_size, width, layers, text_width):
    towers = {"vision_width": width, "vision_layers": layers, "vision_mlp": 4 * width}
    text = {"text_width": text_width, "text_layers": 12, "text_mlp": 4 * text_width}
    sizes = {"embed_dim": embed_dim, "image_size": image_size, "patch_size": patch_size}
    return sizes | towers | text | {"context_length": CONTEXT, "vocab_size": VOCABULARY}


OPENAI_SIZES = {
    "ViT-B/32": _openai_sizes(512, 224, 32, 768, 12, 512),
    "ViT-B/16": _openai_sizes(512, 224, 16, 768, 12, 512),
    "ViT-L/14": _openai_sizes(768, 224, 14, 1024, 24, 768),
    "ViT-L/14@336px": _openai_sizes(768, 336, 14, 1024, 24, 768),
}


def openai_facts(sizes: Mapping[str, int]) -> Facts:
    """The facts of a model that follows OpenAI's conventions: QuickGELU, 64 channels a head, OpenAI's mean and std."""
    heads = {"vision_heads": sizes["vision_width"] // 64, "text_heads": sizes["text_width"] // 64}
    return Facts(activation="quick_gelu", **heads, mean=PIXEL_MEAN, std=PIXEL_STD, **sizes)


# ---- from all that is known to the facts ----


def complete(where: str, known: Mapping, given: Mapping, sizes: Mapping[str, int]) -> Facts:
    """Facts of the weights at `where`: what was `known` with them, what the user has `given`, and their own sizes.

    Raises WeightsError where two of them contradict each other, where a fact is missing, and for a model that
    clip.tokenize has no tokens for.
    """
    found = dict(known)
    for source, facts in (("what was given", given), ("their shapes", sizes)):
        for key, value in facts.items():
            if found.setdefault(key, value) != value:
                raise WeightsError(f"{where}: {key} is {found[key]} by its configuration, {value} by {source}")
    missing = [key for key in ASKED if key not in found]
    if missing:
        options = ", ".join(f"MODEL.BACKBONE.{key.upper()}" for key in missing)
        raise WeightsError(
            f"{where}: nothing says which {', '.join(missing)} these weights need, and wrong ones give wrong features "
            f"without an error: give {options}, or MODEL.BACKBONE.LIKE with the model that they were tuned from, such "
            "as ViT-B/16"
        )
    for tower in ("vision", "text"):
        if found[f"{tower}_width"] % found[f"{tower}_heads"]:
            raise WeightsError(
                f"{where}: {found[f'{tower}_width']} channels can't be split into "
                f"{found[f'{tower}_heads']} {tower}_heads: give the right number"
            )
    if (found["context_length"], found["vocab_size"]) != (CONTEXT, VOCABULARY):
        raise WeightsError(
            f"{where}: its texts have {found['context_length']} tokens out of {found['vocab_size']}, ours "
            f"{CONTEXT} out of {VOCABULARY}: a model with another tokenizer can't be used"
        )
    return Facts(**found)


def given_facts(options: Mapping) -> dict:
    """The facts among MODEL.BACKBONE's options, ACTIVATION ... STD and LIKE, or the same in small letters.

    Empty values mean not given; LIKE is kept as "like". Raises WeightsError for values out of range.
    """
    values = {key.lower(): value for key, value in options.items() if value not in (None, "", 0, (), [])}
    return {
        key: checked(f"MODEL.BACKBONE.{key.upper()}", key, values[key]) for key in (*ASKED, "like") if key in values
    }


def checked(place: object, key: str, value: object) -> object:
    """The fact `key` in its own type. Raises WeightsError, with the `place` where it stands, if it is out of range."""
    if key == "like" and isinstance(value, str):
        return value
    if key == "activation" and value in ACTIVATIONS:
        return value
    if key.endswith("_heads") and isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if key in ("mean", "std") and _three_numbers(value) and (key == "mean" or min(value) > 0):
        return tuple(float(number) for number in value)
    wanted = {"activation": f"one of {', '.join(ACTIVATIONS)}", "mean": "three numbers", "like": "a model's name"}
    wanted |= {"std": "three numbers above 0"}
    raise WeightsError(f"{place} is {value!r}: it takes {wanted.get(key, 'a whole number from 1')}")


def _three_numbers(value):
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in value)
    )
