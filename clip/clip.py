"""OpenAI's entry points: names of models, `load`, `tokenize`; and the facts of a model, which `load` needs too.

A model is one of OpenAI's names, a file of weights, a folder as open_clip or Hugging Face write it, or the name of
such a folder on the Hub (hub.py).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from dassl.utils import write_atomic

from . import hub
from .configs import facts_in_folder, facts_in_metadata
from .errors import WeightsError
from .files import metadata_of
from .model import CLIP, assemble, build_model, convert_weights, facts_of, sizes_in
from .origins import OPENAI_SIZES, PIXEL_MEAN, PIXEL_STD, Facts, complete, given_facts, openai_facts
from .simple_tokenizer import SimpleTokenizer
from .weights import EMBEDDED_URL, FILES, embedded_file, known_archives, read, read_folder, read_state_dict
from .weights import MODELS as _MODELS
from .weights import download as _download

__all__ = [
    "PIXEL_MEAN",
    "PIXEL_STD",
    "available_models",
    "build_model",
    "facts",
    "load",
    "read_state_dict",
    "save",
    "tokenize",
]

_tokenizer = SimpleTokenizer()
DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Given = Facts | Mapping | str | None


def available_models() -> list[str]:
    """The names that `load` knows without a file and without the Hub."""
    return list(_MODELS)


def load(
    name: str | os.PathLike,
    device: str | torch.device = DEFAULT_DEVICE,
    jit: bool = False,
    download_root: str | os.PathLike | None = None,
    facts: Given = None,
) -> tuple[CLIP, Callable]:
    """The model called `name`, or stored in the file or folder `name`, and the transform that its images need.

    Returns (model, preprocess): the model in eval mode on `device`, in fp32 on a CPU or if it was stored so, else in
    OpenAI's mix of fp16 and fp32; `model.facts` holds its Facts. `preprocess(PIL image)` -> (3, n, n) float32, with
    the model's own size, mean and std.
    `download_root` replaces the cache folder. `facts` says what no file says: {"activation": "gelu", "vision_heads":
    12, "text_heads": 8, "mean": (...), "std": (...)} or some of them, or the name of a model with the same facts.
    Raises WeightsError (a RuntimeError, as OpenAI's, and an OSError) for unknown names, for files that can't be had
    or don't hold a CLIP, and for facts that are missing or contradict each other; NotImplementedError (a
    RuntimeError) for jit=True.
    """
    if jit:
        raise NotImplementedError("clip.load(jit=True) isn't supported: call it with jit=False")
    path, weights, known = _open(os.fspath(name), download_root)
    found = complete(path, known, _asked(facts), _sizes(path, weights))
    model = assemble(weights, found)
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise WeightsError(f"{path} holds weights that are not finite: every prediction would be wrong")
    single = weights["visual.conv1.weight"].dtype not in (torch.float16, torch.bfloat16)
    if torch.device(device).type != "cpu" and not single:
        convert_weights(model)
    return model.to(device), _transform(found.image_size, found.mean, found.std, found.resize)


def facts(name: str | os.PathLike, given: Given = None) -> Facts:
    """The Facts of the model called `name`, as `load` would find them, without building it.

    Where a configuration file or a .safetensors file's metadata says all, nothing else is read, and of a model on the
    Hub nothing else is downloaded; OpenAI's are known. Arguments and errors as `load`.
    """
    name = os.fspath(name)
    known = {}
    if name in OPENAI_SIZES:
        known = asdict(openai_facts(OPENAI_SIZES[name]))
    elif name not in _MODELS:
        folder = _folder(name, weights=False)
        known = facts_in_folder(folder) if folder else _facts_beside(Path(name), metadata_of(Path(name)))
    if known:
        return complete(name, known, _asked(given), {})
    path, weights, known = _open(name)
    return complete(path, known, _asked(given), _sizes(path, weights))


def save(model: CLIP, path: str | os.PathLike) -> None:
    """Writes the model's weights, in their dtype, and its facts to a .safetensors file that `load` needs nothing for.

    OSError, with the path, if that fails; no half file is left.
    """
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomic(path, serialise(weights, facts_of(model).metadata()))


def _open(name, download_root=None):
    """-> (where the weights are, the weights in OpenAI's names, what is known of their facts)."""
    folder = None if name in _MODELS else _folder(name, weights=True)
    if folder:
        return folder, read_folder(folder), facts_in_folder(folder)
    if name not in _MODELS and os.path.exists(name):
        found = read(name)
        if found.names:
            print(f"{name}: {found.names}")
        openai = found.sha256 in known_archives() or found.compact
        known = {} if openai else _facts_beside(Path(name), found.metadata)
        path, weights = name, found.weights
    else:
        openai, known, url = True, {}, _MODELS[name]
        path = embedded_file() if url == EMBEDDED_URL else _download(url, download_root)
        weights = read_state_dict(path)
    return path, weights, asdict(openai_facts(_sizes(path, weights))) if openai else known


def _folder(name, weights):
    """The folder that `name` means, here or on the Hub; None if it is no folder."""
    if name.startswith(hub.SCHEMES):
        return hub.fetch(name, weights)
    return Path(name) if os.path.isdir(name) else None


def _facts_beside(path, metadata):
    """What is known of a file: by its own metadata, or by the configuration that stands beside a file of this name."""
    return facts_in_metadata(metadata, path) or (facts_in_folder(path.parent) if path.name in FILES else {})


def _asked(given):
    """What the user says of the facts, as a dictionary."""
    if isinstance(given, Facts):
        return asdict(given)
    asked = given_facts({"like": given} if isinstance(given, str) else given or {})
    like = asked.pop("like", None)
    return asdict(complete(like, asdict(facts(like)), asked, {})) if like else asked


def _sizes(path, weights):
    try:
        return sizes_in(weights)
    except (WeightsError, RuntimeError) as error:  # RuntimeError: sizes beyond what a tensor can have
        raise WeightsError(f"{path} doesn't hold the weights of a CLIP with a ViT: {error}") from error


def tokenize(texts: str | list[str], context_length: int = 77, truncate: bool = False) -> Tensor:
    """A text or a list of N texts -> (N, context_length) int64: start, the text's tokens, end of text, zeros.

    int64 as in CoOp's copy (OpenAI's returns int32). A text that doesn't fit raises RuntimeError, or, with
    `truncate`, is cut so that end of text is its last token.
    """
    texts = [texts] if isinstance(texts, str) else texts
    start, end = _tokenizer.encoder["<|startoftext|>"], _tokenizer.encoder["<|endoftext|>"]
    result = torch.zeros(len(texts), context_length, dtype=torch.long)
    for row, text in zip(result, texts, strict=True):
        tokens = [start, *_tokenizer.encode(text), end]
        if len(tokens) > context_length:
            if not truncate:
                raise RuntimeError(f"Input {text} is too long for context length {context_length}")
            tokens = [*tokens[: context_length - 1], end]
        row[: len(tokens)] = torch.tensor(tokens)
    return result


def _transform(n_px, mean=PIXEL_MEAN, std=PIXEL_STD, resize="shortest"):
    """PIL image -> (3, n_px, n_px) float32: shorter side to n_px, centre crop, RGB, the model's mean and std.

    With `resize` "squash" both sides become n_px, and nothing is cropped.
    """
    return Compose(
        [
            Resize(n_px if resize == "shortest" else (n_px, n_px), interpolation=InterpolationMode.BICUBIC),
            CenterCrop(n_px),
            _rgb,
            ToTensor(),
            Normalize(mean, std),
        ]
    )


def _rgb(image):  # a function with a name, so that loader workers can pickle the transform
    return image.convert("RGB")
