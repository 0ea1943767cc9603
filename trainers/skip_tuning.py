"""Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient Adapters Themselves (CVPR 2025).

The deep layers of both CLIP towers are fine-tuned with plain cross-entropy, made cheap by LSkip (parts/lskip.py: the
first omega blocks run once) and CSkip (parts/cskip.py: only the classes that matter enter the loss). No parameter is
added.

This file and the parts it imports need torch, Dassl and OpenAI's `clip` and nothing else; any Dassl and any fork's
`clip` will do (swap_in.py).
"""

import re
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .parts.cache import FeatureCache, TrainingLoader
from .parts.compat import UserError, tokenize
from .parts.cskip import keep_probability, masked_cross_entropy, sample_classes
from .parts.lskip import cut, shallow_image, shallow_text
from .parts.precision import moved_share, sample
from .parts.towers import in_microbatches
from .parts.trainer import OR_NONE, POSITIVE, WEIGHT, CLIPTrainer, Limits


def extend_cfg(cfg):
    """The options of TRAINER.SKIPTUNING, with the values that the paper gives them."""
    node = cfg.TRAINER.SKIPTUNING = CfgNode()
    node.OMEGA = 6  # blocks of each tower that are run once and cached (LSkip)
    node.R = 0.5  # share of the classes kept for sure (CSkip); 1.0 keeps all
    node.LAMBDA = 0.3  # decay of the others' probability
    node.MAX_TOP = 0  # cap on the number kept for sure; 0: none
    node.SCOPE = "image"  # whose similarity ranks the classes: each image's, or the batch's best
    node.DECAY = "paper"  # parts/cskip.py explains the two
    node.RESAMPLE = "step"  # when the kept ranks are drawn: at every step, or once per run
    node.VIEWS = 0  # augmented views cached of each image; 0: a fresh one in every epoch
    node.CACHE_LIMIT = 2.0  # GB; cached images beyond it lie in a file in OUTPUT_DIR, mapped to memory
    node.CACHE_ON_DEVICE = 0.0  # GB; cached images up to it stay on the GPU, which is spared a copy in each step
    node.BATCHES = "mixed"  # or single_class: every batch from one class if shots suffice, as in the released code
    node.IMAGE_LR = 0.0  # learning rate of the image tower; 0: OPTIM.LR
    node.TEMPLATE = ""  # prompt of all datasets, with {} for the class; "": that of TEMPLATES
    node.TEMPLATES = CfgNode(new_allowed=True)  # dataset: prompt; all others: "default"
    node.TEMPLATES.default = "a photo of a {}."
    node.PREC = "auto"  # amp on CUDA, on CPUs bf16 or fp32; parts/precision.py has the table
    node.COMPILE = False  # torch.compile: a minute of compiling for steps that were 5 % shorter on our CPU


@TRAINER_REGISTRY.register()
class SkipTuning(CLIPTrainer):
    limits = {
        "OMEGA": OR_NONE,
        "R": Limits(0, 1, above=True),
        "LAMBDA": POSITIVE,
        "MAX_TOP": OR_NONE,
        "CACHE_LIMIT": WEIGHT,
        "CACHE_ON_DEVICE": WEIGHT,
        "IMAGE_LR": WEIGHT,
    }
    choices = {
        "SCOPE": ("image", "batch"),
        "DECAY": ("paper", "official"),
        "RESAMPLE": ("step", "run"),
        "BATCHES": ("mixed", "single_class"),
    }
    fixed = ("OMEGA",)  # the cut decides which weights a checkpoint has
    model_name = "learnable_params"
    precisions = ("auto", "fp32", "bf16", "amp", "fp16_master", "fp16")
    cuda_precision = "amp"
    scaled = ("fp16_master",)
    fine_tunes_clip = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        name = type(self).__name__.upper()
        options = cfg.TRAINER[name]
        for prompt in (options.TEMPLATE, *options.TEMPLATES.values()):
            if prompt and (prompt.count("{}") != 1 or re.search(r"[{}]", prompt.replace("{}", ""))):
                raise UserError(
                    f"TRAINER.{name} has the prompt {prompt!r}: it needs one {{}} where the class name goes"
                )
        if options.PREC == "fp16" and cfg.OPTIM.NAME != "sgd":
            raise UserError(f"PREC fp16 is as released, with OPTIM.NAME sgd: {cfg.OPTIM.NAME} needs fp16_master")

    def build_model(self):
        """Both towers are cut at omega, t^omega is computed, and the cache of v^omega becomes the training loader.

        The cache fills when an epoch first needs a view, so an evaluation extracts nothing.
        """
        options = self.options
        clip_model = self.load_clip()

        # LSkip: the towers are cut at omega; what lies behind is learned (Eq. 6).
        try:
            self.deep = cut(clip_model, options.OMEGA).requires_grad_(True)
        except ValueError as error:
            raise UserError(f"TRAINER.{type(self).__name__.upper()}.OMEGA is {options.OMEGA}: {error}") from error
        self.set_precision(keep=() if self.precision == "fp16" else self.deep.parameters())
        image_lr = options.IMAGE_LR or self.cfg.OPTIM.LR
        groups = [
            {"params": list(self.deep["text_encoder"].parameters())},
            {"params": list(self.deep["image_encoder"].parameters()), "lr": image_lr},
        ]
        self.learn(self.deep, groups)
        self.encoders = dict(self.weights.running.items())
        if options.COMPILE:
            self.encoders = {name: torch.compile(encoder) for name, encoder in self.encoders.items()}

        # What lies before omega is constant (Eq. 5): t^omega is computed here, v^omega by the training loader.
        tokens = tokenize([self.template().format(name) for name in self.classnames])  # (C, 77)
        with self.autocast():
            self.t = shallow_text(clip_model, tokens, options.OMEGA)
        if self.train_loader_x is not None:
            self.train_loader_x = self.training_loader()

        # CSkip: the probability of each rank (Eq. 7), (C,).
        self.probability = keep_probability(
            len(self.classnames), options.R, options.LAMBDA, options.MAX_TOP, options.DECAY
        )
        self.generator = torch.Generator().manual_seed(max(self.cfg.SEED, 0))

    def training_loader(self) -> TrainingLoader:
        """The cache of v^omega; with omega 0 nothing runs before the cut, and the loader yields pixels."""
        options, seed = self.options, self.cfg.SEED
        single_class = options.BATCHES == "single_class"
        if not options.OMEGA:
            return TrainingLoader(self.train_loader_x, seed, single_class)
        return FeatureCache(
            self.train_loader_x,
            self.encode_shallow,
            options.VIEWS,
            seed,
            single_class,
            limit=options.CACHE_LIMIT * 1e9,
            folder=self.output_dir,
            on_device=options.CACHE_ON_DEVICE * 1e9,
            needed=self.needed,
        )

    def template(self) -> str:
        """The prompt: DATASET.TEMPLATE, else TEMPLATE, else that of TEMPLATES for the dataset."""
        name, templates = self.cfg.DATASET.NAME, self.options.TEMPLATES
        return self.cfg.DATASET.get("TEMPLATE") or self.options.TEMPLATE or templates.get(name, templates.default)

    def encode_shallow(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) -> v^omega (N, L, D), Eq. 5; no graph."""
        visual, omega = self.clip_model.visual, self.options.OMEGA

        def shallow(part):
            return shallow_image(visual, part, omega)

        # With omega 0 this is part of every step, and what embeds images is never offloaded.
        needed = self.offload.needed() if omega else nullcontext()
        with needed, self.autocast():
            return in_microbatches(shallow, image.to(self.device, non_blocking=True))

    def idle_parameters(self):
        """The skipped halves; without a cache only the token embedding, as images are embedded in every step."""
        if not self.options.OMEGA:
            return list(self.clip_model.token_embedding.parameters())
        learned = {id(p) for p in self.deep.parameters()}
        return [p for p in self.clip_model.parameters() if id(p) not in learned and p.dim()]

    def before_train(self):
        # CSkip ranks by the class features before fine-tuning (Sec. 2.3), so they are taken before a resumed run loads
        # its weights.
        self.zero_shot = F.normalize(self.class_features(), dim=-1)  # (C, E)
        super().before_train()
        self.untrained = sample(self.deep)

    # ---- training --------------------------------------------------------------------------------------------

    def parse_batch_train(self, batch):
        """v^omega (B, L, D) on the device, and labels (B,), which stay on the CPU."""
        v = batch["features"] if "features" in batch else self.encode_shallow(batch["img"])
        return v.to(self.device, non_blocking=True), batch["label"]

    def forward_backward(self, batch):
        v, labels = self.parse_batch_train(batch)
        image_features = F.normalize(self.deep_image(v), dim=-1)  # (B, E)

        kept, by_image = self.sample_classes(image_features.detach(), labels)  # CSkip
        labels = labels.to(self.device, non_blocking=True)
        t = self.t
        if kept is not None:
            t, labels = t.select(kept), torch.searchsorted(kept, labels)

        class_features = F.normalize(self.deep_text(t), dim=-1)  # (K, E)
        logits = self.scale * image_features @ class_features.t()  # (B, K)
        loss = masked_cross_entropy(logits, labels, by_image)
        return self.finish_step({"loss": loss}, logits, labels) | {"classes": logits.shape[1]}

    def deep_image(self, v: Tensor) -> Tensor:
        """v^omega (B, L, D) -> image features (B, E), fp32, not normalised; Eq. 6."""
        with self.autocast():
            return self.encoders["image_encoder"](v).float()

    def deep_text(self, t) -> Tensor:
        """t^omega of C classes -> class features (C, E), fp32, not normalised; Eq. 6."""
        with self.autocast():
            return self.encoders["text_encoder"](t).float()

    def sample_classes(self, image_features: Tensor, labels: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """CSkip: unit image features (B, E), labels (B,) -> the classes in the loss (K,), None for all, and who keeps
        which, bool (B, K), None if all images keep the same."""
        if self.probability.min() == 1:
            return None, None
        generator = self.generator
        if self.options.RESAMPLE == "run":
            generator = torch.Generator().manual_seed(max(self.cfg.SEED, 0))  # the same draws at every step
        scores = image_features @ self.zero_shot.t()  # (B, C)
        return sample_classes(scores, labels, self.probability, generator, self.options.SCOPE)

    def end_epoch(self):
        if self.epoch == 0:
            print(f"Trained weights moved in the first epoch: {moved_share(self.deep, self.untrained):.2%}")

    def extra_state(self):
        return {"generator": self.generator.get_state()}

    def load_extra_state(self, state):
        self.generator.set_state(state["generator"])

    # ---- test: an ordinary CLIP forward ----------------------------------------------------------------------

    @torch.no_grad()
    def class_features(self):
        return self.deep_text(self.t)

    def image_features(self, image):
        return self.deep_image(self.encode_shallow(image))

    def tuned_clip(self) -> nn.Module:
        """A copy of the whole CLIP with the current weights, fp32, on the CPU."""
        return self.clip_copy()
