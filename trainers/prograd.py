"""ProGrad: Prompt-aligned Gradient for Prompt Tuning (Zhu et al., ICCV 2023).

CoOp's context, moved only in directions that do not work against zero-shot CLIP. With G_d the gradient of the
cross-entropy and G_g that of the distillation loss L_kl = -T^2 sum_c p_zs(c) log p(c) (logits over T in both), the step
follows G_d if <G_d, G_g> >= 0, else G_d - LAMBDA <G_d, G_g> / |G_g|^2 G_g (Eq. 5). Only the context is tested.

L_kl is written as cross-entropy, as in the released code: its gradient is the KL divergence's. The teacher's prompts
name the kind of thing first ("a type of pet, a photo of a ..."). The last context vectors start from the words in front
of the class, those before them from 0. Unlike there, the teacher runs in the precision of everything else, not in fp32.
"""

import torch
import torch.nn.functional as F

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.prompts import Context, word_vectors
from .parts.trainer import COUNT, POSITIVE, WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, ProGrad)
    node.N_CTX = 16  # context vectors
    node.CTX_INIT = ""  # words that the last of them start from; "": the teacher's, up to the class
    node.LAMBDA = 1.0  # share of the part against G_g that is taken away
    node.T = 1.0  # temperature of the distillation


def project(gradient, general, weight):
    """`gradient` without `weight` times its part against `general`, if it has one (Eq. 5); same shapes."""
    dot = (gradient * general).sum()
    against = dot.clamp(max=0) / (general * general).sum().clamp(min=1e-30)
    return gradient - weight * against * general


@TRAINER_REGISTRY.register()
class ProGrad(FrozenCLIP):
    use = "prograd"
    limits = {"N_CTX": COUNT, "LAMBDA": WEIGHT, "T": POSITIVE}

    def build(self):
        self.teacher = self.hand_written()  # (C, E)
        words = self.options.CTX_INIT or self.template().split("{}")[0]
        last = word_vectors(self.clip_model, words)[-self.options.N_CTX :]
        vectors = last.new_zeros(self.options.N_CTX, last.shape[1])
        vectors[len(vectors) - len(last) :] = last
        return Context(self.clip_model, self.classnames, vectors)

    def class_features(self):
        return self.encode_text(*self.learned.prompts())

    def terms(self, logits, label, image_features, class_features, image):
        temperature = self.options.T
        teacher = (self.compare(image_features, self.teacher) / temperature).softmax(dim=-1)  # (B, C)
        kl = F.cross_entropy(logits / temperature, teacher) * temperature**2
        return {"ce": F.cross_entropy(logits, label), "kl": kl}

    def update(self, terms):
        ctx = self.learned.ctx
        self.model_zero_grad()
        (general,) = torch.autograd.grad(self.scaler.scale(terms["kl"]), ctx, retain_graph=True)
        self.scaler.scale(terms["ce"]).backward()
        ctx.grad = project(ctx.grad, general, self.options.LAMBDA)
        self.scaler.step(self.optim)
        self.scaler.update()
