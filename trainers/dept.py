"""DePT: Decoupled Prompt Tuning (Zhang et al., CVPR 2024), around one of the methods HOSTS.

What is specific to the base classes gets channels of its own: S(x) = scale * x + shift, one pair for image features
and one for class features, both not normalised, and a linear head on both. With f the host's feature of the image and
g_y that of its class, the head learns from {S_image(f), y} and {S_text(g_y), y}, and
L = (1 - LAMBDA) CE(host) + LAMBDA CE(head) + the host's other terms. The host's prompts, both S and the head learn.
CoCoOp's g_y is the one under the image's own prompt.

In a test on classes of the training (all, or some of them: ImageNet-A and -R) logits are (1 - LAMBDA) z + LAMBDA
head(S_image(f)) with the host's z. As soon as one class is new they are z alone, since the two don't compare.

The release has the hosts CoOp, CoCoOp, KgCoOp and MaPLe. There are only numbers of PromptSRC, so this is the natural
reading: its consistency losses are not scaled, and its average over epochs is one of prompts. The row "DePT" of Skip
Tuning's tables is KgCoOp with DePT. (In its code neither S nor the head learned.)
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options
from .parts.class_rows import columns, make_room
from .parts.trainer import POSITIVE, SHARE

HOSTS = ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC")


def extend_cfg(cfg):
    node = add_options(cfg, DePT)
    node.HOST = "KgCoOp"  # the method it is put around, with that method's own options but for PREC and VIEWS
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


@TRAINER_REGISTRY.register()
class DePT(FrozenCLIP):
    limits = {"LAMBDA": SHARE, "LR_FACTOR": POSITIVE}
    choices = {"HOST": HOSTS}
    fixed = ("HOST",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        host = cfg.TRAINER.DEPT.HOST
        if cfg.TRAINER.DEPT.VIEWS and not TRAINER_REGISTRY.get(host).frozen_images:
            raise UserError(f"TRAINER.DEPT.VIEWS is of features that are cached, and {host} caches none: leave it 0")

    def build(self):
        self.host = self.build_host()
        self.frozen_images = self.host.frozen_images
        self.trained = self.classnames  # the classes of the head
        width = self.clip_model.visual.output_dim
        own = {"image": Affine(width), "text": Affine(width), "head": nn.Linear(width, len(self.classnames))}
        return nn.ModuleDict({"host": self.host.learned, **own})

    def build_host(self):
        """The host as a trainer of its own, on the same data and the same CLIP; its optimizer makes no step."""
        name = self.options.HOST
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TRAINER[name.upper()].PREC = self.options.PREC
        return TRAINER_REGISTRY.get(name)(cfg, self.dm, self.clip_model)

    def parameter_groups(self, learned):
        groups = self.host.parameter_groups(learned["host"])
        own = [p for name, part in learned.items() if name != "host" for p in part.parameters()]
        return [{"params": groups}, {"params": own, "lr": self.options.LR_FACTOR * self.cfg.OPTIM.LR}]

    def class_features(self):
        return self.host.class_features()

    def image_features(self, image):
        return self.host.image_features(image)

    def compare(self, image_features, class_features):
        z = self.host.compare(image_features, class_features)
        rows = columns(self.classnames, self.trained)
        if -1 in rows:
            return z
        share = self.options.LAMBDA
        head = self.learned["head"](self.learned["image"](image_features))  # (B, C)
        return (1 - share) * z + share * head[:, rows]

    def loss(self, image, label):
        image_features = image if self.frozen_images else self.image_features(image)
        class_features = self.host.class_features_for(image_features)
        logits = self.host.compare(image_features, class_features)
        terms = self.host.terms(logits, label, image_features, class_features, image)
        if class_features.dim() == 3:  # they depend on the image: CoCoOp
            own = class_features[torch.arange(len(label), device=label.device), label]  # (B, E), of each image's class
        else:
            own = class_features[label]
        both = torch.cat([self.learned["text"](own), self.learned["image"](image_features)])  # (2 B, E)
        head = F.cross_entropy(self.learned["head"](both), label.repeat(2))
        share = self.options.LAMBDA
        return logits, {**terms, "ce": (1 - share) * terms["ce"], "head": share * head}

    # ---- the host's side of the run --------------------------------------------------------------------------

    def idle_parameters(self):
        return self.host.idle_parameters()

    def prepare(self):
        self.host.offload = self.offload
        self.host.prepare()

    def end_epoch(self):
        self.host.epoch = self.epoch
        self.host.end_epoch()

    def extra_state(self):
        return self.host.extra_state()

    def load_extra_state(self, state):
        self.host.load_extra_state(state)

    def fixed_options(self):
        return super().fixed_options() | self.host.fixed_options()

    def load_model(self, directory, epoch=None):
        if directory:
            head = {f"head.{name}": p for name, p in self.learned["head"].named_parameters()}
            self.trained = make_room(head, directory, self.model_name, epoch)
        super().load_model(directory, epoch=epoch)
