"""KgCoOp: Visual-Language Prompt Tuning with Knowledge-guided Context Optimization (Yao et al., CVPR 2023).

CoOp's context (m = 4, "a photo of a"), held close to what hand-written prompts say:
L = CE + W * mean_c (1 - cos(g_c, g_c^clip)), with g^clip from the dataset's own prompt. The paper writes the second
term as squared distance of unit features with weight 8 (Eq. 4 to 6). As |a - b|^2 = 2 - 2 cos, the released code's
W = 8 on 1 - cos, which is also done here, is a weight of 4 in that form. New classes are tested with the same context.
"""

import torch.nn.functional as F

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.prompts import Context, word_vectors
from .parts.trainer import WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, KgCoOp)
    node.CTX_INIT = "a photo of a"  # words whose embeddings the context starts from
    node.W = 8.0  # weight of 1 - cos


@TRAINER_REGISTRY.register()
class KgCoOp(FrozenCLIP):
    use = "kgcoop"
    limits = {"W": WEIGHT}

    def build(self):
        self.teacher = self.hand_written()  # (C, E)
        return Context(self.clip_model, self.classnames, word_vectors(self.clip_model, self.options.CTX_INIT))

    def class_features(self):
        return self.encode_text(*self.learned.prompts())

    def terms(self, logits, label, image_features, class_features, image):
        distance = 1 - F.cosine_similarity(class_features, self.teacher)  # (C,)
        return {"ce": F.cross_entropy(logits, label), "kg": self.options.W * distance.mean()}
