"""Peak memory of training, measured while it runs."""

import gc
import sys
import weakref
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STEPS = 2  # of a run are measured on the CPU, where it takes time: the first one makes the optimizer's state


class LiveTensors(TorchDispatchMode):
    """The bytes of all tensors alive at once inside `with`: `now`, and the highest they were, `peak`.

    Counted are the storages that PyTorch's CPU allocator made: those of tensors that exist on entry and those that
    operations return, each once, until they are freed. Not counted are what a kernel needs for itself, memory that is
    not PyTorch's own, such as a mapped file, and tensors that only pretend to be on the CPU, as exports leave them.
    """

    def __enter__(self):
        self.now = self.peak = 0
        self.storages = weakref.WeakSet()
        kinds = _subclasses(torch.Tensor)
        for thing in gc.get_objects():
            if type(thing) in kinds:
                self.hold(thing)
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        for thing in tree_leaves(result):
            if isinstance(thing, torch.Tensor):
                self.hold(thing)
        return result

    def hold(self, tensor):
        storage = tensor.untyped_storage()
        if storage.device.type == "cpu" and storage.resizable() and storage not in self.storages:
            self.storages.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, storage.nbytes()).atexit = False

    def free(self, size):
        self.now -= size


def _subclasses(kind):
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


class PeakMemory:
    """The most memory that training steps held, in MB (1e6 bytes): `mb`, None where nothing was measured.

    On CUDA what PyTorch had allocated, in all steps. On the CPU, if `on_cpu`, LiveTensors of the first steps, which it
    slows down.
    """

    def __init__(self, on_cpu=False):
        self.mb = None
        self.steps_left = STEPS if on_cpu else 0

    @contextmanager
    def step(self, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            yield
            self.hold(torch.cuda.max_memory_allocated(device))
        elif device.type == "cpu" and self.steps_left:
            self.steps_left -= 1
            with LiveTensors() as live:
                yield
            self.hold(live.peak)
        else:
            yield

    def hold(self, size):
        self.mb = max(self.mb or 0.0, size / 1e6)


def peak_rss_mb():
    """The most resident memory that this process has had so far, in MB (1e6 bytes); None where the system can't tell.

    Without its DataLoader workers, which are processes of their own.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
