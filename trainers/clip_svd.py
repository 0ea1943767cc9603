"""CLIP-SVD: Singular Value Few-shot Adaptation of Vision-Language Models (Koleilat et al., arXiv 2509.03740).

In every block of both towers six matrices are taken apart, W = U diag(s) V^T: the projections to queries, keys, values
and output of the attention, and both matrices of the MLP. Only the singular values s learn, by cross-entropy with all
classes. New classes are tested with the same weights.

The released code runs U diag(s) V^T as two products for every token. Here W is put together again after each step, and
the gradient of s is taken from that of W, diag(U^T (dL/dW) V): the same numbers, while both towers stay a plain CLIP
with all its savings, of which a step holds no more activations than of CLIP itself.

In the released base-to-new runs the cosine is as long as MAX_EPOCH steps, not epochs, so the rate falls and rises all
the time: COSINE "steps". There it ends at 1e-6, here at 0. Weight decay draws s itself to 0, as released.
"""

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler

from .frozen import FrozenCLIP, add_options, template
from .parts.prompts import embed

COSINES = ("run", "steps")


def extend_cfg(cfg):
    node = add_options(cfg, CLIPSVD)
    node.COSINE = "run"  # its length: the whole run; or steps: as many steps as there are epochs, and up again


def matrices(block):
    """The six matrices of a block, each as (parameter, its rows)."""
    attn, width = block.attn, block.attn.embed_dim
    packed = [(attn.in_proj_weight, slice(i * width, (i + 1) * width)) for i in range(3)]  # queries, keys, values
    layers = (attn.out_proj, block.mlp.c_fc, block.mlp.c_proj)
    return packed + [(layer.weight, slice(None)) for layer in layers]


class Spectra:
    """Weights W = U diag(s) V^T of blocks whose s learn; stands where other methods have MasterWeights.

    values: for each block its s (6, D), parameters; factors: for each block six pairs (U, V^T).
    """

    step_in_backward = False

    def __init__(self, blocks, values, factors):
        self.parts = {}  # weight: [(rows of it, s, row of s, U, V^T)]
        for block, s, pairs in zip(blocks, values, factors, strict=True):
            for row, ((weight, rows), pair) in enumerate(zip(matrices(block), pairs, strict=True)):
                self.parts.setdefault(weight, []).append((rows, s, row, *pair))
        for weight in self.parts:
            weight.requires_grad_(True).register_post_accumulate_grad_hook(self.hand_down)

    @torch.no_grad()
    def hand_down(self, weight):
        """The gradient of a W becomes that of its singular values, and is freed."""
        for rows, s, row, u, vt in self.parts[weight]:
            s.grad = torch.zeros_like(s) if s.grad is None else s.grad
            s.grad[row] = (u.t() @ weight.grad[rows].to(s.dtype)).mul_(vt).sum(dim=1)
        weight.grad = None

    def take_gradients(self):
        """They are where they belong already."""

    @torch.no_grad()
    def sync(self):
        """Put every W together again; needed after a step and after singular values were loaded."""
        for weight, parts in self.parts.items():
            for rows, s, row, u, vt in parts:
                weight[rows] = (u * s[row]) @ vt


@TRAINER_REGISTRY.register()
class CLIPSVD(FrozenCLIP):
    choices = {"COSINE": COSINES}
    cuda_precision = "amp"
    frozen_images = False
    per_step = True

    def set_precision(self, keep=()):
        """The matrices are taken apart before PREC rounds them; on the CPU, whatever the device."""
        towers = self.clip_model.visual.transformer, self.clip_model.transformer
        self.blocks = [block for tower in towers for block in tower.resblocks]
        self.apart = [
            [torch.linalg.svd(weight.detach()[rows].cpu(), full_matrices=False) for weight, rows in matrices(block)]
            for block in self.blocks
        ]
        super().set_precision(keep)

    def build(self):
        self.texts = embed(self.clip_model, [self.template().format(name) for name in self.classnames])
        return nn.ParameterList(torch.stack([s for _, s, _ in block]) for block in self.apart)

    def learn(self, learned, groups=None):
        super().learn(learned, groups)
        factors = [[(u.to(self.device), vt.to(self.device)) for u, _, vt in block] for block in self.apart]
        del self.apart
        self.weights = Spectra(self.blocks, learned, factors)

    def template(self):
        uses = {"base2new": "clip_svd_base2new", "few_shot": "clip_svd_few_shot"}
        return template(self.cfg.DATASET, uses.get(self.cfg.PROTOCOL, self.use))

    def schedule(self, optim_cfg, steps):
        if self.options.COSINE == "steps":
            return build_lr_scheduler(self.optim, optim_cfg)
        return super().schedule(optim_cfg, steps)

    def class_features(self):
        return self.encode_text(self.texts)

    def tuned_clip(self):
        """A copy of CLIP with the tuned weights, fp32, on the CPU."""
        return self.clip_copy()
