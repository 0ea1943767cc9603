"""Weights that have rows for the classes they were trained on, such as a head's, under other classes."""

from collections import Counter, defaultdict

from torch import Tensor

from dassl.engine.checkpoint import find_checkpoint
from dassl.utils import complete, load_checkpoint


def columns(names: list[str], trained: list[str]) -> list[int]:
    """Where each of `names` stands in `trained`, -1 for a class that isn't there.

    Two classes may have one name, as in ImageNet: the first of them is the first one there, and so on.
    """
    places = defaultdict(list)
    for i, name in enumerate(trained):
        places[name].append(i)
    found, seen = [], Counter()
    for name in names:
        there = places.get(name, [-1])
        found.append(there[min(seen[name], len(there) - 1)])
        seen[name] += 1
    return found


def make_room(tensors: dict[str, Tensor], folder: str, model_name: str, epoch: int | None = None) -> list[str]:
    """Resize `tensors` {key in the checkpoint: tensor} to the checkpoint's class count; return its class names.

    Errors: as `find_checkpoint` and `load_checkpoint`; UserError for a checkpoint that doesn't name its classes.
    """
    path = find_checkpoint(folder, model_name, epoch)
    checkpoint = load_checkpoint(path)
    with complete(path, "choose another --model-dir"):
        for key, tensor in tensors.items():
            if key in checkpoint["state_dict"]:
                tensor.data = tensor.new_empty(len(checkpoint["state_dict"][key]), *tensor.shape[1:])
        return [name.replace("_", " ") for name in checkpoint["meta"]["classnames"]]
