"""TCP: Textual-based Class-aware Prompt Tuning (Yao et al., CVPR 2024).

A shared context of m vectors begins every prompt, as in CoOp. In front of text block BLOCK (from 0) each class's m
vectors are replaced by T_c = W_2 gelu(W_1 w_c), (m, D), where w_c is frozen CLIP's normalised feature of the class's
hand-written prompt (Sec. 3.3). L = CE + W * mean_c (1 - cos(g_c, w_c)). The context, W_1 and W_2 learn. New classes
have T_c made of their own w_c.

As in the released code gelu is CLIP's quick one, the hidden layer has E / 4 channels, the context starts at random,
the prompt keeps what the dataset's own says behind the name, and Adam's eps is 1e-3 (the README's; without it training
in fp16 fails).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from clip.model import QuickGELU
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options, template
from .parts.prompts import embed, random_vectors
from .parts.trainer import COUNT, OR_NONE, POSITIVE, WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, TCP)
    node.N_CTX = 4  # context vectors
    node.BLOCK = 8  # text block before which the class-aware ones take their place
    node.W = 8.0  # weight of 1 - cos
    node.ADAM_EPS = 1e-3  # of the Adam family


class ClassAware(nn.Module):
    """The context and the network that makes T_c."""

    def __init__(self, joint, n, width):
        super().__init__()
        self.ctx = nn.Parameter(random_vectors(n, width))
        down, up = nn.Linear(joint, joint // 4), nn.Linear(joint // 4, n * width)
        self.knowledge = nn.Sequential(OrderedDict(down=down, gelu=QuickGELU(), up=up))

    def forward(self, known):
        """known (C, E) -> T (C, n, D)."""
        return self.knowledge(known).unflatten(-1, self.ctx.shape)


@TRAINER_REGISTRY.register()
class TCP(FrozenCLIP):
    use = "tcp"
    limits = {"N_CTX": COUNT, "BLOCK": OR_NONE, "W": WEIGHT, "ADAM_EPS": POSITIVE}
    fixed = ("BLOCK",)

    def build(self):
        n, tower = self.options.N_CTX, self.clip_model.transformer
        last = len(tower.resblocks) - 1
        if not 1 <= self.options.BLOCK <= last:
            raise UserError(f"TRAINER.TCP.BLOCK is {self.options.BLOCK}: choose one of 1 to {last}")
        before, after = template(self.cfg.DATASET, "tcp_prompt").split("{}")
        words = " ".join(["X"] * n + before.split()[n:])
        self.texts = embed(self.clip_model, [f"{words} {name}{after}" for name in self.classnames])
        self.positions = torch.arange(1, n + 1, device=self.device)  # (n,)
        self.teacher = F.normalize(self.hand_written(), dim=-1)  # (C, E)
        return ClassAware(self.teacher.shape[1], n, tower.width)

    def parameter_groups(self, learned):
        return [{"params": list(learned.parameters()), "eps": self.options.ADAM_EPS}]

    def class_features(self):
        prompts = {0: self.learned.ctx, self.options.BLOCK: self.learned(self.teacher)}
        return self.encode_text(self.texts, prompts, self.positions)

    def terms(self, logits, label, image_features, class_features, image):
        distance = 1 - F.cosine_similarity(class_features, self.teacher)  # (C,)
        return {"ce": F.cross_entropy(logits, label), "kg": self.options.W * distance.mean()}
