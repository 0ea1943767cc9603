"""CoOp: Learning to Prompt for Vision-Language Models (Zhou et al., IJCV 2022).

m context vectors V replace the words around the class name: [SOS] v_1 ... v_m name . [EOT] (Eq. 2); the loss is
cross-entropy of softmax over <f, g_c> / tau (Eq. 3) with all classes. Only V learns. It enters in front of text block
0, with the positions of the words that it replaces. New classes and other datasets are tested with it.

As in the released code V may stand in front of, behind or around the name, be given words to begin with, and be one for
each class (CSC). A context for each class says nothing about other classes, so loading it for those is refused.
"""

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options
from .parts.prompts import Context, random_vectors, word_vectors
from .parts.trainer import COUNT


def extend_cfg(cfg):
    node = add_options(cfg, CoOp)
    node.N_CTX = 16  # context vectors, where CTX_INIT names no words
    node.CTX_INIT = ""  # words whose embeddings they start from; "": N(0, 0.02^2)
    node.CSC = False  # class-specific contexts
    node.CLASS_TOKEN_POSITION = "end"  # of the name: end, middle or front


@TRAINER_REGISTRY.register()
class CoOp(FrozenCLIP):
    limits = {"N_CTX": COUNT}
    choices = {"CLASS_TOKEN_POSITION": ("end", "middle", "front")}
    fixed = ("CLASS_TOKEN_POSITION",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER.COOP.CSC and cfg.TEST.SAVE_LOGITS and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise UserError(
                "TRAINER.COOP.CSC learns nothing for other classes, and TEST.SAVE_LOGITS asks for those of the whole"
                " dataset: leave out one of them"
            )

    def build(self):
        options = self.options
        sets = [len(self.classnames)] if options.CSC else []
        if options.CTX_INIT:
            vectors = word_vectors(self.clip_model, options.CTX_INIT)  # (m, D)
            vectors = vectors.expand(*sets, -1, -1)
        else:
            vectors = random_vectors(*sets, options.N_CTX, self.clip_model.transformer.width)
        return Context(self.clip_model, self.classnames, vectors, options.CLASS_TOKEN_POSITION)

    def class_features(self):
        return self.encode_text(*self.learned.prompts())

    def fixed_options(self):
        fixed = super().fixed_options()
        if self.options.CSC:
            fixed["TRAINER.COOP.CSC for the classes"] = ", ".join(self.classnames)
        return fixed
