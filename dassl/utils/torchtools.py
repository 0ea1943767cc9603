"""Checkpoints in upstream's layout: `<folder>/model.pth.tar-<epoch>`; `checkpoint` names the last one."""

import io
import os
import pickle
import warnings
import zipfile
from collections import Counter

import torch

from .errors import MissingFile, UserError, complete
from .files import write_atomic

# What PyTorch's optimizers keep in the shape of the parameter. A fused step trusts it: another shape is a crash.
_BUFFERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg")

# Upstream's warm-up schedulers pickled their successor and with it the optimizer: reading needs the classes.
_OLD_CHECKPOINT_CLASSES = [
    Counter,
    dict,
    (lambda factory: {}, "collections.defaultdict"),  # the reader fills plain dicts only
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.lr_scheduler.CosineAnnealingLR,
    torch.optim.lr_scheduler.StepLR,
    torch.optim.lr_scheduler.MultiStepLR,
]


def save_atomic(state, path):
    """`torch.save` that leaves the old file or the new one: serialised in memory, then written beside."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def _without_module(state_dict):
    """Keys as they are outside DataParallel."""
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a dict with keys state_dict, epoch (1-based), ... as `model_name` or model.pth.tar-<epoch>."""
    if remove_module_from_keys:
        state = {**state, "state_dict": _without_module(state["state_dict"])}
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    save_atomic(state, path)
    print(f"Checkpoint saved to {path}")
    write_atomic(os.path.join(save_dir, "checkpoint"), f"{name}\n".encode())
    if is_best:
        best = os.path.join(save_dir, "model-best.pth.tar")
        save_atomic(state, best)
        print(f'Best checkpoint saved to "{best}"')


def load_checkpoint(fpath):
    """Read a checkpoint on the CPU, weights only; upstream's, with a scheduler object inside, as well.

    Errors: ValueError if None, MissingFile, UserError if the file does not read.
    """
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise MissingFile(f'File is not found at "{fpath}"; check the folder and the epoch')
    if not os.path.isfile(fpath):
        raise UserError(f'"{fpath}" is not a plain file; remove it or name another')
    _refuse_bomb(fpath)
    try:
        with torch.serialization.safe_globals(_OLD_CHECKPOINT_CLASSES):
            return torch.load(fpath, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "more in it than weights and numbers, or not a checkpoint"
        raise UserError(f'Unable to load checkpoint from "{fpath}" ({reason}); name another') from error
    except Exception as error:  # anything from EOFError to RuntimeError
        reason = str(error).strip().split("\n")[0]
        raise UserError(f'Unable to load checkpoint from "{fpath}" ({reason}); remove it or name another') from error


def _refuse_bomb(path):
    """UserError for no plain file, and for an archive that unpacks to more than it is: torch.save doesn't compress."""
    if not os.path.isfile(path):
        raise UserError(f'"{path}" is not a plain file; name a checkpoint')
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > os.path.getsize(path):
            raise UserError(f'"{path}" is a compressed archive, not a checkpoint; name another')


def load_weights(module, state_dict, path):
    """Strict load; UserError lists the first keys that do not fit."""
    own = module.state_dict()
    if not isinstance(state_dict, dict) or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise UserError(f'"{path}" holds no weights by name; choose another --model-dir')
    wrong = [f"{key} is missing" for key in own if key not in state_dict]
    wrong += [f"{key} is unknown" for key in state_dict if key not in own]
    wrong += [
        f"{key} is {tuple(state_dict[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f'"{path}" does not fit this model: {"; ".join(wrong[:3])}{more}; choose another --model-dir')
    module.load_state_dict(state_dict)


def load_optimizer(optimizer, state, path):
    """`optimizer.load_state_dict`; UserError if a buffer is not of its parameter's shape."""
    optimizer.load_state_dict(state)
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        for name, buffer in optimizer.state.get(p, {}).items():
            if name in _BUFFERS and buffer is not None and buffer.shape != p.shape:
                raise UserError(
                    f'"{path}" has a {name} of the shape {tuple(buffer.shape)} for weights of {tuple(p.shape)};'
                    " remove it, or choose another --output-dir"
                )


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load what `<fdir>/checkpoint` names into the three parts; returns the number of finished epochs."""
    pointer = os.path.join(fdir, "checkpoint")
    if not os.path.isfile(pointer):
        raise MissingFile(f'No file "{pointer}" to say which checkpoint is the last; choose another --output-dir')
    with open(pointer, encoding="utf-8") as file:
        path = os.path.join(fdir, file.readline().strip())
    print(f'Loading checkpoint from "{path}"')
    checkpoint = load_checkpoint(path)
    with complete(path, "choose another --output-dir"):
        load_weights(model, checkpoint["state_dict"], path)
        print("Loaded model weights")
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            load_optimizer(optimizer, checkpoint["optimizer"], path)
            print("Loaded optimizer")
        if scheduler is not None and checkpoint.get("scheduler") is not None:
            scheduler.load_state_dict(checkpoint["scheduler"])
            print("Loaded scheduler")
        print(f"Previous epoch: {checkpoint['epoch']}")
        return checkpoint["epoch"]


def load_pretrained_weights(model, weight_path):
    """Load the entries of a state dict (bare, or under "state_dict") that fit the model by name and shape."""
    checkpoint = load_checkpoint(weight_path)
    weights = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        warnings.warn(f"Cannot load {weight_path} (no entry fits by name and shape)", stacklevel=2)
        return
    model.load_state_dict(fitting, strict=False)
    print(f"Successfully loaded pretrained weights from {weight_path}")
    discarded = [key for key in weights if key not in fitting]
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def count_num_param(model=None, params=None):
    """Number of parameters of a module, or of an iterable of tensors or optimizer groups."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("model and params must not both be None")
    groups = [p["params"] if isinstance(p, dict) else p for p in params]
    tensors = [t for group in groups for t in ([group] if isinstance(group, torch.Tensor) else group)]
    return sum(tensor.numel() for tensor in tensors)
