"""MaPLe: Multi-modal Prompt Learning (Khattak et al., CVPR 2023).

In front of each of the first J text blocks m learned vectors P_i replace the m tokens behind the start token (Eq. 2 to
4). F_i(P_i), by one linear layer for each block, stand in front of the image block of the same number (Eq. 5 to 8). The
first ones are appended to the patches, without positions and before the tower's first norm; later ones replace them.
From block J on nothing is replaced. The loss is cross-entropy. P and F learn, and serve new classes and other datasets.

As in the released code P_0 starts from the first m words of "a photo of a", the other words stay in the prompt, the
deeper P_i are N(0, 0.02^2), and the deeper F_i begin as copies of one layer. Unlike there, all of them are fp32.
"""

import copy

from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.prompts import DeepContext, check_depth
from .parts.trainer import COUNT


def extend_cfg(cfg):
    node = add_options(cfg, MaPLe)
    node.N_CTX = 2  # vectors in front of each block, m
    node.CTX_INIT = "a photo of a"  # the prompt's words, from the first of which they start; fewer than m: N(0, 0.02^2)
    node.PROMPT_DEPTH = 9  # blocks that get vectors of their own, J


class CoupledPrompts(nn.Module):
    """P and F, the learned part of MaPLe, from its options."""

    def __init__(self, clip_model, names, options):
        super().__init__()
        depth, visual = options.PROMPT_DEPTH, clip_model.visual.transformer
        check_depth(visual, depth)
        self.text = DeepContext(clip_model, names, options.CTX_INIT, options.N_CTX, depth)
        first, deeper = (nn.Linear(clip_model.transformer.width, visual.width) for _ in range(2))
        self.couple = nn.ModuleList([first, *(copy.deepcopy(deeper) for _ in range(1, depth))])

    def image(self):
        """What encode_image takes: {block: (n, D of the image tower)}."""
        pairs = zip(self.couple, self.text.vectors(), strict=True)
        return {block: couple(vectors) for block, (couple, vectors) in enumerate(pairs)}


@TRAINER_REGISTRY.register()
class MaPLe(FrozenCLIP):
    limits = {"N_CTX": COUNT, "PROMPT_DEPTH": COUNT}
    fixed = ("CTX_INIT",)
    frozen_images = False

    def build(self):
        return CoupledPrompts(self.clip_model, self.classnames, self.options)

    def class_features(self):
        return self.encode_text(*self.learned.text.prompts())

    def image_features(self, image):
        return self.encode_image(image, self.learned.image())
