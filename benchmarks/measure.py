"""What the benchmarks share: rows that take turns, the machine they ran on."""

import platform
import statistics
import time
from pathlib import Path

import torch

from dassl.utils import UserError


def synchronize():
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function):
    """Wall time of one call."""
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def interleaved(rows, rounds, warmup=1):
    """{name: function} -> {name: median seconds of a call}.

    The rows take turns, so that a slow moment of the machine meets all of them; the first `warmup` turns don't count.
    """
    taken = {name: [] for name in rows}
    for turn in range(warmup + rounds):
        for name, function in rows.items():
            spent = seconds(function)
            if turn >= warmup:
                taken[name].append(spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def check_new(path):
    """UserError if the file that is to be written (None: none) exists: to be asked before the long work."""
    if path and Path(path).exists():
        raise UserError(f"{path} exists already; give another name to --json or remove it")


def machine():
    """One line that says on what the figures were measured."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return f"{device}; PyTorch {torch.__version__}, Python {platform.python_version()}"
