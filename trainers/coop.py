"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022).

m context vectors V replace the words around the class name: [SOS] v_1 ... v_m name . [EOT] (Eq. 2); the loss is
cross-entropy of softmax over <f, g_c> / tau (Eq. 3) with all classes. Only V learns; it enters in front of text block
0, where it is given the positions of the words it replaces. New classes and other data sets are tested with it.

As in the released code V may stand in front of, behind or around the name, be given words to begin with, and be one for
each class (CSC), which then says nothing about other classes: loading it for those is refused.
"""

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .base import ClipTrainer, add_options
from .prompts import Context, random_vectors, word_vectors


def extend_cfg(cfg):
    node = add_options(cfg, CoOp)
    node.N_CTX = 16  # context vectors, where CTX_INIT names no words
    node.CTX_INIT = ""  # words whose embeddings they start from; "": N(0, 0.02^2)
    node.CSC = False  # class-specific contexts
    node.CLASS_TOKEN_POSITION = "end"  # of the name: end, middle or front


@TRAINER_REGISTRY.register()
class CoOp(ClipTrainer):
    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        position = cfg.TRAINER.COOP.CLASS_TOKEN_POSITION
        if position not in ("end", "middle", "front"):
            raise UserError(f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}: choose one of end, middle, front")

    def build(self):
        options = self.options
        sets = [len(self.names)] if options.CSC else []
        if options.CTX_INIT:
            vectors = word_vectors(self.clip_model, options.CTX_INIT)  # (m, D)
            vectors = vectors.expand(*sets, -1, -1)
        else:
            vectors = random_vectors(*sets, options.N_CTX, self.clip_model.transformer.width)
        return Context(self.clip_model, self.names, vectors, options.CLASS_TOKEN_POSITION)

    def classes(self):
        return self.encode_text(*self.learned.prompts())

    def fixed_options(self):
        fixed = {"TRAINER.COOP.CLASS_TOKEN_POSITION": self.options.CLASS_TOKEN_POSITION}
        if self.options.CSC:
            fixed["TRAINER.COOP.CSC for the classes"] = ", ".join(self.names)
        return fixed
