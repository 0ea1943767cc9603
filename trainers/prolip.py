"""ProLIP: CLIP's Visual Embedding Projector is a Few-shot Cornucopia (Fahes et al., arXiv 2410.05270).

Only W (D, E) learns, the projection behind the image tower, by cross-entropy and the squared distance from where it
was: L = CE + LAMBDA / shots |W - W_0|^2, the paper's validation-free choice of the factor. The texts are frozen. New
classes are tested with the same W.

As released: the whole training set is one batch, each epoch is one step on a fresh view of the images, and Adam has
epsilon 1e-4. Nothing in front of W learns, so the steps run on cached features; VIEWS 1 caches one view of each image.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.towers import embed_images, run_images
from .parts.trainer import WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, ProLIP)
    node.LAMBDA = 1.0  # weight of the distance, times the number of shots


class Projection(nn.Module):
    """W (D, E), and W_0, which isn't saved."""

    def __init__(self, proj):
        super().__init__()
        self.proj = nn.Parameter(proj.detach().float().clone())
        self.register_buffer("start", self.proj.detach().clone(), persistent=False)

    def distance(self):
        """|W - W_0|^2, a scalar."""
        return (self.proj - self.start).square().sum()


@TRAINER_REGISTRY.register()
class ProLIP(FrozenCLIP):
    limits = {"LAMBDA": WEIGHT}
    frozen_texts = True
    use = "tip_adapter"

    def build(self):
        self.text_features = self.hand_written()  # (C, E)
        return Projection(self.clip_model.visual.proj)

    def parameter_groups(self, learned):
        return [{"params": list(learned.parameters()), "eps": 1e-4}]  # as released

    def class_features(self):
        return self.text_features

    def encode_image(self, image):
        """image (N, 3, H, W) -> what W is applied to, (N, D)."""
        visual = self.clip_model.visual
        with self.autocast():
            x = run_images(visual.transformer.resblocks, embed_images(visual, image), pool=True)
            return visual.ln_post(x[:, 0]).float()

    def image_features(self, image):
        return self.encode_image(image) @ self.learned.proj

    def loss(self, image, label):
        return super().loss(image @ self.learned.proj, label)

    def terms(self, logits, label, image_features, class_features, image):
        weight = self.options.LAMBDA / self.images_per_class
        return {"ce": F.cross_entropy(logits, label), "distance": weight * self.learned.distance()}

    @torch.no_grad()
    def tuned_clip(self):
        """A copy of CLIP with W for its projection, fp32, on the CPU."""
        clip_model = self.clip_copy()
        clip_model.visual.proj.copy_(self.learned.proj)
        return clip_model
