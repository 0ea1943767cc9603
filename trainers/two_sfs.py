"""2SFS: Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages (Farina et al., CVPR 2025).

Stage 1, the first SHARE of the epochs: the LayerNorms of both towers learn by cross-entropy with all classes. Stage 2:
both towers are frozen, and a linear classifier (C, E), unit weights on unit features, learns from where the tuned text
tower puts the classes. At test the classifier's rows stand for the classes it was trained on; all others are encoded
by the tuned text tower (the paper's selective inference). Both stages have an optimizer's state and a cosine of their
own, and the same values for all datasets.

In the released code the norms in front of and behind a tower's blocks (ln_pre, ln_post, ln_final) are among those that
learn, but get no gradient: NORMS "blocks" leaves them as they are, too.

The paper's budget, M = 300 steps for each shot, is here in whole epochs (OPTIM.STEPS_PER_SHOT), and so is its split.
The cosines go to 0, in the released code to 1e-6. Images that don't fill a batch are left out, there they make a
smaller one. In stage 2 nothing in or before the towers learns, so the features of each epoch's views are extracted in
large batches, where the released code runs the image tower in every step.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options
from .parts.cache import FeatureCache, TrainingLoader
from .parts.class_rows import columns, make_room
from .parts.prompts import embed
from .parts.towers import embed_images, pool_images, run_images
from .parts.trainer import SHARE


def extend_cfg(cfg):
    node = add_options(cfg, TwoSFS)
    node.SHARE = 0.6  # of the epochs for stage 1, the paper's alpha
    node.NORMS = "all"  # that learn; or blocks: those in front of attention and MLP alone


class Stages(nn.Module):
    """What both stages learn: CLIP's own LayerNorms, and the classifier (C, E), which is 0 before stage 2."""

    def __init__(self, clip_model, num_classes, choice):
        super().__init__()
        towers = [clip_model.visual.transformer, clip_model.transformer] if choice == "blocks" else [clip_model]
        norms = [part for tower in towers for part in tower.modules() if isinstance(part, nn.LayerNorm)]
        self.norms = nn.ModuleList(norms)
        self.norms.requires_grad_(True)
        self.classifier = nn.Parameter(torch.zeros(num_classes, clip_model.text_projection.shape[1]))
        self.register_buffer("second", torch.tensor(False))  # whether stage 2 has begun


@TRAINER_REGISTRY.register()
class TwoSFS(FrozenCLIP):
    limits = {"SHARE": SHARE}
    choices = {"NORMS": ("all", "blocks")}
    cuda_precision = "amp"
    frozen_images = False
    use = "clip_lora"
    per_step = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.OPTIM.LR_SCHEDULER != "cosine" or cfg.OPTIM.WARMUP_EPOCH > 0:
            raise UserError(
                "TwoSFS has a cosine in each stage and no warm-up: set OPTIM.LR_SCHEDULER cosine, OPTIM.WARMUP_EPOCH -1"
            )

    def build(self):
        self.texts = embed(self.clip_model, [self.template().format(name) for name in self.classnames])
        self.trained = self.classnames  # whose rows the classifier has
        self.first_epochs = round(self.options.SHARE * self.max_epoch)
        return Stages(self.clip_model, len(self.classnames), self.options.NORMS)

    def schedule(self, optim_cfg, steps):
        first, last = self.first_epochs * steps, self.max_epoch * steps

        def cosine(step):
            begin, end = (0, first) if step < first else (first, last)
            return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(end - begin, 1)))

        return LambdaLR(self.optim, cosine)

    def training_loader(self):
        """That of stage 1; `before_epoch` takes the other for stage 2."""
        loader, seed = self.train_loader_x, self.cfg.SEED
        self.second_loader = FeatureCache(loader, self.frozen_features, self.views(0), seed, needed=self.needed)
        return TrainingLoader(loader, seed)

    # ---- features --------------------------------------------------------------------------------------------

    def encode_image(self, image):
        """image (B, 3, H, W) -> (B, E); with a graph from the first norm on, which learns, too."""
        visual = self.clip_model.visual
        with self.autocast():
            x = run_images(visual.transformer.resblocks, embed_images(visual, image), pool=True)
            return pool_images(visual, x).float()

    def class_features(self):
        if not self.frozen_images:
            return self.encode_text(self.texts)
        if self.classnames == self.trained:
            return self.learned.classifier
        place = torch.tensor(columns(self.classnames, self.trained), device=self.device)  # (C,)
        return torch.where(place[:, None] >= 0, self.learned.classifier[place], self.encode_text(self.texts))

    # ---- the stages ------------------------------------------------------------------------------------------

    def note_stage(self):
        """In stage 2 nothing in or before the image tower learns any more: steps take cached features."""
        self.frozen_images = bool(self.learned.second)

    @torch.no_grad()
    def begin_second(self):
        """The towers stay as they are from here on; the classifier starts where they put the classes."""
        self.learned.classifier.copy_(F.normalize(self.class_features(), dim=-1))
        self.learned.second.fill_(True)
        self.note_stage()

    def prepare(self):
        self.note_stage()  # a resumed run may be in stage 2
        if not self.first_epochs and not self.frozen_images:
            self.begin_second()

    def before_epoch(self):
        if self.frozen_images:
            self.train_loader_x = self.second_loader
        super().before_epoch()

    def end_epoch(self):
        if self.epoch + 1 == self.first_epochs:
            self.begin_second()

    def load_model(self, directory, epoch=None):
        if directory:
            self.trained = make_room({"classifier": self.learned.classifier}, directory, self.model_name, epoch)
        super().load_model(directory, epoch=epoch)
        self.note_stage()

    def tuned_clip(self):
        """A copy of CLIP with the tuned norms, fp32, on the CPU; the classifier is no part of it."""
        return self.clip_copy()

    def left_out(self, classnames):
        known = {name.replace("_", " ") for name in classnames} & set(self.trained)
        return "a classifier" if known else ""
