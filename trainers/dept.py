"""DePT: Decoupled Prompt Tuning (Zhang et al., CVPR 2024), around one of the methods HOSTS.

What is specific to the base classes gets channels of its own: S(x) = scale * x + shift, one pair for image features
and one for class features, both not normalised, and a linear head on both. With f the image's and g_y its
class's feature of the host, the head learns from {S_image(f), y} and {S_text(g_y), y} and
L = (1 - LAMBDA) CE(host) + LAMBDA CE(head) + the host's other terms. The host's prompts, both S and the head learn;
CoCoOp's g_y is the one under the image's own prompt.

Tested on classes that it was trained on (all, or some of them: ImageNet-A and -R), logits are (1 - LAMBDA) z + LAMBDA
head(S_image(f)) with the host's z. As soon as one class is new they are z alone, since the two don't compare.

The release has the hosts CoOp, CoCoOp, KgCoOp and MaPLe; of PromptSRC there are only numbers, so this is the natural
reading: its consistency losses are not scaled, its average over epochs is one of prompts. The row "DePT" of Skip
Tuning's tables is KgCoOp with DePT. (In its code neither S nor the head learned.)
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import ClipTrainer, add_options
from .class_rows import columns, make_room

HOSTS = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC")


def extend_cfg(cfg):
    node = add_options(cfg, DePT)
    node.HOST = "KgCoOp"  # the method it is put around, with the options of that method's own group
    node.LAMBDA = 0.7  # share of the head
    node.LR_FACTOR = 6.5  # learning rate of S and the head, over OPTIM.LR


class Affine(nn.Module):
    """S(x) = scale * x + shift, channel by channel."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return self.scale * x + self.shift


class Inside(ClipTrainer):
    """What a host has for a base here: the run is `outer`'s, and the learned features that `logits` compares are kept.

    Whatever the host doesn't have itself (clip_model, names, epoch, ...) it finds in `outer`.
    """

    def __init__(self, outer):
        self.outer = outer
        self.compared = []  # (image features, class features), in the order of the calls

    def __getattr__(self, name):
        return getattr(self.outer, name)

    def logits(self, features, classes):
        if classes.requires_grad:
            self.compared.append((features, classes))
        return super().logits(features, classes)

    def before_train(self):
        """The host's own part is above this one, the rest is done by `outer`; so it is with the next two."""

    before_epoch = after_epoch = before_train


@TRAINER_REGISTRY.register()
class DePT(ClipTrainer):
    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER.DEPT.HOST not in HOSTS:
            raise UserError(f"TRAINER.DEPT.HOST is {cfg.TRAINER.DEPT.HOST!r}: choose one of {', '.join(HOSTS)}")

    def build(self):
        host = TRAINER_REGISTRY.get(self.options.HOST)
        self.frozen_images = host.frozen_images
        self.host = type(host.__name__, (host, Inside), {})(self)
        self.host.check_cfg(self.cfg)
        self.host.learned = self.host.build()
        self.trained = self.names  # the classes of the head
        width = self.clip_model.visual.output_dim
        parts = {"image": Affine(width), "text": Affine(width), "head": nn.Linear(width, len(self.names))}
        return nn.ModuleDict({"host": self.host.learned, **parts})

    def parameter_groups(self):
        host = list(self.host.parameter_groups())
        groups = host if isinstance(host[0], dict) else [{"params": host}]
        own = [p for name, part in self.learned.items() if name != "host" for p in part.parameters()]
        return [*groups, {"params": own, "lr": self.options.LR_FACTOR * self.cfg.OPTIM.LR}]

    def resting(self):
        return self.host.resting()

    def classes(self):
        return self.host.classes()

    def image_features(self, image):
        return self.host.image_features(image)

    def logits(self, features, classes):
        z = self.host.logits(features, classes)
        rows = columns(self.names, self.trained)
        if rows.min() < 0:
            return z
        share = self.options.LAMBDA
        return (1 - share) * z + share * self.learned["head"](self.learned["image"](features))[:, rows]

    def loss(self, image, label):
        self.host.compared.clear()
        logits, terms = self.host.loss(image, label)
        features, own = self.features_of(label)
        head = self.learned["head"](torch.cat([self.learned["text"](own), self.learned["image"](features)]))  # (2 B, C)
        share = self.options.LAMBDA
        terms = {**terms, "ce": (1 - share) * terms["ce"], "head": share * F.cross_entropy(head, label.repeat(2))}
        return logits, terms

    def features_of(self, label):
        """Features (B, E) of the images that the host has just compared, and of their classes."""
        if self.host.compared[0][0].dim() == 1:  # image by image: CoCoOp
            pairs = [(features, classes[y]) for (features, classes), y in zip(self.host.compared, label, strict=True)]
            return tuple(torch.stack(side) for side in zip(*pairs, strict=True))
        ((features, classes),) = self.host.compared
        return features, classes[label]

    # The host's side of the run

    def before_train(self):
        super().before_train()
        with self._clock("extract_seconds"):
            self.host.before_train()

    def before_epoch(self):
        super().before_epoch()
        self.host.before_epoch()

    def after_epoch(self):
        self.host.after_epoch()
        super().after_epoch()

    def extra_state(self):
        return self.host.extra_state()

    def load_extra_state(self, state):
        self.host.load_extra_state(state)

    def fixed_options(self):
        return {"TRAINER.DEPT.HOST": self.options.HOST, **self.host.fixed_options()}

    def load_model(self, directory, epoch=None):
        if directory:
            head = {f"head.{name}": p for name, p in self.learned["head"].named_parameters()}
            self.trained = make_room(head, directory, epoch)
        super().load_model(directory, epoch)
