"""What all methods share that leave CLIP's own weights as they are and learn something beside them.

A method is one file with one subclass of ClipTrainer, which writes at most five things: `build` (what learns),
`classes` (class features), `image_features`, `logits` and `loss`. Features are fp32 and not normalised until `logits`.

Savings that change no number are on for every method: texts are encoded once per evaluation; where the image tower has
nothing to learn (`frozen_images`), training runs on the features of each epoch's views, extracted in large batches, and
views that no random transform changes are extracted only once; what no training step runs through leaves the memory.
prompts.py has the savings inside the towers.

Notation: B images, C classes, E joint width.
"""

from contextlib import nullcontext
from functools import cached_property

import torch
import torch.nn.functional as F

from dassl.config import Config
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError

from .family import load_clip
from .lskip import LayerCache, Shelf, in_chunks
from .precision import HALF, autocast, halve
from .prompts import embed, encode_image, encode_text, ensemble, template

MODEL = "learned"  # the name under which the engine registers, saves and loads what is learned
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "amp")
NOT_RANDOM = {"normalize", "center_crop"}


def add_options(cfg, trainer):
    """TRAINER.<NAME> with the options that every subclass of ClipTrainer has, to which it adds its own."""
    node = cfg.TRAINER[trainer.__name__.upper()] = Config()
    node.PREC = "auto"  # of the frozen CLIP: fp16 on CUDA, fp32 on the CPU; or bf16, amp. What learns is fp32
    if trainer.frozen_images:
        node.VIEWS = 0  # augmented views of each image whose features are cached; 0: fresh ones in every epoch
    return node


class ClipTrainer(TrainerX):
    frozen_images = True  # nothing in or before the image tower learns: `loss` gets features instead of pixels
    frozen_texts = False  # nothing in or before the text tower learns: `classes` is what `build` has computed
    per_step = False  # the learning rate follows steps instead of epochs

    @cached_property
    def options(self):
        return self.cfg.TRAINER[type(self).__name__.upper()]

    def check_cfg(self, cfg):
        name = type(self).__name__.upper()
        if cfg.TRAINER[name].PREC not in PRECISIONS:
            raise UserError(f"TRAINER.{name}.PREC is {cfg.TRAINER[name].PREC!r}: choose one of {', '.join(PRECISIONS)}")

    # What a method says of itself

    def build(self):
        """The module that learns, in fp32 on any device; None if nothing does. `clip_model` and `names` are there."""
        raise NotImplementedError

    def classes(self):
        """Class features (C, E), with a graph where something learns; computed once per evaluation."""
        raise NotImplementedError

    def image_features(self, image):
        """image (B, 3, H, W) -> features (B, E)."""
        return self.encode_image(image)

    def logits(self, features, classes):
        """Image features (B, E) and what `classes` gave -> (B, C)."""
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(classes, dim=-1).t()

    def loss(self, image, label):
        """-> logits (B, C) and the named terms of the loss, whose sum is minimised.

        image: the frozen tower's features (B, E), or pixels (B, 3, H, W) without `frozen_images`; label (B,).
        """
        features = image if self.frozen_images else self.image_features(image)
        logits = self.logits(features, self.classes())
        return logits, {"ce": F.cross_entropy(logits, label)}

    def parameter_groups(self):
        """What the optimizer gets: parameters, or groups of them with options of their own."""
        return self.learned.parameters()

    def resting(self):
        """The modules that no training step runs through; texts are embedded before."""
        model = self.clip_model
        towers = (model.visual, self.frozen_images), (model.transformer, self.frozen_texts)
        return [model.token_embedding, *(tower for tower, frozen in towers if frozen)]

    def update(self, terms):
        """Backward pass and step. With a scaled loss, a step whose gradients overflow is left out."""
        self.model_zero_grad()
        self.scaler.scale(sum(terms.values())).backward()
        self.scaler.step(self.optim)
        self.scaler.update()

    # What methods build on

    @property
    def scale(self):
        return self.clip_model.logit_scale.exp().float()

    def encode_image(self, image, prompts=None):
        """image (B, 3, H, W) -> (B, E); `prompts` as in prompts.py."""
        with self.autocast():
            return encode_image(self.clip_model.visual, image, prompts or {}).float()

    def encode_text(self, texts, prompts=None, positions=None):
        """Embedded texts -> (C, E); all three as in prompts.py."""
        with self.autocast():
            return encode_text(self.clip_model, texts, prompts or {}, positions).float()

    @torch.no_grad()
    def prompted(self, prompt):
        """Frozen CLIP's features (C, E) of a hand-written prompt with {} for the class."""
        return self.encode_text(embed(self.clip_model, [prompt.format(name) for name in self.names]))

    def hand_written(self, use="zero_shot"):
        """Those (C, E) of the prompt that configs/templates.yaml has for `use`."""
        return self.prompted(template(self.cfg.DATASET, use))

    def ensemble_features(self):
        """The mean (C, E) of those of all prompts of the table's ensemble."""
        with self.shelf:
            return sum(map(self.prompted, ensemble())) / len(ensemble())

    def autocast(self):
        return autocast(self.precision, self.device)

    # The engine's side

    def build_model(self):
        self.clip_model = load_clip(self.cfg).to(self.device).requires_grad_(False)
        self.names = [name.replace("_", " ") for name in self.dm.dataset.classnames]
        self.set_precision()
        self.shelf = nullcontext()  # where what rests lies during training
        self.learned = self.build()
        if self.learned is not None:
            self.register()

    def set_precision(self):
        self.precision = self.options.PREC
        if self.precision == "auto":
            self.precision = "fp16" if self.device.type == "cuda" else "fp32"
        print(f"Precision: {self.precision}")
        if self.precision in HALF:
            halve(self.clip_model, HALF[self.precision])
        scaled = self.precision == "fp16" or (self.precision == "amp" and self.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    def register(self):
        self.learned.to(self.device)
        optim_cfg = self.cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.MAX_EPOCH = self.max_epoch * (len(self.train_loader_x) if self.per_step else 1)
        self.optim = build_optimizer(self.parameter_groups(), optim_cfg)
        self.sched = build_lr_scheduler(self.optim, optim_cfg)
        self.register_model(MODEL, self.learned, self.optim, self.sched)
        learned = sum(p.numel() for p in self.learned.parameters())
        print(f"Learned parameters: {learned:,} beside {sum(p.numel() for p in self.clip_model.parameters()):,}")

    def before_train(self):
        super().before_train()
        if not self._models:
            return
        self.shelf = Shelf([p for module in self.resting() for p in module.parameters()], self.output_dir)
        if self.frozen_images:
            views = 1 if set(self.cfg.INPUT.TRANSFORMS) <= NOT_RANDOM else self.options.VIEWS
            self.train_loader_x = LayerCache(self.train_loader_x, self.frozen_features, views, self.cfg.SEED)

    def before_epoch(self):
        super().before_epoch()
        if self.frozen_images:
            last = self.epoch + 1 == self.max_epoch
            self.extract_seconds += self.train_loader_x.start_epoch(self.epoch, last=last)

    @torch.no_grad()
    def frozen_features(self, image):
        """image (N, 3, H, W) -> (N, E) by CLIP alone."""
        with self.shelf:
            return in_chunks(self.encode_image, image.to(self.device))

    def forward_backward(self, batch):
        image = batch["img"].to(self.device, non_blocking=True)
        label = batch["label"].to(self.device, non_blocking=True)
        logits, terms = self.loss(image, label)
        last = self.batch_idx + 1 == self.num_batches
        if last or self.device.type == "cpu":  # asking a GPU means waiting for it, and what is not finite stays so
            self.detect_anomaly(sum(terms.values()))
        self.update(terms)
        if last or self.per_step:
            self.update_lr()
        summary = {name: term.detach() for name, term in terms.items()}
        return {"loss": sum(summary.values()), **summary, "acc": compute_accuracy(logits.detach(), label)[0]}

    def after_train(self):
        self.shelf.__enter__()  # for good
        super().after_train()

    @torch.no_grad()
    def test(self, *args, **kwargs):
        self.set_model_mode("eval")
        self.tested_classes = self.classes()
        with self.shelf:
            return super().test(*args, **kwargs)

    def model_inference(self, image):
        """image (B, 3, H, W) -> logits (B, C)."""
        return self.logits(in_chunks(self.image_features, image), self.tested_classes)
