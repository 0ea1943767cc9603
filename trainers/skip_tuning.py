"""Skip Tuning: Pre-trained Vision-Language Models are Effective and Efficient Adapters Themselves (CVPR 2025).

The deep layers of both CLIP towers are fine-tuned with plain cross-entropy, made cheap by LSkip (lskip.py: the first
omega blocks run once) and CSkip (cskip.py: only the classes that matter enter the loss). No parameter is added.

This file, lskip.py, cskip.py, precision.py and family.py need torch, Dassl and OpenAI's `clip` and nothing else; any
Dassl and any fork's `clip` will do (swap_in.py).
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

from .cskip import keep_probability, masked_cross_entropy, sample_classes
from .family import FamilyTrainer, UserError, load_clip, tokenize
from .lskip import DeepImage, DeepText, LayerCache, Shelf, in_chunks, shallow_image, shallow_text
from .precision import HALF, PRECISIONS, Learner, autocast, halve, moved_share, sample

MODEL = "learnable_params"  # the name under which Dassl registers, saves and loads what is learned

CHOICES = {
    "SCOPE": ("image", "batch"),
    "DECAY": ("paper", "official"),
    "RESAMPLE": ("step", "run"),
    "BATCHES": ("mixed", "single_class"),
    "PREC": PRECISIONS,
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
    node.RESAMPLE = "step"  # when the kept ranks are drawn: at every step, or once per run
    node.VIEWS = 0  # augmented views cached of each image; 0: a fresh one in every epoch
    node.CACHE_LIMIT = 4.0  # GB; cached images beyond it lie in a file in OUTPUT_DIR, mapped to memory
    node.BATCHES = "mixed"  # or single_class: every batch from one class if shots suffice, as in the released code
    node.IMAGE_LR = 0.0  # learning rate of the image tower; 0: OPTIM.LR
    node.TEMPLATE = "a photo of a {}."  # prompt, with {} for the class
    node.TEMPLATES = CfgNode(new_allowed=True)  # data set: prompt, where it is another
    node.EPOCHS = CfgNode(new_allowed=True)  # data set: epochs, where they are not OPTIM.MAX_EPOCH
    node.PREC = "auto"  # amp on CUDA, fp32 on the CPU; precision.py has the table
    node.COMPILE = False  # torch.compile: a minute of compiling for steps that were 5 % shorter on our CPU


@TRAINER_REGISTRY.register()
class SkipTuning(FamilyTrainer):
    @property
    def options(self):
        return self.cfg.TRAINER.SKIPTUNING

    def check_cfg(self, cfg):
        options = cfg.TRAINER.SKIPTUNING
        for key, allowed in CHOICES.items():
            if options[key] not in allowed:
                raise UserError(f"TRAINER.SKIPTUNING.{key} is {options[key]!r}: choose one of {', '.join(allowed)}")
        for key in ("R", "LAMBDA"):
            if not options[key] > 0:
                raise UserError(f"TRAINER.SKIPTUNING.{key} is {options[key]}: it must be above 0")
        for name, epochs in options.EPOCHS.items():
            if not (isinstance(epochs, int) and epochs > 0):
                raise UserError(f"TRAINER.SKIPTUNING.EPOCHS.{name} is {epochs!r}: it must be a whole number from 1")
        if options.PREC == "fp16" and cfg.OPTIM.NAME != "sgd":
            raise UserError(f"PREC fp16 is as released, with OPTIM.NAME sgd: {cfg.OPTIM.NAME} needs fp16_master")

    def build_model(self):
        cfg, options = self.cfg, self.options
        clip_model = load_clip(cfg)
        self.check_omega(clip_model)
        self.clip_model = clip_model.to(self.device).requires_grad_(False)
        deep = {
            "text_encoder": DeepText(clip_model, options.OMEGA),
            "image_encoder": DeepImage(clip_model.visual, options.OMEGA),
        }
        self.deep = nn.ModuleDict(deep).requires_grad_(True)
        self.set_precision()

        # LSkip: the towers are cut at omega; what lies before is constant, t^omega is computed here once (Eq. 5).
        prompts = [self.template().format(name.replace("_", " ")) for name in self.dm.dataset.classnames]
        tokens = tokenize(prompts).to(self.device)  # (C, 77)
        with self.autocast():
            self.t = shallow_text(clip_model, tokens, options.OMEGA)
        self.shelf = nullcontext()  # where the skipped halves lie during training
        self.extract_seconds = 0.0

        optim_cfg = cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.MAX_EPOCH = self.max_epoch = options.EPOCHS.get(cfg.DATASET.NAME, cfg.OPTIM.MAX_EPOCH)
        groups = [
            {"params": list(self.deep["text_encoder"].parameters())},
            {"params": list(self.deep["image_encoder"].parameters()), "lr": options.IMAGE_LR or cfg.OPTIM.LR},
        ]
        self.optim = build_optimizer(groups, optim_cfg)
        self.sched = build_lr_scheduler(self.optim, optim_cfg)
        self.register_model(MODEL, self.deep, self.optim, self.sched)
        self.learner = Learner(self.deep, self.optim, self.precision, self.device)
        compiled = torch.compile if options.COMPILE else lambda part: part
        self.encoders = {name: compiled(part) for name, part in self.learner.running.items()}
        learned = sum(p.numel() for p in self.deep.parameters())
        print(f"Learned parameters: {learned:,} of {sum(p.numel() for p in clip_model.parameters()):,}")

    def check_omega(self, clip_model):
        omega, depth = self.options.OMEGA, min(clip_model.transformer.layers, clip_model.visual.transformer.layers)
        if not 0 <= omega <= depth:
            raise UserError(f"TRAINER.SKIPTUNING.OMEGA is {omega}: this backbone's towers can skip 0 to {depth}")

    def template(self):
        """The data set's own prompt if DATASET.TEMPLATE or TEMPLATES give one, else TEMPLATE."""
        name = self.cfg.DATASET.NAME
        return self.cfg.DATASET.get("TEMPLATE") or self.options.TEMPLATES.get(name, self.options.TEMPLATE)

    def set_precision(self):
        self.precision = self.options.PREC
        if self.precision == "auto":
            self.precision = "amp" if self.device.type == "cuda" else "fp32"
        print(f"Precision: {self.precision}")
        if self.precision in HALF:
            weights = () if self.precision == "fp16" else self.deep.parameters()
            halve(self.clip_model, HALF[self.precision], but=weights)

    def autocast(self):
        return autocast(self.precision, self.device)

    @property
    def scaler(self):
        """The gradients' scaler, under the name by which Dassl's family knows it; None where none is needed."""
        return self.learner.scaler

    # LSkip

    def encode_shallow(self, image):
        """image (N, 3, H, W) -> v^omega (N, L, D), Eq. 5."""
        visual, omega = self.clip_model.visual, self.options.OMEGA
        with self.shelf, self.autocast():
            return in_chunks(lambda part: shallow_image(visual, part, omega), image.to(self.device))

    def before_train(self):
        # CSkip ranks by the class features before fine-tuning (Sec. 2.3): taken before a resumed run loads its weights.
        self.zero_shot = self.class_features()  # (C, E)
        options = self.options
        self.probability = keep_probability(
            len(self.zero_shot), options.R, options.LAMBDA, options.MAX_TOP, options.DECAY
        )  # (C,), by rank
        self.generator = torch.Generator().manual_seed(self.cfg.SEED)
        super().before_train()
        self.learner.follow()
        self.untrained = sample(self.deep)
        self.skip_layers()

    def skip_layers(self):
        """From here on the training loader yields cached v^omega instead of pixels, and the skipped halves rest."""
        learned = {id(p) for p in self.deep.parameters()}
        skipped = [p for p in self.clip_model.parameters() if id(p) not in learned and p.dim()]
        self.shelf = Shelf(skipped, self.output_dir)
        options = self.options
        self.train_loader_x = LayerCache(
            self.train_loader_x,
            self.encode_shallow,
            options.VIEWS,
            self.cfg.SEED,
            single_class=options.BATCHES == "single_class",
            limit=options.CACHE_LIMIT * 1e9,
            folder=self.output_dir,
        )

    def before_epoch(self):
        super().before_epoch()
        self.extract_seconds += self.train_loader_x.start_epoch(self.epoch, last=self.epoch + 1 == self.max_epoch)

    def after_epoch(self):
        if self.epoch == 0:
            print(f"Trained weights moved in the first epoch: {moved_share(self.deep, self.untrained):.2%}")
        super().after_epoch()

    def after_train(self):
        self.shelf.__enter__()  # for good
        super().after_train()

    # Training

    def parse_batch_train(self, batch):
        """-> v^omega (B, L, D), labels (B,), which stay on the CPU."""
        return batch["img"].to(self.device, non_blocking=True), batch["label"]

    def forward_backward(self, batch):
        v, labels = self.parse_batch_train(batch)
        with self.autocast():
            image_features = self.encoders["image_encoder"](v)
        image_features = F.normalize(image_features.float(), dim=-1)  # (B, E)
        classes, kept = self.sample_classes(image_features.detach(), labels)
        labels = labels.to(self.device, non_blocking=True)
        t = self.t
        if classes is not None:
            t, labels = t.select(classes), torch.searchsorted(classes, labels)
        with self.autocast():
            text_features = self.encoders["text_encoder"](t)
        text_features = F.normalize(text_features.float(), dim=-1)  # (K, E)
        logits = self.scale * image_features @ text_features.t()  # (B, K)
        loss = masked_cross_entropy(logits, labels, kept)
        last = self.batch_idx + 1 == self.num_batches
        if last or self.device.type == "cpu":  # asking a GPU means waiting for it, and what is not finite stays so
            self.detect_anomaly(loss)
        self.learner.update(loss)
        if last:
            self.update_lr()
        return {"loss": loss.detach(), "acc": compute_accuracy(logits.detach(), labels)[0], "classes": logits.shape[1]}

    def sample_classes(self, image_features, labels):
        """CSkip: image features (B, E), labels (B,) -> the classes in the loss (K,), None for all, and who keeps which
        (B, K), None if all images keep the same."""
        if self.probability.min() == 1:
            return None, None
        generator = self.generator
        if self.options.RESAMPLE == "run":
            generator = torch.Generator().manual_seed(self.cfg.SEED)  # the same draws at every step
        scores = image_features @ self.zero_shot.t()  # (B, C)
        return sample_classes(scores, labels, self.probability, generator, self.options.SCOPE)

    def extra_state(self):
        return {"generator": self.generator.get_state()}

    def load_extra_state(self, state):
        self.generator.set_state(state["generator"])

    def fixed_options(self):
        return {"TRAINER.SKIPTUNING.OMEGA": self.options.OMEGA}

    # Test: an ordinary CLIP forward, the classes encoded once per evaluation.

    @property
    def scale(self):
        return self.clip_model.logit_scale.exp().float()

    @torch.no_grad()
    def class_features(self):
        """Unit features of all classes by the current weights: (C, E)."""
        with self.autocast():
            features = self.encoders["text_encoder"](self.t)
        return F.normalize(features.float(), dim=-1)

    def test(self, *args, **kwargs):
        self.learner.follow()  # after load_model() too
        self.text_features = self.class_features()
        with self.shelf:
            return super().test(*args, **kwargs)

    def model_inference(self, image):
        """image (N, 3, H, W) -> logits (N, C)."""
        with self.autocast():
            features = in_chunks(lambda part: self.encoders["image_encoder"](self.encode_shallow(part)), image)
        return self.scale * F.normalize(features.float(), dim=-1) @ self.text_features.t()
