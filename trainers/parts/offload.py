"""Frozen weights out of memory while nothing runs through them, and tensors in mapped files."""

import mmap
import os
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .compat import UserError


def mapped(shape: tuple, dtype: torch.dtype, folder: str) -> Tensor:
    """An empty tensor in an unnamed file of `folder`, which takes memory only as far as it is in use.

    Errors: UserError where the disk has no room for it.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash at a write
        except OSError as error:
            raise UserError(
                f"No room for {size / 1e6:,.1f} MB in {folder} ({error.strerror}): free some there"
            ) from error
        file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)


class Offload:
    """Frozen parameters that leave the device's memory while nothing runs through them.

    On a CPU they lie in a mapped file. They are empty from the start on, until `bring_back` or inside `needed`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], folder: str):
        self.places = []  # (parameter, its device, its values off the device)
        for p in parameters:
            self.places.append((p, p.device, mapped(p.shape, p.dtype, folder).copy_(p.detach())))
        self.users = 0  # blocks of `needed` that are open
        self.put_away()

    def put_away(self) -> None:
        for p, _, _ in self.places:
            p.data = p.data.new_empty(0)

    def bring_back(self) -> None:
        """To the device; on a CPU the parameters then are the mapped file."""
        for p, device, kept in self.places:
            p.data = kept.to(device)

    @contextmanager
    def needed(self):
        """The parameters are there inside; such blocks may lie inside each other."""
        if not self.users:
            self.bring_back()
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self.put_away()

    def end(self) -> None:
        """Bring the parameters back and let go of them."""
        self.bring_back()
        self.places = []
