"""PromptSRC: Self-regulating Prompts (Khattak et al., ICCV 2023), and the independent prompts (IVLP) that it regulates.

IVLP learns vectors in front of each of the first J blocks of both towers, in the places of MaPLe's but independent of
each other. Those of the first text block start from "a photo of a", all others from N(0, 0.02^2). The loss is
cross-entropy.

PromptSRC holds them close to frozen CLIP, with features f, g of the prompted towers, all normalised (Sec. 3.2.1):
L = CE + TEXT_LOSS_WEIGHT |g - g_zs|_1 + IMAGE_LOSS_WEIGHT |f - f_zs|_1 + KL(p_zs, p), where f_zs is of the same view
and g_zs of the mean of 60 prompts' features (Sec. 3.2.3). After the last epoch the prompts become their average over
epochs t = 1 ... T with weights ~ exp(-(t - GPA_MEAN)^2 / (2 GPA_STD^2)) that add up to 1 (GPA, Sec. 3.2.2).

As in the released code |.|_1 is the mean over all elements and the KL divergence is divided by images times classes.
Unlike there, GPA averages only the prompts, so its rounding leaves the frozen weights alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .frozen import FrozenCLIP, add_options
from .parts.prompts import DeepContext, check_depth, random_vectors
from .parts.trainer import COUNT, POSITIVE, WEIGHT


def extend_cfg(cfg):
    for trainer in (IVLP, PromptSRC):
        node = add_options(cfg, trainer)
        node.N_CTX_TEXT = 4  # vectors in front of each block
        node.N_CTX_VISION = 4
        node.CTX_INIT = "a photo of a"  # the prompt's words, from the first of which the first vectors start
        node.PROMPT_DEPTH_TEXT = 9  # blocks that get vectors of their own
        node.PROMPT_DEPTH_VISION = 9
    node.TEXT_LOSS_WEIGHT = 25.0
    node.IMAGE_LOSS_WEIGHT = 10.0
    node.GPA_MEAN = 15.0  # epochs, counted from 1
    node.GPA_STD = 1.0


class IndependentPrompts(nn.Module):
    """The learned part of both, from their options."""

    def __init__(self, clip_model, names, options):
        super().__init__()
        visual, depth = clip_model.visual.transformer, options.PROMPT_DEPTH_VISION
        check_depth(visual, depth)
        self.text = DeepContext(clip_model, names, options.CTX_INIT, options.N_CTX_TEXT, options.PROMPT_DEPTH_TEXT)
        self.vision = nn.ParameterList(random_vectors(options.N_CTX_VISION, visual.width) for _ in range(depth))

    def image(self):
        """What encode_image takes."""
        return dict(enumerate(self.vision))


@TRAINER_REGISTRY.register()
class IVLP(FrozenCLIP):
    limits = {"N_CTX_TEXT": COUNT, "N_CTX_VISION": COUNT, "PROMPT_DEPTH_TEXT": COUNT, "PROMPT_DEPTH_VISION": COUNT}
    fixed = ("CTX_INIT",)
    frozen_images = False

    def build(self):
        return IndependentPrompts(self.clip_model, self.classnames, self.options)

    def class_features(self):
        return self.encode_text(*self.learned.text.prompts())

    def image_features(self, image):
        return self.encode_image(image, self.learned.image())


def epoch_weights(epochs, mean, std):
    """GPA's weights of epochs 1 ... `epochs`: (T,), adding up to 1; a softmax, as exp alone may underflow."""
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return (-((epoch - mean) ** 2) / (2 * std**2)).softmax(dim=0)


@TRAINER_REGISTRY.register()
class PromptSRC(IVLP):
    limits = {
        **IVLP.limits,
        "TEXT_LOSS_WEIGHT": WEIGHT,
        "IMAGE_LOSS_WEIGHT": WEIGHT,
        "GPA_MEAN": WEIGHT,
        "GPA_STD": POSITIVE,
    }

    def build(self):
        self.average = {}  # running sum of the weighted prompts
        return super().build()

    def prepare(self):
        self.teacher = F.normalize(self.ensemble_features(), dim=-1)  # (C, E), g_zs

    def terms(self, logits, label, image_features, class_features, image):
        options = self.options
        with torch.no_grad():
            frozen = self.encode_image(image)  # (B, E), f_zs
            teacher = self.compare(frozen, self.teacher).log_softmax(dim=-1)
        text = F.l1_loss(F.normalize(class_features, dim=-1), self.teacher)
        vision = F.l1_loss(F.normalize(image_features, dim=-1), F.normalize(frozen, dim=-1))
        return {
            "ce": F.cross_entropy(logits, label),
            "text": options.TEXT_LOSS_WEIGHT * text,
            "image": options.IMAGE_LOSS_WEIGHT * vision,
            "kl": F.kl_div(logits.log_softmax(dim=-1), teacher, reduction="none", log_target=True).mean(),
        }

    def end_epoch(self):
        options = self.options
        weight = float(epoch_weights(self.max_epoch, options.GPA_MEAN, options.GPA_STD)[self.epoch])
        for name, value in self.learned.state_dict().items():
            self.average[name] = self.average.get(name, 0) + weight * value
        if self.epoch + 1 == self.max_epoch:
            self.learned.load_state_dict(self.average)

    def extra_state(self):
        return {"average": self.average}

    def load_extra_state(self, state):
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
