"""ZeroshotCLIP (Radford et al., ICML 2021): CLIP as it is, one hand-written prompt per dataset, nothing learned."""

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options


def extend_cfg(cfg):
    add_options(cfg, ZeroshotCLIP)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(FrozenCLIP):
    frozen_images = False  # there is no training that features could be cached for

    def build(self):
        self.text_features = self.hand_written()  # (C, E)

    def class_features(self):
        return self.text_features

    def tuned_clip(self):
        """A copy of CLIP, fp32, on the CPU."""
        return self.clip_copy()
