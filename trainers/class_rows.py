"""Weights that have rows for the classes they were trained on, such as a head's, under other classes."""

import torch

from dassl.engine.checkpoint import find_checkpoint
from dassl.utils import load_checkpoint

from .base import MODEL


def columns(names, trained):
    """Where each of `names` stands in `trained`: (C,), -1 for a class that isn't there."""
    place = {name: i for i, name in enumerate(trained)}
    return torch.tensor([place.get(name, -1) for name in names])


def make_room(tensors, directory, epoch=None):
    """Give `tensors`, {key in the checkpoint: tensor}, the rows that the checkpoint has; -> the classes it is for."""
    checkpoint = load_checkpoint(find_checkpoint(directory, MODEL, epoch))
    for key, tensor in tensors.items():
        if key in checkpoint["state_dict"]:
            tensor.data = tensor.new_empty(len(checkpoint["state_dict"][key]), *tensor.shape[1:])
    return [name.replace("_", " ") for name in checkpoint["meta"]["classnames"]]
