"""ZeroshotCLIP (Radford et al., ICML 2021): CLIP as it is, one hand-written prompt per data set, nothing learned."""

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer, add_options


def extend_cfg(cfg):
    add_options(cfg, ZeroshotCLIP)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(ClipTrainer):
    frozen_images = False  # it is not trained

    def build(self):
        self.hand = self.hand_written()  # (C, E)

    def classes(self):
        return self.hand
