"""FinetuneCLIP: the paper's full fine-tuning baseline (FT), all blocks of both towers with plain cross-entropy.

It is Skip Tuning that skips nothing: omega 0, so the training loader yields pixels, and ratio 1, so every class is in
every loss. As in the paper's code the patch and token embeddings, the positions and the logit scale stay frozen.
"""

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .skip_tuning import SkipTuning

SKIPS_NOTHING = {"OMEGA": 0, "R": 1.0}


def extend_cfg(cfg):
    """The options of TRAINER.FINETUNECLIP: those of TRAINER.SKIPTUNING, which must be there."""
    node = cfg.TRAINER.FINETUNECLIP = cfg.TRAINER.SKIPTUNING.clone()
    for key, value in SKIPS_NOTHING.items():
        node[key] = value


@TRAINER_REGISTRY.register()
class FinetuneCLIP(SkipTuning):
    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        for key, value in SKIPS_NOTHING.items():
            if cfg.TRAINER.FINETUNECLIP[key] != value:
                raise UserError(f"TRAINER.FINETUNECLIP.{key} is always {value}: to skip is what SkipTuning is for")
