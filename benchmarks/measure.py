"""What the benchmarks share: rows that take turns, the machine they ran on."""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from dassl.utils import UserError, exit_code, write_json


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


def parser(name, description, classes):
    """The options that all cost benchmarks have; `classes` are the default numbers of base classes."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--classes", type=int, nargs="+", default=classes, help="M, base classes")
    found.add_argument("--rounds", type=int, default=3, help="turns of every row; the median counts (default: 3)")
    found.add_argument("--quick", action="store_true", help="50 classes, one round: a few minutes")
    found.add_argument("--json", metavar="FILE", help="write all figures there too")
    return found


def report(args, run, table):
    """What a command line of `parser` asks for -> the exit code. run(folder, classes, rounds, progress) measures, into
    a dictionary that is written; `table` makes the text of it that is printed."""

    def work():
        numbers, rounds = ([50], 1) if args.quick else (sorted(set(args.classes)), args.rounds)
        if numbers[0] < 2 or rounds < 1:
            raise UserError("--classes must be 2 or more, and --rounds 1 or more")
        check_new(args.json)
        with tempfile.TemporaryDirectory() as folder:
            result = run(Path(folder), numbers, rounds, lambda text: print(text, file=sys.stderr))
        if args.json:
            write_json(result, args.json)
        print(table(result))

    return exit_code(work, "nothing is kept, start it again")
