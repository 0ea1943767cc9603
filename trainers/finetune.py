"""FinetuneCLIP: the paper's full fine-tuning baseline (FT), all blocks of both towers with plain cross-entropy.

It is Skip Tuning that skips nothing: omega 0, every class in every loss, pixels instead of a cache. As in the paper's
code the patch and token embeddings, the positions and the logit scale stay frozen. Its other options are those of
TRAINER.SKIPTUNING.
"""

from functools import cached_property

from dassl.engine import TRAINER_REGISTRY

from .skip_tuning import SkipTuning


@TRAINER_REGISTRY.register()
class FinetuneCLIP(SkipTuning):
    @cached_property
    def options(self):
        options = self.cfg.TRAINER.SKIPTUNING.clone()
        options.defrost()
        options.OMEGA, options.R = 0, 1.0
        return options

    def skip_layers(self):
        """No cache: the training loader goes on yielding pixels."""

    def before_epoch(self):
        """Nothing to extract."""

    def parse_batch_train(self, batch):
        """-> embedded tokens v^0 (B, L, D), labels (B,)."""
        return self.encode_shallow(batch["img"]), batch["label"]
