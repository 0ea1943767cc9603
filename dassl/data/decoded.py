"""Decoded images in shared memory: few-shot training reads the same few hundred files in every epoch.

Workers of a DataLoader start anew in each epoch, by fork or not. What one of them has decoded all later ones find, and
so does the process that started them. The memory has no name, so nothing is left of it when the last process ends,
however it ends. Pixels are those of the decoder to the last bit.
"""

import mmap
import multiprocessing
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

NUMBERS = 3  # for each image: its first byte, height and width
MEMORY = Path("/proc/meminfo")
LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


class DecodedImages:
    """Pixels of a dataset's images by their index, as far as `room` bytes reach: whoever comes first is kept.

    Memory is taken only as it fills.
    """

    def __init__(self, number: int, room: int):
        self.number, self.room = number, room
        self.lock = multiprocessing.Lock()
        self._map(os.memfd_create("decoded images") if hasattr(os, "memfd_create") else _unnamed_file())

    def _map(self, file: int) -> None:
        numbers = NUMBERS * self.number + 1
        os.ftruncate(file, 8 * numbers + self.room)  # zeros, which take no memory
        self.file, memory = file, mmap.mmap(file, 8 * numbers + self.room)
        table = torch.frombuffer(memory, dtype=torch.long, count=numbers)
        self.used, self.places = table[0], table[1:].view(self.number, NUMBERS)
        self.pixels = torch.frombuffer(memory, dtype=torch.uint8, offset=8 * numbers)

    def __getstate__(self):
        """For a worker that starts from nothing."""
        from multiprocessing.reduction import DupFd  # not on Windows

        return {"number": self.number, "room": self.room, "lock": self.lock, "file": DupFd(self.file)}

    def __setstate__(self, state):
        self.number, self.room, self.lock = state["number"], state["room"], state["lock"]
        self._map(state["file"].detach())

    def __del__(self):
        if hasattr(self, "file"):
            os.close(self.file)

    def get(self, index: int) -> torch.Tensor | None:
        """The image's pixels, uint8 (3, H, W), channels last in memory, not to be written to; None if not there."""
        start, height, width = self.places[index].tolist()
        if not height:
            return None
        return self.pixels[start : start + 3 * height * width].view(height, width, 3).permute(2, 0, 1)

    def put(self, index: int, image) -> None:
        """Keep a PIL image in RGB if there is room for it."""
        width, height = image.size
        size = 3 * height * width
        with self.lock:
            start = int(self.used)
            if start + size > self.room or self.places[index, 1]:
                return
            self.used += size
        self.pixels[start : start + size] = torch.from_numpy(np.array(image)).flatten()  # (H, W, 3)
        with self.lock:  # and not before the pixels are there
            self.places[index] = torch.tensor([start, height, width])


def _unnamed_file() -> int:
    """Where there is no memory that is a file: one on disk."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def decoded_images(number: int, megabytes: float) -> DecodedImages | None:
    """Room for `megabytes` (1e6 bytes); None if there isn't any.

    At most half of the memory that is available and, as what a container uses of its own includes files that the system
    may drop, a quarter of its limit. None also on Windows, whose workers can't be given such memory.
    """
    room = int(megabytes * 1e6)
    if MEMORY.exists() and (available := re.search(r"MemAvailable: *(\d+)", MEMORY.read_text())):
        room = min(room, int(available[1]) * 1024 // 2)
    for path in LIMITS:
        if path.exists() and (limit := path.read_text().strip()).isdigit():  # "max" where there is none
            room = min(room, int(limit) // 4)
    return DecodedImages(number, room) if room and number and os.name == "posix" else None
