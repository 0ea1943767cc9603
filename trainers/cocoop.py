"""CoCoOp: Conditional Prompt Learning for Vision-Language Models (Zhou et al., CVPR 2022).

Every image x has a context of its own, v_m(x) = v_m + pi with pi = h(f / |f|) (Sec. 3.2): the meta-net h, Linear - ReLU
- Linear with a hidden layer of E / 16, gives one vector that is added to all m context vectors. The loss is
cross-entropy. V and h learn; the context enters in front of text block 0. Also at test the text tower runs once for
each image, so this is the slowest method by far; the context, which an image's classes share, runs once for them all.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer, add_options
from .prompts import Context, random_vectors, word_vectors


def extend_cfg(cfg):
    node = add_options(cfg, CoCoOp)
    node.N_CTX = 4  # context vectors, where CTX_INIT names no words
    node.CTX_INIT = "a photo of a"  # words whose embeddings they start from; "": N(0, 0.02^2)


@TRAINER_REGISTRY.register()
class CoCoOp(ClipTrainer):
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
        context = Context(self.clip_model, self.names, vectors)
        return nn.ModuleDict({"context": context, "meta_net": nn.Sequential(meta_net)})

    def classes(self):
        """None: every image has its own."""

    def classes_for(self, feature):
        """One image's features (E,) -> class features (C, E)."""
        shift = self.learned["meta_net"](F.normalize(feature, dim=-1))  # (D,)
        context = self.learned["context"]
        return self.encode_text(*context.prompts(context.ctx + shift))

    def logits(self, features, classes):
        """Image features (B, E) -> (B, C)."""
        rows = [super(CoCoOp, self).logits(feature, self.classes_for(feature)) for feature in features]
        return torch.stack(rows)
