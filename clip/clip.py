"""OpenAI's entry points: names of models, `load`, `tokenize`. Where weights come from is in weights.py."""

import os

import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

from .model import build_model
from .simple_tokenizer import SimpleTokenizer
from .weights import MODELS as _MODELS
from .weights import WeightsError, read_state_dict
from .weights import download as _download

__all__ = ["available_models", "load", "tokenize"]

_tokenizer = SimpleTokenizer()
DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


def available_models():
    """The names that `load` knows."""
    return list(_MODELS)


def load(name, device=DEFAULT_DEVICE, jit=False, download_root=None):
    """The model called `name` (or stored in the file `name`) and the transform that its images need.

    Returns (model, preprocess): the model in eval mode on `device`, in fp32 on a CPU and in OpenAI's mix of
    fp16 and fp32 elsewhere; `preprocess(PIL image)` -> (3, n, n) float32. `download_root` replaces the cache
    folder. Raises WeightsError (a RuntimeError, as OpenAI's, and an OSError) for unknown names and for files
    that can't be had or don't hold a CLIP; NotImplementedError (a RuntimeError) for jit=True.
    """
    if jit:
        raise NotImplementedError("clip.load(jit=True) isn't supported: call it with jit=False")
    own_file = name not in _MODELS and os.path.isfile(name)
    path = name if own_file else _download(_MODELS[name], download_root)
    state_dict = read_state_dict(path)
    try:
        model = build_model(state_dict)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # missing and unexpected keys come on lines of their own
        raise WeightsError(f"{path} doesn't hold the weights of a CLIP with a ViT: {reason}") from error
    model.to(device)
    if torch.device(device).type == "cpu":
        model.float()
    return model, _transform(model.visual.input_resolution)


def tokenize(texts, context_length=77, truncate=False):
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


def _transform(n_px):
    """PIL image -> (3, n_px, n_px) float32: shorter side to n_px, centre crop, RGB, CLIP's mean and std."""
    return Compose(
        [
            Resize(n_px, interpolation=InterpolationMode.BICUBIC),
            CenterCrop(n_px),
            _rgb,
            ToTensor(),
            Normalize(PIXEL_MEAN, PIXEL_STD),
        ]
    )


def _rgb(image):  # a function with a name, so that loader workers can pickle the transform
    return image.convert("RGB")
