"""Tip-Adapter and Tip-Adapter-F: Training-free Adaption of CLIP for Few-shot Classification (Zhang et al., ECCV 2022).

The training images are a cache: keys F (K, E), their unit features averaged over KEY_VIEWS augmented views, and one-hot
labels V (K, C). A test image is compared with both the class texts W and the keys:

    logits = 100 f W^T + ALPHA exp(-BETA (1 - f F^T)) V

TipAdapter learns nothing. TipAdapterF goes on to learn F by cross-entropy. Both then choose ALPHA and BETA on the
validation images from a grid of 20 x 200 values up to ALPHA_MAX and BETA_MAX; the given values win ties, and stay where
a data set has no validation images. New classes have no keys: for them, and for other data sets, logits are CLIP's.

The release keeps the epoch of TipAdapterF that is best on the test images, and on ImageNet chooses ALPHA and BETA on
them, too. Here it is the last epoch, and nothing is chosen on test images.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import MODEL, NOT_RANDOM, ClipTrainer, add_options
from .class_rows import columns, make_room


def extend_cfg(cfg):
    for trainer in (TipAdapter, TipAdapterF):
        node = add_options(cfg, trainer)
        node.ALPHA = 1.17  # weight of the cache
        node.BETA = 1.0  # sharpness of the comparison with its keys
        node.ALPHA_MAX = 3.0  # end of the grid for ALPHA, which begins at 0.1
        node.BETA_MAX = 7.0  # end of the grid for BETA, which begins at 0.1
        node.KEY_VIEWS = 10  # augmented views of an image that its key is the mean of
        node.TEMPLATES = []  # prompts with {} for the class, of which W is the mean; []: the data set's own one


class Cache(nn.Module):
    def __init__(self, number, width, options, learn):
        super().__init__()
        keys = torch.zeros(number, width)
        if learn:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.zeros(number, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(options.ALPHA)))
        self.register_buffer("beta", torch.tensor(float(options.BETA)))


@TRAINER_REGISTRY.register()
class TipAdapterF(ClipTrainer):
    frozen_texts = True
    per_step = True
    learns = True

    def build(self):
        self.hand = self.class_texts()  # (C, E)
        self.trained = self.names  # the classes that labels are numbers of
        number, width = len(self.dm.dataset.train_x), self.clip_model.visual.output_dim
        return Cache(number, width, self.options, self.learns)

    def class_texts(self):
        if not self.options.TEMPLATES:
            return self.hand_written()
        features = map(self.prompted, self.options.TEMPLATES)
        return torch.stack([F.normalize(each, dim=-1) for each in features]).mean(dim=0)

    def parameter_groups(self):
        return [{"params": list(self.learned.parameters()), "eps": 1e-4}]  # as released

    def classes(self):
        return self.hand

    def logits(self, features, classes):
        z = super().logits(features, classes)
        return z + self.learned.alpha * self.cached(self.affinity(features), self.learned.beta)

    def affinity(self, features):
        """f F^T: (B, E) -> (B, K)."""
        return F.normalize(features, dim=-1) @ self.learned.keys.t()

    def cached(self, affinity, beta):
        """exp(-BETA (1 - f F^T)) V: (B, K) -> (B, C); 0 for classes without a key."""
        number = len(self.names)
        place = columns(self.trained, self.names).to(affinity.device)[self.learned.labels]  # (K,)
        place = place.where(place >= 0, number)  # keys of classes that aren't asked for
        weights = (-beta * (1 - affinity)).exp()
        return weights.new_zeros(len(weights), number + 1).index_add(1, place, weights)[:, :number]

    # The cache

    def before_train(self):
        super().before_train()
        if self.start_epoch == 0:
            with self._clock("extract_seconds"):
                self.fill()

    @torch.no_grad()
    def fill(self):
        """Keys and labels from views of the training images, other views than those that training sees."""
        loader, learned = self.train_loader_x, self.learned
        number = 1 if set(self.cfg.INPUT.TRANSFORMS) <= NOT_RANDOM else self.options.KEY_VIEWS
        total = sum(loader.extract(-1 - view).float() for view in range(number))  # (K, E)
        learned.keys.copy_(F.normalize(total, dim=-1))
        learned.labels.copy_(loader.labels)

    def after_epoch(self):
        if self.epoch + 1 == self.max_epoch:
            with self._clock("train_seconds"):
                self.choose()
        super().after_epoch()

    @torch.no_grad()
    def choose(self):
        """ALPHA and BETA with the most validation images right."""
        learned, options = self.learned, self.options
        if self.val_loader is None:
            print(f"No validation images: ALPHA {options.ALPHA} and BETA {options.BETA} as given")
            return
        batches = [(self.frozen_features(batch["img"]), batch["label"]) for batch in self.val_loader]
        features, labels = (torch.cat(parts).to(self.device) for parts in zip(*batches, strict=True))
        z, affinity = super().logits(features, self.hand), self.affinity(features)

        def right(alpha, cached):
            return int(((z + alpha * cached).argmax(dim=-1) == labels).sum())

        best = right(options.ALPHA, self.cached(affinity, options.BETA)), options.ALPHA, options.BETA
        for i in range(200):
            beta = 0.1 + i * (options.BETA_MAX - 0.1) / 200
            cached = self.cached(affinity, beta)
            for j in range(20):
                alpha = 0.1 + j * (options.ALPHA_MAX - 0.1) / 20
                best = max(best, (right(alpha, cached), alpha, beta), key=lambda found: found[0])
        number, alpha, beta = best
        learned.alpha.fill_(alpha)
        learned.beta.fill_(beta)
        print(f"ALPHA {alpha:.3g}, BETA {beta:.3g}: {number} of {len(labels)} validation images right")

    def load_model(self, directory, epoch=None):
        if directory:
            rows = {"keys": self.learned.keys, "labels": self.learned.labels}
            self.trained = make_room(rows, directory, epoch)
        super().load_model(directory, epoch)


@TRAINER_REGISTRY.register()
class TipAdapter(TipAdapterF):
    learns = False

    def register(self):
        self.max_epoch = 1
        self.register_model(MODEL, self.learned.to(self.device))

    def before_epoch(self):
        """No features to learn from."""

    def run_epoch(self):
        """No step."""
