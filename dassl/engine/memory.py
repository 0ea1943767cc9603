import resource
import sys

import torch


class PeakMemory:
    """The most memory a stretch of work held, in MB (1e6 bytes).

    On CUDA what PyTorch allocated. On the CPU the resident set of this process (not of loader workers), less
    what it was when the meter was made, so that the interpreter and the libraries do not count.
    """

    def __init__(self):
        self.baseline = _status("VmRSS")
        self.cuda = False

    def start(self, device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets VmHWM to the present size
        except OSError:
            pass  # then the peak is that of the whole process

    def peak(self):
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        return max(0.0, (_status("VmHWM") - self.baseline) / 1e6)


def _status(field):
    """VmRSS (now) or VmHWM (peak) in bytes; where there is no /proc, the peak since the process began."""
    try:
        with open("/proc/self/status") as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith(field))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
