"""CoCoOp: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022).

Every image x has a context of its own, v_m(x) = v_m + pi with pi = h(f / |f|) (Sec. 3.2): the meta-net h, Linear - ReLU
- Linear with a hidden layer of E / 16, gives one vector that is added to all m context vectors. The loss is
cross-entropy. V and h learn. The context enters in front of text block 0. The text tower runs once for each image, also
at test, so this is the slowest method by far. An image's classes share its context, which runs once for them all.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.prompts import Context, random_vectors, word_vectors
from .parts.trainer import COUNT


def extend_cfg(cfg):
    node = add_options(cfg, CoCoOp)
    node.N_CTX = 4  # context vectors, where CTX_INIT names no words
    node.CTX_INIT = "a photo of a"  # words whose embeddings they start from; "": N(0, 0.02^2)


@TRAINER_REGISTRY.register()
class CoCoOp(FrozenCLIP):
    limits = {"N_CTX": COUNT}

    def build(self):
        options, width = self.options, self.clip_model.transformer.width
        joint = self.clip_model.visual.output_dim
        if options.CTX_INIT:
            vectors = word_vectors(self.clip_model, options.CTX_INIT)  # (m, D)
        else:
            vectors = random_vectors(options.N_CTX, width)
        meta_net = OrderedDict(
            linear1=nn.Linear(joint, joint // 16),
            relu=nn.ReLU(),
            linear2=nn.Linear(joint // 16, width),
        )
        context = Context(self.clip_model, self.classnames, vectors)
        return nn.ModuleDict({"context": context, "meta_net": nn.Sequential(meta_net)})

    def class_features(self):
        """None: every image has its own, which `compare` then makes."""

    def class_features_for(self, image_features):
        """Image features (B, E) -> (B, C, E)."""
        return torch.stack([self.conditioned(feature) for feature in image_features])

    def conditioned(self, feature):
        """One image's features (E,) -> its class features (C, E)."""
        shift = self.learned["meta_net"](F.normalize(feature, dim=-1))  # (D,)
        context = self.learned["context"]
        return self.encode_text(*context.prompts(context.ctx + shift))

    def compare(self, image_features, class_features):
        """Image features (B, E), class features (B, C, E) or None -> logits (B, C).

        None makes them image by image: those of all images of a test batch may not fit into memory.
        """
        rows = []
        for i, feature in enumerate(image_features):
            own = self.conditioned(feature) if class_features is None else class_features[i]
            rows.append(super().compare(feature, own))
        return torch.stack(rows)
