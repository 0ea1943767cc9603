"""CLIP-Adapter: Better Vision-Language Models with Feature Adapters (Gao et al., IJCV 2024).

A bottleneck behind the frozen image tower: f' = ALPHA A(f) + (1 - ALPHA) f with A(f) = ReLU(W_2 ReLU(W_1 f)) on
features that are not normalised (Eq. 4 to 6); the loss is cross-entropy of f' against the features of hand-written
prompts. Only W_1 and W_2 learn. At test f' serves new classes, too.

As in the released code there is no adapter for text and one ALPHA for all datasets; the paper has both. The text
features never change, so they are computed once. VIEWS 1 is Skip Tuning's "dagger" form: image features cached once.
"""

from collections import OrderedDict

from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.trainer import COUNT, SHARE


def extend_cfg(cfg):
    node = add_options(cfg, CLIPAdapter)
    node.ALPHA = 0.2  # share of the adapted features
    node.REDUCTION = 4  # width of the features over that of the bottleneck


class Adapter(nn.Sequential):
    """A(x) = ReLU(W_2 ReLU(W_1 x)): (..., E) -> (..., E), without biases."""

    def __init__(self, width, reduction):
        super().__init__(
            OrderedDict(
                down=nn.Linear(width, width // reduction, bias=False),
                relu1=nn.ReLU(),
                up=nn.Linear(width // reduction, width, bias=False),
                relu2=nn.ReLU(),
            )
        )


@TRAINER_REGISTRY.register()
class CLIPAdapter(FrozenCLIP):
    limits = {"ALPHA": SHARE, "REDUCTION": COUNT}
    fixed = ("ALPHA",)
    frozen_texts = True

    def build(self):
        self.text_features = self.hand_written()  # (C, E)
        return Adapter(self.clip_model.visual.output_dim, self.options.REDUCTION)

    def class_features(self):
        return self.text_features

    def compare(self, image_features, class_features):
        alpha = self.options.ALPHA
        adapted = alpha * self.learned(image_features) + (1 - alpha) * image_features
        return super().compare(adapted, class_features)
