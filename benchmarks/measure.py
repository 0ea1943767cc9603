"""What the benchmarks share: rows that take turns, the machine they ran on."""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from dassl.utils import UserError, exit_code, write_json
from results.layout import table_text

STEADY = 2, 3  # of the calls in a turn of a training step: unmeasured, measured


def seconds(function):
    """Wall time of one call, on the CPU."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def page_faults():
    """How many pages the system has given this process so far; None where it doesn't tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class Turn(NamedTuple):
    """What a call took in one turn."""

    seconds: float
    page_faults: float | None


def turn(function, unmeasured, measured):
    """The median of `measured` calls and their mean number of page faults, behind `unmeasured` ones."""
    for _ in range(unmeasured):
        function()
    before = page_faults()
    taken = statistics.median(seconds(function) for _ in range(measured))
    return Turn(taken, None if before is None else (page_faults() - before) / measured)


def turns(rows, rounds, unmeasured=1, measured=1):
    """{name: function} -> {name: its `rounds` turns}.

    The rows take turns, so that a slow moment of the machine meets all of them. A turn begins with `unmeasured` calls,
    after which caches and the allocator's free memory are the row's own again.
    """
    taken = {name: [] for name in rows}
    for _ in range(rounds):
        for name, function in rows.items():
            taken[name].append(turn(function, unmeasured, measured))
    return taken


def interleaved(rows, rounds, unmeasured=1, measured=1):
    """The median over what `turns` gives: {name: seconds of a call}."""
    taken = turns(rows, rounds, unmeasured, measured)
    return {name: statistics.median(one.seconds for one in found) for name, found in taken.items()}


def allocator():
    """One line that says how memory for tensors is got on a CPU: PyTorch asks the C library's allocator."""
    names = sorted(name for name in os.environ if name.startswith("MALLOC_") or name == "LD_PRELOAD")
    return "; ".join(f"{name}={os.environ[name]}" for name in names) or "the C library's allocator, its defaults"


def check_new(path):
    """UserError if the file that is to be written (None: none) exists: to be asked before the long work."""
    if path and Path(path).exists():
        raise UserError(f"{path} exists already; give another name to --json or remove it")


def machine():
    """One line that says on what the figures were measured; the benchmarks are of CPUs."""
    return f"CPU, {torch.get_num_threads()} threads; PyTorch {torch.__version__}, Python {platform.python_version()}"


def parser(name, description, classes):
    """The options that all cost benchmarks have; `classes` are the default numbers of base classes."""
    found = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    found.add_argument("--classes", type=int, nargs="+", default=classes, help="M, base classes")
    found.add_argument("--rounds", type=int, default=3, help="turns of every row; the median counts (default: 3)")
    found.add_argument("--quick", action="store_true", help="50 classes, one round: a few minutes")
    found.add_argument("--json", metavar="FILE", help="write all figures there too")
    return found


def show(head, tables, notes):
    """Tables of results/costs.py as text."""
    blocks = [f"{table['title']}\n{table_text(table)}".lstrip("\n") for table in tables]
    return "\n\n".join([head, *blocks, "\n".join(notes)])


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
