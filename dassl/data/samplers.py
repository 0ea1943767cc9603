"""Orders in which a loader visits its images. The domain and class samplers draw with Python's `random`."""

import random
from collections import defaultdict

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from ..utils import UnknownName, UserError, nearest


class BatchSizeError(UserError, ValueError):
    """A batch that cannot hold what the sampler must put into it."""


class _GroupSampler(Sampler):
    """Indices in runs of equally many images per group, until some group has too few left.

    The length is that of one trial run in the constructor, as upstream (it consumes `random`).
    """

    def __init__(self, data_source, batch_size, n_groups, key):
        self.groups = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[key(item)].append(index)
        if n_groups is None or n_groups <= 0:
            n_groups = len(self.groups)
        if not 0 < n_groups <= len(self.groups) or batch_size % n_groups:
            raise BatchSizeError(
                f"A batch of {batch_size} cannot hold {n_groups} of {len(self.groups)} domains in equal parts"
            )
        self.n_groups, self.per_group = n_groups, batch_size // n_groups
        self.length = len(list(iter(self)))

    def __iter__(self):
        left = {name: random.sample(indices, len(indices)) for name, indices in self.groups.items()}
        order = []
        while min(map(len, left.values())) >= self.per_group:
            for name in self.next_groups(list(left)):
                order += [left[name].pop() for _ in range(self.per_group)]
        return iter(order)

    def __len__(self):
        return self.length


class RandomDomainSampler(_GroupSampler):
    """Each batch: `n_domain` random domains (0 or None: all), equally many random images of each."""

    def __init__(self, data_source, batch_size, n_domain):
        super().__init__(data_source, batch_size, n_domain, key=lambda item: item.domain)

    def next_groups(self, names):
        return random.sample(names, self.n_groups)


class SeqDomainSampler(_GroupSampler):
    """Each batch: every domain in the same order, equally many random images of each."""

    def __init__(self, data_source, batch_size):
        super().__init__(data_source, batch_size, None, key=lambda item: item.domain)

    def next_groups(self, names):
        return names


class RandomClassSampler(Sampler):
    """Each batch: `batch_size // n_ins` random classes, `n_ins` images of each.

    A class with fewer images is topped up with repeats. BatchSizeError if n_ins does not fit into a batch.
    """

    def __init__(self, data_source, batch_size, n_ins):
        if not 0 < n_ins <= batch_size:
            raise BatchSizeError(f"batch_size={batch_size} must be at least n_ins={n_ins}")
        self.by_label = defaultdict(list)
        for index, item in enumerate(data_source):
            self.by_label[item.label].append(index)
        self.n_ins, self.n_classes = n_ins, batch_size // n_ins
        if self.n_classes > len(self.by_label):
            raise BatchSizeError(
                f"A batch of {batch_size} with {n_ins} per class needs {self.n_classes} classes,"
                f" there are {len(self.by_label)}"
            )
        self.length = len(list(iter(self)))

    def __iter__(self):
        chunks = {label: self._chunks(indices) for label, indices in self.by_label.items()}
        order = []
        while len(chunks) >= self.n_classes:
            for label in random.sample(list(chunks), self.n_classes):
                order += chunks[label].pop()
                if not chunks[label]:
                    del chunks[label]
        return iter(order)

    def _chunks(self, indices):
        """The images of a class in random order, cut into full groups of n_ins; the rest is dropped."""
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        shuffled = random.sample(indices, len(indices))
        full = len(shuffled) // self.n_ins * self.n_ins
        return [shuffled[i : i + self.n_ins] for i in range(0, full, self.n_ins)]

    def __len__(self):
        return self.length


SAMPLERS = {
    "RandomSampler": lambda source, batch_size, n_domain, n_ins: RandomSampler(source),
    "SequentialSampler": lambda source, batch_size, n_domain, n_ins: SequentialSampler(source),
    "RandomDomainSampler": lambda source, batch_size, n_domain, n_ins: RandomDomainSampler(
        source, batch_size, n_domain
    ),
    "SeqDomainSampler": lambda source, batch_size, n_domain, n_ins: SeqDomainSampler(source, batch_size),
    "RandomClassSampler": lambda source, batch_size, n_domain, n_ins: RandomClassSampler(source, batch_size, n_ins),
}


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16):
    """The sampler called `sampler_type` over `data_source`; UnknownName (also a ValueError) otherwise."""
    if sampler_type not in SAMPLERS:
        raise UnknownName(f"Unknown sampler type: {sampler_type} (do you mean {nearest(sampler_type, SAMPLERS)}?)")
    return SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins)
