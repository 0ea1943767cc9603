"""Training loaders whose every number follows from (seed, view, index), and the cache of features that is one.

The random numbers of an image come from (seed, view, index), the order of an epoch's batches from (seed, epoch). So
they are the same for any number of workers, on any machine, after any resume, and on any Dassl.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .offload import mapped

EXTRACTION_BATCH = 64  # images that the workers hand over at a time


def seed_of(*numbers: int) -> int:
    """A seed of 64 bits for a random generator that all of `numbers` decide."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


class Seeded(Dataset):
    """The items of `dataset` by (view, index), with random numbers that (seed, view, index) decide.

    Python's, numpy's and PyTorch's generators are afterwards as they were before.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> dict:
        view, index = key
        seed = seed_of(self.seed, view, index)
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed goes to all devices, a millisecond each time
            try:
                return self.dataset[index]
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])


class TrainingLoader:
    """Takes the place of a Dassl's training loader: the same items in batches, each image a view of its own per epoch.

    Args:
        loader: the Dassl's own; its dataset, batch size and workers are used. Images that don't fill a batch are left
            out in that epoch, as by Dassl.
        seed: see the module.
        single_class: every batch holds images of one class, as in Skip Tuning's released code; like there, batches
            are mixed where no class has images enough.
    """

    def __init__(self, loader: DataLoader, seed: int, single_class: bool = False):
        self.dataset = loader.dataset
        self.labels = torch.tensor([item.label for item in loader.dataset.data_source])  # (N,)
        self.batch_size = min(loader.batch_size, len(self.labels))
        self.seed = seed
        self.single_class = single_class and int(self.labels.bincount().max()) >= self.batch_size
        self.epoch = 0
        kept = ("num_workers", "pin_memory", "collate_fn", "worker_init_fn")
        self._options = {name: getattr(loader, name) for name in kept}

    def start_epoch(self, epoch: int, last: bool = False) -> None:
        """Make `epoch` (from 0) the one that iterating goes through."""
        self.epoch = epoch

    def batches(self) -> list[Tensor]:
        """Index tensors (B,) of the epoch, in random order."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        groups = [torch.arange(len(self.labels))]
        if self.single_class:
            groups = [torch.where(self.labels == label)[0] for label in self.labels.unique()]
        full = []
        for group in groups:
            shuffled = group[torch.randperm(len(group), generator=generator)]
            full += [batch for batch in shuffled.split(self.batch_size) if len(batch) == self.batch_size]
        if self.single_class:
            full = [full[i] for i in torch.randperm(len(full), generator=generator)]
        return full

    def load(self, view: int, batches: list[list[int]]) -> DataLoader:
        """The dataset's items for lists of indices, as batches of one view."""
        keys = [[(view, index) for index in batch] for batch in batches]
        generator = torch.Generator()  # a loader draws a seed for its workers, which must not come from the global one
        return DataLoader(Seeded(self.dataset, self.seed), batch_sampler=keys, generator=generator, **self._options)

    def __len__(self) -> int:
        if self.single_class:
            return int((self.labels.bincount() // self.batch_size).sum())
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[dict]:
        yield from self.load(self.epoch, [batch.tolist() for batch in self.batches()])


class FeatureCache(TrainingLoader):
    """A training loader of what frozen layers make of the images: {"features": (B, ...), "label": (B,)}.

    A view is extracted when an epoch first needs it; a loader that is never iterated extracts nothing.

    Args:
        encode: images (N, 3, H, W) -> features (N, ...), on any device; kept in the dtype it returns.
        needed: what is open while a view is extracted, such as a block in which offloaded weights are there.
        views: how many augmented views of each image are cached; 0 makes a fresh one in every epoch.
        limit: views that are more bytes together lie in mapped files in `folder` instead of in memory.
        on_device: views that are no more bytes together stay on the device of `encode`, all others go to the CPU.
    """

    def __init__(
        self,
        loader: DataLoader,
        encode: Callable[[Tensor], Tensor],
        views: int,
        seed: int,
        single_class: bool = False,
        limit: float = float("inf"),
        folder: str | None = None,
        on_device: float = 0,
        needed: Callable[[], AbstractContextManager] = nullcontext,
    ):
        super().__init__(loader, seed, single_class)
        self.encode = encode
        self.views = views
        self.limit = limit
        self.folder = folder
        self.on_device = on_device
        self.needed = needed
        self.cached = {}  # view -> features (N, ...)
        self.features = None  # the current epoch's
        self.upcoming = None  # (view, batches of its images, which the loader's workers prepare meanwhile)

    def start_epoch(self, epoch: int, last: bool = False) -> None:
        """Make the epoch's view ready and, unless it is the `last`, have the workers begin the next one's images."""
        super().start_epoch(epoch, last)
        view = epoch % self.views if self.views else epoch
        if view not in self.cached:
            if not self.views:
                self.cached.clear()
                self.features = None  # the old view is freed before the new one is made
            self.cached[view] = self.extract(view)
            if not last and (not self.views or (view + 1 < self.views and view + 1 not in self.cached)):
                self.prepare(view + 1)
        self.features = self.cached[view]

    def images(self, view: int) -> DataLoader:
        """All images in the dataset's order, in large batches."""
        return self.load(view, [batch.tolist() for batch in torch.arange(len(self.labels)).split(EXTRACTION_BATCH)])

    def prepare(self, view: int) -> None:
        """Let the workers decode and augment the view's first images while training runs."""
        if self._options["num_workers"]:
            self.upcoming = view, iter(self.images(view))

    def extract(self, view: int) -> Tensor:
        """Features of one view of every image, in the dataset's order: (N, ...)."""
        upcoming, self.upcoming = self.upcoming, None
        batches = upcoming[1] if upcoming and upcoming[0] == view else self.images(view)
        features, done = None, 0
        with self.needed():
            for batch in tqdm(batches, desc=f"extract view {view}", leave=False):
                part = self.encode(batch["img"])
                if features is None:
                    features = self.room(part)
                features[done : done + len(part)] = part
                done += len(part)
        return features

    def room(self, part: Tensor) -> Tensor:
        """An empty (N, ...) for the features of all images, given those of the first ones."""
        shape = len(self.labels), *part.shape[1:]
        size = max(self.views, 1) * torch.Size(shape).numel() * part.dtype.itemsize
        if part.device.type != "cpu" and size <= self.on_device:
            return torch.empty(shape, dtype=part.dtype, device=part.device)
        if size > self.limit:
            return mapped(shape, part.dtype, self.folder)
        return torch.empty(shape, dtype=part.dtype)

    def __iter__(self) -> Iterator[dict]:
        for index in self.batches():
            if self.features.device.type == "cpu":
                features = self.sent(self.features[index])
            else:
                features = self.features[self.sent(index).to(self.features.device, non_blocking=True)]
            yield {"features": features, "label": self.labels[index]}

    def sent(self, tensor: Tensor) -> Tensor:
        """In pinned memory where the loader's batches are: a GPU copies from it while the host goes on."""
        return tensor.pin_memory() if self._options["pin_memory"] else tensor
