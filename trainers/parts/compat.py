"""What differs between the Dassls and the `clip/` packages of the CoOp family, so that a trainer runs on all."""

import inspect
import os
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import clip
from dassl.engine import TrainerX
from dassl.utils import load_checkpoint

try:
    from dassl.utils import UserError
except ImportError:  # upstream's Dassl has no error of its own for bad input
    UserError = ValueError

OUR_CLIP = hasattr(clip, "read_state_dict")  # which knows more kinds of files
OUR_DASSL = hasattr(TrainerX, "fixed_options")  # whose checkpoints say what they are

# For MaPLe's descendants: a network without prompts in its blocks.
PLAIN = {"trainer": "CoOp", "vision_depth": 0, "vision_ctx": 0, "language_depth": 0, "language_ctx": 0}


def load_clip(cfg) -> nn.Module:
    """The CLIP that `cfg` names, with plain blocks, in fp32 on the CPU; UserError if its images have another size."""
    name, size = cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)
    print(f"Loading CLIP (backbone: {name})")
    if OUR_CLIP:
        clip_model = clip.load(name, device="cpu", facts=cfg.MODEL.BACKBONE)[0].float()
    else:
        clip_model = _load_from_fork(name)
    needed = (clip_model.visual.input_resolution,) * 2
    if size != needed:
        raise UserError(f"INPUT.SIZE is {size}: {name} needs INPUT.SIZE {needed}")
    return clip_model


def _load_from_fork(name: str) -> nn.Module:
    path = clip._download(clip._MODELS[name])
    try:
        weights = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # no archive; OpenAI's own `load` can't read a plain state dict then
        weights = torch.load(path, map_location="cpu", weights_only=True)
    wanted = list(inspect.signature(clip.build_model).parameters.values())[1:]
    details = [PLAIN for parameter in wanted if parameter.default is parameter.empty]  # MuDPT's, by default, is plain
    model = clip.build_model(weights, *details).float()
    for module in model.modules():
        for name, part in module.named_children():
            if type(part).__name__ == "QuickGELU":
                setattr(module, name, QuickGELU())
    return model


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x) as our `clip/` computes it. The forks' three steps round elsewhere, which half precision
    shows: without this, losses there differ from ours in the third decimal."""

    def forward(self, x: Tensor) -> Tensor:
        y = 1.702 * x
        return F.silu(y, inplace=not y.requires_grad).div_(1.702)


def tokenize(texts: str | list[str]) -> Tensor:
    """A text or C texts -> tokens (C, 77); UserError for a text that has more."""
    try:
        return clip.tokenize(texts)
    except RuntimeError as error:
        raise UserError(f"{error} tokens: shorten the class name or the words around it") from error


def load_from_fork(trainer, directory: str, epoch: int | None) -> None:
    """`load_model` for upstream's Dassl, whose own fails on checkpoints of the last epoch."""
    for name in trainer.get_model_names():
        path = checkpoint_path(os.path.join(directory, name), epoch)
        checkpoint = load_checkpoint(path)
        trainer._models[name].load_state_dict(checkpoint["state_dict"])
        print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')


def checkpoint_path(folder: str, epoch: int | None = None) -> str:
    """Path of the checkpoint of `epoch`; without one the best, else the last. UserError if there is none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = [re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in names]
    epochs = sorted(int(match[1]) for match in matches if match)
    best = "model-best.pth.tar"
    if epoch is None and best in names:
        return os.path.join(folder, best)
    epoch = max(epochs, default=0) if epoch is None else epoch
    if epoch not in epochs:
        raise UserError(f"Model not found in {folder}: it has the epochs {epochs}; choose another --model-dir")
    return os.path.join(folder, f"model.pth.tar-{epoch}")
