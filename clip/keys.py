"""Names of weights: which format a state dict is in, and the way from one to another.

OpenAI's names are ours and open_clip's. Hugging Face's CLIPModel has queries, keys and values apart and both
projections transposed (transformers, convert_clip_original_pytorch_to_hf.py).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .configs import EVA02, SIGLIP
from .errors import WeightsError

OPENAI, HUGGING_FACE = "OpenAI's names", "Hugging Face's names"
# A key that each format has, by which it and whatever stands before its names is known.
_MARKS = {"visual.class_embedding": OPENAI, "vision_model.embeddings.class_embedding": HUGGING_FACE}
# Constants that some versions wrote.
_CONSTANT = re.compile(r"(^|\.)(attn_mask|position_ids)$")
_RESNET = "a CLIP with a ResNet: only ViT backbones are supported"
_RUN = "test it with train.py --eval-only --model-dir RUN"
_NEVER = (  # what a name begins with, and what the file is then
    ("visual.layer1.", _RESNET),
    ("visual.attnpool.", _RESNET),
    ("logit_bias", SIGLIP),
    ("vision_model.head.", SIGLIP),
    ("visual.trunk.attn_pool.", SIGLIP),
    ("visual.trunk.blocks.0.attn.q_proj.", EVA02),
    ("visual.trunk.", "an open_clip model with one of timm's image towers: only OpenAI's plain ViT is supported"),
    ("visual.blocks.", EVA02),
    ("prompt_learner.", f"what a prompt method has learned: {_RUN}"),
    ("text_encoder.blocks.", f"a checkpoint of a run: {_RUN}"),
    ("image_encoder.", f"a checkpoint of a run: {_RUN}"),
)
_HALVES = (
    ("text_model.", "a text tower alone: a CLIP has two"),
    ("vision_model.", "an image tower alone: a CLIP has two"),
    ("visual.", "an image tower alone: a CLIP has two"),
    ("token_embedding.", "a text tower alone: a CLIP has two"),
)
_BLOCK = {  # within a block: OpenAI's, Hugging Face's
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_SINGLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # sic
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_TOWERS = {"transformer.resblocks.": "text_model.encoder.layers."} | {
    "visual.transformer.resblocks.": "vision_model.encoder.layers."
}
_PARTS = ("q_proj", "k_proj", "v_proj")


def to_openai(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Weights of a CLIP in any format -> (the same in OpenAI's names, what the format was in words).

    Prefixes such as `module.`, `model.` or `clip_model.` are taken off; values are views where possible, in their own
    dtype. Raises WeightsError, saying what was recognised, where it isn't one whole CLIP with a ViT.
    """
    weights = {key: value for key, value in weights.items() if not _CONSTANT.search(key)}
    found = [(key[: -len(mark)], name) for mark, name in _MARKS.items() for key in weights if key.endswith(mark)]
    found = [(prefix, name) for prefix, name in found if prefix == "" or prefix.endswith(".")]
    if len(found) > 1:
        prefixes = " and ".join(repr(prefix) for prefix, _ in found)
        raise WeightsError(f"it holds {len(found)} CLIPs, with the prefixes {prefixes}: save one alone")
    prefix, name = found[0] if found else ("", None)
    alien = [key for key in weights if not key.startswith(prefix)]
    if alien:
        raise WeightsError(f"a CLIP with the prefix {prefix!r}, and {alien[0]!r} beside it: save the CLIP alone")
    weights = {key[len(prefix) :]: value for key, value in weights.items()}
    _refuse_others(weights, name)
    words = name + (f" behind the prefix {prefix!r}" if prefix else "")
    if name == HUGGING_FACE:
        return _from_hugging_face(weights), words
    # open_clip's CustomTextCLIP keeps the text tower apart
    return {key.removeprefix("text."): value for key, value in weights.items()}, words


def _refuse_others(weights, name):
    """WeightsError for what is no CLIP with a ViT (`name`: the format, None if unknown), or only half of one."""
    whole = name is not None and any("token_embedding." in key for key in weights)
    for part, reason in _NEVER if whole else _NEVER + _HALVES:
        if any(key.startswith(part) for key in weights):
            raise WeightsError(reason)
    if any(".lora_" in key for key in weights):
        raise WeightsError(f"a LoRA adapter, which needs the model it was trained on: {_RUN}")
    if not whole:
        some = ", ".join(repr(key) for key in list(weights)[:3])
        raise WeightsError(f"no CLIP that is known here; its names begin with {some or 'nothing'}")


def _from_hugging_face(weights):
    weights = dict(weights)
    found = {}
    for ours, theirs in _SINGLE.items():
        if theirs in weights:
            found[ours] = weights.pop(theirs)
    for ours, theirs in _TRANSPOSED.items():
        if theirs in weights:
            found[ours] = weights.pop(theirs).t()
    for ours, theirs in _TOWERS.items():
        numbers = {key[len(theirs) :].split(".")[0] for key in weights if key.startswith(theirs)}
        for number in sorted(numbers):
            for kind in ("weight", "bias"):
                parts = [weights.pop(f"{theirs}{number}.self_attn.{part}.{kind}", None) for part in _PARTS]
                if all(part is not None for part in parts):
                    found[f"{ours}{number}.attn.in_proj_{kind}"] = torch.cat(parts)
                for our, their in _BLOCK.items():
                    if f"{theirs}{number}.{their}.{kind}" in weights:
                        found[f"{ours}{number}.{our}.{kind}"] = weights.pop(f"{theirs}{number}.{their}.{kind}")
    return found | weights  # what is left is named by whoever builds the model


def to_hugging_face(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP in OpenAI's names -> the same in those of transformers' CLIPModel; contiguous copies where cut."""
    found = {theirs: weights[ours] for ours, theirs in _SINGLE.items()}
    found |= {theirs: weights[ours].t().contiguous() for ours, theirs in _TRANSPOSED.items()}
    for ours, theirs in _TOWERS.items():
        numbers = {key[len(ours) :].split(".")[0] for key in weights if key.startswith(ours)}
        for number in sorted(numbers, key=int):
            for kind in ("weight", "bias"):
                parts = weights[f"{ours}{number}.attn.in_proj_{kind}"].chunk(3)
                for name, part in zip(_PARTS, parts, strict=True):
                    found[f"{theirs}{number}.self_attn.{name}.{kind}"] = part.clone()
                for our, their in _BLOCK.items():
                    found[f"{theirs}{number}.{their}.{kind}"] = weights[f"{ours}{number}.{our}.{kind}"]
    return found
