"""FinetuneCLIP: the paper's full fine-tuning baseline (FT), all blocks of both towers with plain cross-entropy.

It is Skip Tuning that skips nothing: omega 0, every class in every loss, pixels instead of a cache. As in the paper's
code the patch and token embeddings, the positions and the logit scale stay frozen.
"""

from functools import cached_property

from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .skip_tuning import SkipTuning


def extend_cfg(cfg):
    """The options of TRAINER.FINETUNECLIP; they mean what TRAINER.SKIPTUNING's mean."""
    node = cfg.TRAINER.FINETUNECLIP = CfgNode()
    node.IMAGE_LR = 0.0
    node.TEMPLATE = ""
    node.PREC = "auto"


@TRAINER_REGISTRY.register()
class FinetuneCLIP(SkipTuning):
    @cached_property
    def options(self):
        """Skip Tuning's options with this trainer's own and with both skips off."""
        options = self.cfg.TRAINER.SKIPTUNING.clone()
        options.defrost()
        options.update(self.cfg.TRAINER.FINETUNECLIP, OMEGA=0, R=1.0)
        return options

    def skip_layers(self):
        """No cache: the training loader goes on yielding pixels."""

    def before_epoch(self):
        """Nothing to extract."""

    def parse_batch_train(self, batch):
        """-> embedded tokens v^0 (B, L, D), labels (B,)."""
        return self.encode_shallow(batch["img"]), batch["label"].to(self.device)
