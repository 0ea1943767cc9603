"""Files, seeds and names: the small things everything else uses."""

import difflib
import os
import platform
import random
import warnings

import numpy as np
import PIL
import torch

from .errors import UnknownName


def nearest(name, names, least=0.0):
    """The entry of `names` that looks most like `name`, ignoring case; "" if none is at least so alike, from 0 to 1."""

    def likeness(other):
        return difflib.SequenceMatcher(None, str(name).lower(), str(other).lower()).ratio()

    return max((other for other in names if likeness(other) >= least), key=likeness, default="")


def get_most_similar_str_to_a_from_b(a, b):
    """Upstream's name for `nearest`."""
    return nearest(a, b)


def check_availability(requested, available):
    """UnknownName (also a ValueError) if `requested` is not in the list `available`."""
    if requested not in available:
        raise UnknownName(
            f"The requested one is expected to belong to {available}, but got [{requested}]"
            f" (do you mean [{nearest(requested, available)}]?)"
        )


def mkdir_if_missing(dirname):
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath):
    """Whether `fpath` is a file; warns if not, as upstream does."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path, sort=False):
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def tolist_if_not(x):
    return x if isinstance(x, list) else [x]


def set_random_seed(seed):
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # covers every CUDA device


def collect_env_info():
    """Versions and hardware, one per line."""
    cuda = torch.version.cuda or "none"
    lines = [
        f"Python {platform.python_version()} on {platform.platform()}",
        f"PyTorch {torch.__version__} (CUDA {cuda}), numpy {np.__version__}, Pillow {PIL.__version__}",
        f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    ]
    lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return "\n".join(lines)
