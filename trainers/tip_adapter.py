"""Tip-Adapter and Tip-Adapter-F: Training-free Adaption of CLIP for Few-shot Classification (Zhang et al., ECCV 2022).

The training images are a cache: keys F (K, E), their unit features averaged over KEY_VIEWS augmented views, and one-hot
labels V (K, C). A test image is compared with both the class texts W and the keys:

    logits = 100 f W^T + ALPHA exp(-BETA (1 - f F^T)) V

TipAdapter learns nothing. TipAdapterF goes on to learn F by cross-entropy. Both then choose ALPHA and BETA on the
validation images from a grid of 20 x 200 values up to ALPHA_MAX and BETA_MAX; the given values win ties, and stay where
a dataset has no validation images. New classes have no keys: for them, and for other datasets, logits are CLIP's.

The release keeps the epoch of TipAdapterF that is best on the test images, and on ImageNet chooses ALPHA and BETA on
them, too. Here the last epoch is kept, and nothing is chosen on test images.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options
from .parts.class_rows import columns, make_room
from .parts.trainer import COUNT, POSITIVE, WEIGHT


def extend_cfg(cfg):
    for trainer in (TipAdapter, TipAdapterF):
        node = add_options(cfg, trainer)
        node.ALPHA = 1.17  # weight of the cache
        node.BETA = 1.0  # sharpness of the comparison with its keys
        node.ALPHA_MAX = 3.0  # end of the grid for ALPHA, which begins at 0.1
        node.BETA_MAX = 7.0  # end of the grid for BETA, which begins at 0.1
        node.KEY_VIEWS = 10  # augmented views of an image that its key is the mean of


class Cache(nn.Module):
    """Keys (K, E), labels (K,), ALPHA and BETA; only keys ever learn, and only with `learn`."""

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
class TipAdapter(FrozenCLIP):
    use = "tip_adapter"
    limits = {"ALPHA": WEIGHT, "BETA": WEIGHT, "ALPHA_MAX": POSITIVE, "BETA_MAX": POSITIVE, "KEY_VIEWS": COUNT}
    frozen_texts = True
    learns = False

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if not self.learns and cfg.TRAINER.TIPADAPTER.VIEWS:
            raise UserError(
                "TRAINER.TIPADAPTER.VIEWS is of images to train on, and TipAdapter trains nothing: leave it 0; the"
                " views behind its keys are TRAINER.TIPADAPTER.KEY_VIEWS"
            )

    def build(self):
        self.text_features = self.hand_written()  # (C, E), W
        self.trained = self.classnames  # the classes that labels are numbers of
        return Cache(len(self.dm.dataset.train_x), self.clip_model.visual.output_dim, self.options, self.learns)

    def class_features(self):
        return self.text_features

    def compare(self, image_features, class_features):
        z = super().compare(image_features, class_features)
        return z + self.learned.alpha * self.cached(self.affinity(image_features), self.learned.beta)

    def affinity(self, image_features):
        """f F^T: (B, E) -> (B, K)."""
        return F.normalize(image_features, dim=-1) @ self.learned.keys.t()

    def cached(self, affinity, beta):
        """exp(-BETA (1 - f F^T)) V: (B, K) -> (B, C); 0 for classes without a key."""
        number = len(self.classnames)
        place = torch.tensor(columns(self.trained, self.classnames)).to(affinity.device, non_blocking=True)
        place = place[self.learned.labels]  # (K,)
        place = place.where(place >= 0, number)  # keys of classes that aren't asked for
        weights = (-beta * (1 - affinity)).exp()
        return weights.new_zeros(len(weights), number + 1).index_add(1, place, weights)[:, :number]

    # ---- the cache -------------------------------------------------------------------------------------------

    def prepare(self):
        if self.start_epoch == 0:
            self.fill()

    @torch.no_grad()
    def fill(self):
        """Keys and labels from views of the training images, other views than those that training sees."""
        loader, learned = self.train_loader_x, self.learned
        total = 0
        for view in range(self.views(self.options.KEY_VIEWS)):
            total = total + loader.extract(-1 - view).float()  # (K, E)
        learned.keys.copy_(F.normalize(total, dim=-1))
        learned.labels.copy_(loader.labels)

    def before_epoch(self):
        if self.learns:
            super().before_epoch()

    def run_epoch(self):
        if self.learns:
            super().run_epoch()
        else:
            self.end_epoch()

    def end_epoch(self):
        if self.epoch + 1 == self.max_epoch:
            self.choose()

    @torch.no_grad()
    def choose(self):
        """Choose the ALPHA and BETA with the most validation images right."""
        learned, options = self.learned, self.options
        validation = self.validation()
        if validation is None:
            print(f"No validation images: ALPHA {options.ALPHA} and BETA {options.BETA} as given")
            return
        features, labels = validation
        z, affinity = super().compare(features, self.text_features), self.affinity(features)

        def right(alpha, cached):
            return int(((z + alpha * cached).argmax(dim=-1) == labels).sum())

        best = right(options.ALPHA, self.cached(affinity, options.BETA)), options.ALPHA, options.BETA
        for i in range(200):
            beta = 0.1 + i * (options.BETA_MAX - 0.1) / 200
            cached = self.cached(affinity, beta)
            for j in range(20):
                alpha = 0.1 + j * (options.ALPHA_MAX - 0.1) / 20
                number = right(alpha, cached)
                if number > best[0]:
                    best = number, alpha, beta
        number, alpha, beta = best
        learned.alpha.fill_(alpha)
        learned.beta.fill_(beta)
        print(f"ALPHA {alpha:.3g}, BETA {beta:.3g}: {number} of {len(labels)} validation images right")

    def load_model(self, directory, epoch=None):
        if directory:
            rows = {"keys": self.learned.keys, "labels": self.learned.labels}
            self.trained = make_room(rows, directory, self.model_name, epoch)
        super().load_model(directory, epoch=epoch)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    learns = True
    per_step = True

    def parameter_groups(self, learned):
        return [{"params": list(learned.parameters()), "eps": 1e-4}]  # as released
