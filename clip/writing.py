"""A CLIP as others read it: one folder for open_clip and transformers, and OpenAI's two files.

What is written is what the readers of these formats ask for (facts: open_clip 3.3.0 factory.py; transformers 4.57 and
5.24, models/clip; OpenAI's clip.py). docs/FORMATS.md says what was verified.
"""

import gzip
import warnings
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from dassl.utils import write_atomic, write_json

from .keys import to_hugging_face
from .model import ARCHIVE_SCALARS, CLIP, facts_of
from .origins import Facts
from .simple_tokenizer import END_OF_WORD, MERGE_COUNT, MERGES, SPECIAL, SimpleTokenizer

START, END = SPECIAL
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # what transformers' tokenizer splits by
_PIL = {"bicubic": 3, "bilinear": 2, "nearest": 0}


def write_folder(model: CLIP, folder: Path, facts: Facts | None = None, interpolation: str = "bicubic") -> list[str]:
    """Writes what open_clip (`local-dir:`, `hf-hub:`) and transformers (CLIPModel, CLIPProcessor) read from one folder.

    facts: mean, std and resizing, if not those the model was loaded with; interpolation: bicubic, bilinear or nearest.
    Weights keep their dtype. Returns the names of the files. OSError if one can't be written.
    """
    facts = facts or facts_of(model)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomic(folder / "open_clip_model.safetensors", save(weights, facts.metadata()))
    write_atomic(folder / "model.safetensors", save(to_hugging_face(weights), facts.metadata()))
    for name, content in (
        ("open_clip_config.json", _open_clip_config(facts, interpolation)),
        ("config.json", _hugging_face_config(facts, model.dtype)),
        ("preprocessor_config.json", _preprocessor(facts, interpolation)),
        *_tokenizer().items(),
    ):
        write_json(content, folder / name)
    write_atomic(folder / "merges.txt", "\n".join(["#version: 0.2", *_merges(), ""]).encode())
    return sorted(path.name for path in folder.iterdir())


def write_openai(model: CLIP, folder: Path, facts: Facts | None = None, torchscript: bool = False) -> list[str]:
    """Writes clip.pt, OpenAI's plain state dict, and the facts beside it, where `clip.load` finds them.

    torchscript: an archive instead, as OpenAI's own `clip.load(path)` needs it; that rounds to fp16 on loading.
    """
    facts = facts or facts_of(model)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_json(_open_clip_config(facts, "bicubic"), folder / "open_clip_config.json")
    if torchscript:
        write_atomic(folder / "clip.pt", lambda file: _write_archive(weights, facts, file))
    else:
        write_atomic(folder / "clip.pt", lambda file: torch.save(weights, file))
    return ["clip.pt", "open_clip_config.json"]


# ---- configurations ----


def _open_clip_config(facts, interpolation):
    model = {
        "embed_dim": facts.embed_dim,
        "vision_cfg": {
            "image_size": facts.image_size,
            "layers": facts.vision_layers,
            "width": facts.vision_width,
            "head_width": facts.vision_width // facts.vision_heads,
            "mlp_ratio": _ratio(facts.vision_mlp, facts.vision_width),
            "patch_size": facts.patch_size,
        },
        "text_cfg": {
            "context_length": facts.context_length,
            "vocab_size": facts.vocab_size,
            "width": facts.text_width,
            "heads": facts.text_heads,
            "layers": facts.text_layers,
            "mlp_ratio": _ratio(facts.text_mlp, facts.text_width),
        },
    }
    if facts.activation == "quick_gelu":
        model["quick_gelu"] = True
    pixels = {"mean": list(facts.mean), "std": list(facts.std)}
    return {
        "model_cfg": model,
        "preprocess_cfg": pixels | {"interpolation": interpolation, "resize_mode": facts.resize},
    }


def _ratio(hidden, width):
    """A number that, times the width and cut to a whole number as open_clip does it, gives the hidden width."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _hugging_face_config(facts, dtype):
    shared = {"hidden_act": facts.activation, "layer_norm_eps": 1e-5, "projection_dim": facts.embed_dim}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": facts.vision_width,
        "intermediate_size": facts.vision_mlp,
        "num_hidden_layers": facts.vision_layers,
        "num_attention_heads": facts.vision_heads,
        "image_size": facts.image_size,
        "patch_size": facts.patch_size,
    }
    text = {
        "model_type": "clip_text_model",
        "hidden_size": facts.text_width,
        "intermediate_size": facts.text_mlp,
        "num_hidden_layers": facts.text_layers,
        "num_attention_heads": facts.text_heads,
        "max_position_embeddings": facts.context_length,
        "vocab_size": facts.vocab_size,
        "bos_token_id": 49406,
        "eos_token_id": 49407,  # texts are pooled there; the 2 of older files means the largest id
        "pad_token_id": 49407,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": facts.embed_dim,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "text_config": text | shared,
        "vision_config": vision | shared,
    }


def _preprocessor(facts, interpolation):
    side = {"height": facts.image_size, "width": facts.image_size}
    squash = facts.resize == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side if squash else {"shortest_edge": facts.image_size},
        "resample": _PIL[interpolation],
        "do_center_crop": not squash,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts.mean),
        "image_std": list(facts.std),
    }


# ---- the tokenizer ----


def _merges():
    """The merges of CLIP's vocabulary, "a b" each, in the order in which they were learned."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as lines:
        return [line.strip() for line in islice(lines, 1, 1 + MERGE_COUNT)]


def _tokenizer():
    """{file: content} of CLIP's tokenizer as transformers and tokenizers read it."""
    vocabulary = SimpleTokenizer().encoder
    special = [
        {"id": vocabulary[token], "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token in SPECIAL
    ]
    steps = [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"}]
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    fast = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, by_bytes]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": END_OF_WORD,
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": _merges(),
        },
    }
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "errors": "replace"}
    return {
        "tokenizer.json": fast,
        "tokenizer_config.json": tokens | settings,
        "special_tokens_map.json": tokens,
        "vocab.json": vocabulary,
    }


# ---- TorchScript ----


def _write_archive(weights, facts, file):
    """A scripted module without code of its own, whose state dict is the model's, with OpenAI's three integers."""
    top = nn.Module()
    for name, value in weights.items():
        *path, last = name.split(".")
        module = top
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    scalars = (facts.image_size, facts.context_length, facts.vocab_size)
    for name, value in zip(ARCHIVE_SCALARS, scalars, strict=True):
        top.register_buffer(name, torch.tensor(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but it is what OpenAI's loader needs
        file.write(torch.jit.script(top).save_to_buffer())
