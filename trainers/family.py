"""What differs between the Dassls and the `clip/` packages of the CoOp family, so that a trainer runs on all."""

import inspect
import os
import re

import torch

from clip import clip
from dassl.engine import TrainerX
from dassl.utils import load_checkpoint

try:
    from dassl.utils import UserError
except ImportError:  # upstream's Dassl has no error of its own for bad input
    UserError = ValueError

# For MaPLe's descendants: a network without prompts in its blocks.
PLAIN = {"trainer": "CoOp", "vision_depth": 0, "vision_ctx": 0, "language_depth": 0, "language_ctx": 0}


def load_clip(cfg):
    """The CLIP that `cfg` names, with plain blocks, in fp32 on the CPU; UserError if its images have another size."""
    name, size = cfg.MODEL.BACKBONE.NAME, tuple(cfg.INPUT.SIZE)
    print(f"Loading CLIP (backbone: {name})")
    clip_model = _load(name)
    needed = (clip_model.visual.input_resolution,) * 2
    if size != needed:
        raise UserError(f"INPUT.SIZE is {size}: {name} needs INPUT.SIZE {needed}")
    return clip_model


def tokenize(texts):
    """A text or C texts -> tokens (C, 77); UserError for one that has more."""
    try:
        return clip.tokenize(texts)
    except RuntimeError as error:
        raise UserError(f"{error} tokens: shorten the class name or the words around it") from error


def _load(name):
    if hasattr(clip, "read_state_dict"):  # ours, which knows more kinds of files
        return clip.load(name, device="cpu")[0].float()
    path = clip._download(clip._MODELS[name])
    try:
        weights = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError:  # no archive; OpenAI's own `load` can't read a plain state dict then
        weights = torch.load(path, map_location="cpu", weights_only=True)
    details = [PLAIN] * (len(inspect.signature(clip.build_model).parameters) - 1)
    return clip.build_model(weights, *details).float()


class FamilyTrainer(TrainerX):
    """TrainerX with the signatures that the family's train.py files use, on our Dassl and on upstream's."""

    def test(self, split=None, **ignored):
        """ATPrompt passes `is_final`, at which its Dassl would end the process."""
        return super().test(split)

    def load_model(self, directory, *args, epoch=None):
        """CLAP passes its cfg in between. Without an epoch the best checkpoint, else the last."""
        epoch = next((value for value in args if isinstance(value, int)), epoch)
        if not directory or hasattr(TrainerX, "fixed_options"):  # ours
            return super().load_model(directory, epoch=epoch)
        for name in self.get_model_names():  # upstream's fails on checkpoints of the last epoch
            path = checkpoint_path(os.path.join(directory, name), epoch)
            checkpoint = load_checkpoint(path)
            self._models[name].load_state_dict(checkpoint["state_dict"])
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')


def checkpoint_path(folder, epoch=None):
    """Path of the checkpoint of `epoch`; without one the best, else the last. UserError if there is none."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    epochs = [int(match[1]) for match in (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in names) if match]
    best = "model-best.pth.tar"
    if epoch is None and best in names:
        return os.path.join(folder, best)
    epoch = max(epochs, default=0) if epoch is None else epoch
    if epoch not in epochs:
        raise UserError(f"Model not found in {folder}: it has the epochs {sorted(epochs)}; choose another --model-dir")
    return os.path.join(folder, f"model.pth.tar-{epoch}")
