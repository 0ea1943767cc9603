"""Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient Adapters Themselves (CVPR 2025).

The deep layers of both CLIP towers are fine-tuned with plain cross-entropy, made cheap by LSkip (lskip.py: the first
omega blocks run once) and CSkip (cskip.py: only the classes that matter enter an image's loss). No parameter is added.

This file, lskip.py and cskip.py need torch, Dassl and OpenAI's `clip` and nothing else.
"""

import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

from clip import clip
from clip.model import convert_weights
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

from .cskip import keep_classes, keep_probability, masked_cross_entropy
from .lskip import DeepImage, DeepText, LayerCache, UserError, shallow_image, shallow_text

MODEL = "learnable_params"  # the name under which Dassl registers, saves and loads what is learned

# The released code's prompts; data sets without one use the paper's.
PAPER_TEMPLATE = "a photo of a {}."
TEMPLATES = {
    "ImageNetSketch": "a sketch of a {}.",
    "ImageNetA": "a bad photo of a {}.",
    "ImageNetR": "a rendition of a {}.",
    "Caltech101": "itap of a {}.",
    "OxfordPets": "a bad photo of a {}, a type of pet.",
    "StanfordCars": "a photo of the {}, a type of car.",
    "OxfordFlowers": "a close-up photo of a {}.",
    "Food101": "a photo of the nice {}.",
    "FGVCAircraft": "a bright photo of a {}, a type of aircraft.",
    "DescribableTextures": "itap of a {}.",
    "EuroSAT": "a centered satellite photo of {}.",
    "UCF101": "a photo of a {}, a type of sport.",
    "Emoji": "an emoji of a {}.",
}

CHOICES = {
    "SCOPE": ("image", "batch"),
    "DECAY": ("paper", "official"),
    "RESAMPLE": ("step", "run"),
    "BATCHES": ("mixed", "single_class"),
    "PREC": ("auto", "fp32", "bf16", "fp16", "amp"),
}


def extend_cfg(cfg):
    """The options of TRAINER.SKIPTUNING, with the values that the paper gives them."""
    node = cfg.TRAINER.SKIPTUNING = CfgNode()
    node.OMEGA = 6  # blocks of each tower that are run once and cached (LSkip)
    node.R = 0.5  # share of the classes kept for sure (CSkip); 1.0 keeps all
    node.LAMBDA = 0.3  # decay of the others' probability
    node.MAX_TOP = 0  # cap on the number kept for sure; 0: none
    node.SCOPE = "image"  # whose similarity ranks the classes: each image's, or the batch's best
    node.DECAY = "paper"  # cskip.py explains the two
    node.RESAMPLE = "step"  # when the sampled ranks are drawn: at every step, or once per run
    node.VIEWS = 0  # augmented views cached of each image; 0: a fresh one in every epoch
    node.BATCHES = "mixed"  # or single_class: every batch from one class, as in the released code
    node.IMAGE_LR = 0.0  # learning rate of the image tower; 0: OPTIM.LR
    node.TEMPLATE = ""  # prompt with {} for the class; "": the data set's own (TEMPLATES above)
    node.PREC = "auto"  # fp32 on the CPU, amp on CUDA; bf16: autocast; fp16: half weights, as released


@TRAINER_REGISTRY.register()
class SkipTuning(TrainerX):
    @property
    def options(self):
        return self.cfg.TRAINER.SKIPTUNING

    def check_cfg(self, cfg):
        for key, allowed in CHOICES.items():
            value = cfg.TRAINER.SKIPTUNING[key]
            if value not in allowed:
                raise UserError(f"TRAINER.SKIPTUNING.{key} is {value!r}: choose one of {', '.join(allowed)}")

    def build_model(self):
        cfg, options = self.cfg, self.options
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model, _ = clip.load(cfg.MODEL.BACKBONE.NAME, device="cpu")
        self.check_backbone(clip_model)
        self.set_precision(clip_model)
        self.clip_model = clip_model.to(self.device).requires_grad_(False)

        # LSkip: the towers are cut at omega; what lies before is constant, t^omega is computed here once (Eq. 5).
        deep = {
            "text_encoder": DeepText(clip_model, options.OMEGA),
            "image_encoder": DeepImage(clip_model.visual, options.OMEGA),
        }
        self.deep = nn.ModuleDict(deep).requires_grad_(True)
        template = options.TEMPLATE or TEMPLATES.get(cfg.DATASET.NAME, PAPER_TEMPLATE)
        prompts = [template.format(name.replace("_", " ")) for name in self.dm.dataset.classnames]
        tokens = clip.tokenize(prompts).to(self.device)  # (C, 77)
        self.end = tokens.argmax(dim=-1)  # (C,), positions of the end-of-text tokens
        self.t = shallow_text(clip_model, tokens, options.OMEGA)  # (C, L, D)
        self.extract_seconds = 0.0

        image_lr = options.IMAGE_LR or cfg.OPTIM.LR
        groups = [
            {"params": list(self.deep["text_encoder"].parameters())},
            {"params": list(self.deep["image_encoder"].parameters()), "lr": image_lr},
        ]
        self.optim = build_optimizer(groups, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(MODEL, self.deep, self.optim, self.sched)
        learned = sum(p.numel() for p in self.deep.parameters())
        print(f"Learned parameters: {learned:,} of {sum(p.numel() for p in clip_model.parameters()):,}")

    def check_backbone(self, clip_model):
        visual, omega = clip_model.visual, self.options.OMEGA
        depth = min(clip_model.transformer.layers, visual.transformer.layers)
        if not 0 <= omega < depth:
            raise UserError(f"TRAINER.SKIPTUNING.OMEGA is {omega}: this backbone's towers can skip 0 to {depth - 1}")
        size, needed = tuple(self.cfg.INPUT.SIZE), (visual.input_resolution,) * 2
        if size != needed:
            raise UserError(f"INPUT.SIZE is {size}: {self.cfg.MODEL.BACKBONE.NAME} needs INPUT.SIZE {needed}")

    def set_precision(self, clip_model):
        """Weights' dtype, autocast dtype and loss scale, once for the whole run."""
        on_cuda = self.device.type == "cuda"
        precision = self.options.PREC
        if precision == "auto":
            precision = "amp" if on_cuda else "fp32"
        if precision != "fp16":
            clip_model.float()
        else:
            convert_weights(clip_model)
        half = torch.float16 if on_cuda else torch.bfloat16
        self.autocast_dtype = {"amp": half, "bf16": torch.bfloat16}.get(precision)
        scaled = precision == "fp16" or self.autocast_dtype == torch.float16
        self.loss_scale = 2.0**14 if scaled else 1.0  # halved whenever a gradient overflows
        print(f"Precision: {precision}, loss scale {self.loss_scale:g}")

    def autocast(self):
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    # LSkip

    def encode_shallow(self, image):
        """image (N, 3, H, W) -> v^omega (N, L, D), Eq. 5."""
        with self.autocast():
            return shallow_image(self.clip_model.visual, image.to(self.device), self.options.OMEGA)

    def before_train(self):
        # CSkip ranks by the class features before fine-tuning (Sec. 2.3): taken before a resumed run loads its weights.
        self.zero_shot = self.class_features()  # (C, E)
        options, number = self.options, len(self.zero_shot)
        probability = keep_probability(number, options.R, options.LAMBDA, options.MAX_TOP, options.DECAY)
        self.probability = probability.to(self.device)  # (C,), by rank
        self.draws = None  # or (C,), the run's one draw for each rank
        if options.RESAMPLE == "run":
            self.draws = torch.rand(number, generator=torch.Generator().manual_seed(self.cfg.SEED)).to(self.device)
        super().before_train()
        self.skip_layers()

    def skip_layers(self):
        """From here on the training loader yields cached v^omega instead of pixels."""
        views, single_class = self.options.VIEWS, self.options.BATCHES == "single_class"
        self.train_loader_x = LayerCache(self.train_loader_x, self.encode_shallow, views, self.cfg.SEED, single_class)

    def before_epoch(self):
        super().before_epoch()
        self.extract_seconds += self.train_loader_x.start_epoch(self.epoch)

    # Training

    def parse_batch_train(self, batch):
        """-> v^omega (B, L, D), labels (B,)."""
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def forward_backward(self, batch):
        v, labels = self.parse_batch_train(batch)
        with self.autocast():
            image_features = F.normalize(self.deep["image_encoder"](v).float(), dim=-1)  # (B, E)
        kept = self.sample_classes(image_features.detach(), labels)  # (B, C)
        classes = kept.any(dim=0).nonzero()[:, 0]  # (K,), sorted: the union of the batch
        with self.autocast():
            text = self.deep["text_encoder"](self.t[classes], self.end[classes])
        text_features = F.normalize(text.float(), dim=-1)  # (K, E)
        logits = self.scale * image_features @ text_features.t()  # (B, K)
        labels = torch.searchsorted(classes, labels)
        loss = masked_cross_entropy(logits, labels, kept[:, classes])
        self.update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}

    def sample_classes(self, image_features, labels):
        """CSkip: image features (B, E), labels (B,) -> bool (B, C), the classes in each image's loss."""
        scores = image_features @ self.zero_shot.t()  # (B, C)
        return keep_classes(scores, labels, self.probability, self.options.SCOPE, self.draws)

    def update(self, loss):
        """Backward and step. With a loss scale, a step whose gradients overflow is left out and the scale halved."""
        if self.loss_scale == 1:
            self.model_backward_and_update(loss)
            return
        self.model_zero_grad()
        self.detect_anomaly(loss)
        (loss * self.loss_scale).backward()
        gradients = [p.grad for p in self.deep.parameters() if p.grad is not None]
        if all(g.isfinite().all() for g in gradients):
            torch._foreach_div_(gradients, self.loss_scale)
            self.model_update()
        else:
            self.loss_scale /= 2

    def extra_state(self):
        return {"loss_scale": self.loss_scale}

    def fixed_options(self):
        return {"TRAINER.SKIPTUNING.OMEGA": self.options.OMEGA}

    def load_extra_state(self, state):
        self.loss_scale = state["loss_scale"]

    # Test: an ordinary CLIP forward, the classes encoded once per evaluation.

    @property
    def scale(self):
        return self.clip_model.logit_scale.exp().float()

    @torch.no_grad()
    def class_features(self):
        """Unit features of all classes by the current weights: (C, E)."""
        with self.autocast():
            return F.normalize(self.deep["text_encoder"](self.t, self.end).float(), dim=-1)

    def test(self, *args, **kwargs):
        self.text_features = self.class_features()
        return super().test(*args, **kwargs)

    def model_inference(self, image):
        """image (N, 3, H, W) -> logits (N, C)."""
        with self.autocast():
            features = self.deep["image_encoder"](self.encode_shallow(image))
        return self.scale * F.normalize(features.float(), dim=-1) @ self.text_features.t()
