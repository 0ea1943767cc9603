"""CLIPTrainer, the base of all methods: precision, optimizer, offload and cache around an epoch, class features once
per test.

What a method writes:

    always      build_model         `load_clip`, `set_precision`, then what learns: `learn`, and the training loader
                class_features      class features (C, E), with a graph where something learns
                forward_backward    one step, which ends in `finish_step`
    sometimes   tuned_clip          a plain CLIP with what it has learned, where that is possible; export.py writes it
                left_out            what a test of some classes needs beside that
                image_features      of images (B, 3, H, W); CLIP's own if nothing in or before that tower learns
                compare             image and class features -> logits
                idle_parameters     what no training step runs through, which is offloaded meanwhile
                prepare             what is computed once before the first step
                end_epoch           what happens between the last step of an epoch and its checkpoint
                parse_batch_train   another batch than {"img" or "features", "label"}
                update              another step than backward pass and optimizer
                schedule            another schedule of the learning rate
    flags       limits              what the numbers among its options may be
                choices             what other options may be
                fixed               options that must be the same wherever the checkpoints are loaded
                model_name          name of the folder of checkpoints
                precisions          choices of PREC; `cuda_precision` is what "auto" means on a GPU
                scaled              choices of PREC with a scaled loss
                per_step            the learning rate follows steps instead of epochs
                fine_tunes_clip     what learns is part of CLIP, so PREC holds for it too
                views_in_batch      augmented views of an image in a batch

What a step asks of the host, on a GPU: nothing. Draws are made on the CPU and copied without waiting; only Skip Tuning
in scope image asks for the number of kept classes (parts/cskip.py), and a scaled loss under an optimizer that is not
fused whether its gradients overflowed. The last step of an epoch asks whether the loss is finite, and a progress line
for the numbers in it. An extraction waits for its features once for EXTRACTION_BATCH images, a test at its end.

Notation: B images, C classes, E joint width.
"""

import copy
import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

from .cache import FeatureCache
from .compat import OUR_DASSL, UserError, load_clip, load_from_fork
from .offload import Offload
from .precision import (
    HALF,
    MasterWeights,
    autocast,
    can_step_in_backward,
    cpu_precision,
    halve,
    step_in_backward,
    update,
)
from .towers import in_microbatches


class Limits(NamedTuple):
    """What a number may be: from `low` to `high`, or above `low`; whole if both its limits are."""

    low: float
    high: float = math.inf
    above: bool = False  # `low` itself is not allowed
    whole: bool = False

    def hold(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        start = f"{kind} {'above' if self.above else 'from'} {self.low:g}"
        return start if self.high == math.inf else f"{start} to {self.high:g}"


COUNT = Limits(1, whole=True)
OR_NONE = Limits(0, whole=True)  # 0 stands for none, or for all
WEIGHT = Limits(0)
SHARE = Limits(0, 1)
POSITIVE = Limits(0, above=True)


class CLIPTrainer(TrainerX):
    limits = {}  # option: Limits
    choices = {}  # option: what it may be
    fixed = ()  # names of options
    model_name = "learned"
    precisions = ("auto", "fp32", "bf16", "fp16", "amp")
    cuda_precision = "fp16"
    scaled = ("fp16",)
    per_step = False
    fine_tunes_clip = False
    views_in_batch = 1

    @property
    def options(self):
        """This method's own node of options, TRAINER.<NAME>."""
        return self.cfg.TRAINER[type(self).__name__.upper()]

    def check_cfg(self, cfg):
        node = type(self).__name__.upper()
        options = cfg.TRAINER[node]
        for key, allowed in {"PREC": self.precisions, **self.choices}.items():
            if options[key] not in allowed:
                raise UserError(f"TRAINER.{node}.{key} is {options[key]!r}: choose one of {', '.join(allowed)}")
        shared = {"VIEWS": OR_NONE} if "VIEWS" in options else {}
        for key, limits in {**shared, **self.limits}.items():
            if not limits.hold(options[key]):
                raise UserError(f"TRAINER.{node}.{key} is {options[key]!r}: it must be {limits}")
        name, views = type(self).__name__, cfg.DATALOADER.get("K_TRANSFORMS", 1)
        if views != self.views_in_batch:
            needed = "1 view" if self.views_in_batch == 1 else f"{self.views_in_batch} views"
            raise UserError(f"DATALOADER.K_TRANSFORMS is {views}: {name} needs {needed} of an image")
        for key in ("INPUT.NO_TRANSFORM", "OPTIM.STAGED_LR"):
            group, option = key.split(".")
            if cfg[group].get(option):
                raise UserError(f"{key} is True, which {name} can't do: leave it out")
        if cfg.MODEL.get("INIT_WEIGHTS"):
            raise UserError(f"MODEL.INIT_WEIGHTS is set, but {name} starts from CLIP alone: leave it out")
        sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
        if sampler != "RandomSampler":
            raise UserError(f"DATALOADER.TRAIN_X.SAMPLER is {sampler}: leave it out, batches are drawn here")

    # ---- building --------------------------------------------------------------------------------------------

    def load_clip(self) -> nn.Module:
        """CLIP, frozen, on the device: `self.clip_model`. Sets `classnames`, `precision` and `offload`, too."""
        self.clip_model = load_clip(self.cfg).to(self.device).requires_grad_(False)
        self.set_up()
        return self.clip_model

    def set_up(self) -> None:
        """What every method needs beside `clip_model`."""
        self.classnames = [name.replace("_", " ") for name in self.dm.dataset.classnames]
        self.precision, self.chosen = self.options.PREC, ""
        if self.precision == "auto":
            self.precision, why = self.automatic_precision()
            self.chosen = f" ({why})"
        self.offload = Offload([], self.output_dir)  # nothing yet
        self.extract_seconds = 0.0
        self.learned = None

    def automatic_precision(self) -> tuple[str, str]:
        """What PREC auto means here, and why."""
        if self.device.type != "cpu":
            return self.cuda_precision, "the trainer's choice for GPUs"
        wanted = self.cfg.TRAIN.get("CPU_PREC", "auto")
        return cpu_precision() if wanted == "auto" else (wanted, "TRAIN.CPU_PREC")

    def set_precision(self, keep=()) -> None:
        """Put CLIP's parameters into the numbers of PREC, except those in `keep`, which learn as master weights."""
        print(f"Precision: {self.precision}{self.chosen}")
        if self.precision in HALF:
            halve(self.clip_model, HALF[self.precision], keep)

    def learn(self, learned: nn.Module, groups: list | None = None) -> None:
        """Have `learned` trained, saved and loaded.

        groups: what the optimizer gets, parameters or groups of them; by default all parameters of `learned`.
        """
        self.learned = learned.to(self.device)
        self.weights = MasterWeights(learned, self.precision if self.fine_tunes_clip else "fp32")
        if not list(learned.parameters()):  # a cache that is filled, not trained
            self.register_model(self.model_name, learned)
            return
        steps = len(self.train_loader_x) if self.train_loader_x is not None else 1
        optim_cfg = self.cfg.OPTIM.clone()
        optim_cfg.defrost()
        optim_cfg.MAX_EPOCH = self.max_epoch
        self.optim = build_optimizer(groups or learned.parameters(), optim_cfg)
        self.sched = self.schedule(optim_cfg, steps)
        self.register_model(self.model_name, learned, self.optim, self.sched)
        scaled = self.precision in self.scaled or (self.precision == "amp" and self.device.type == "cuda")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        wanted = self.fine_tunes_clip and self.cfg.TRAIN.get("STEP_IN_BACKWARD", True)
        if wanted and not scaled and can_step_in_backward(self.optim):
            step_in_backward(self.weights, self.optim)
        number, total = (sum(p.numel() for p in module.parameters()) for module in (learned, self.clip_model))
        print(f"Learned parameters: {number:,} {'of' if self.fine_tunes_clip else 'beside'} {total:,}")

    # ---- what a method may write -----------------------------------------------------------------------------

    def schedule(self, optim_cfg, steps: int):
        """The learning rate's schedule for epochs of `steps` steps; `optim_cfg`, a copy, has the run's epochs."""
        if self.per_step:
            optim_cfg.MAX_EPOCH *= steps
            optim_cfg.WARMUP_EPOCH *= steps
            optim_cfg.STEPSIZE = tuple(size * steps for size in optim_cfg.STEPSIZE)
        return build_lr_scheduler(self.optim, optim_cfg)

    def class_features(self) -> Tensor:
        """Class features (C, E), not normalised."""
        raise NotImplementedError

    def image_features(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) on the device -> features (B, E), not normalised."""
        raise NotImplementedError

    def compare(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """Image features (B, E) and what `class_features` gives -> logits (B, C)."""
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(class_features, dim=-1).t()

    def idle_parameters(self) -> list[nn.Parameter]:
        """Frozen parameters that no training step runs through: they leave memory while training runs."""
        return []

    def prepare(self) -> None:
        """Compute what training needs once; weights are loaded and idle parameters offloaded by then."""

    def left_out(self, classnames: list[str]) -> str:
        """What a test of these classes, as the dataset names them, needs beside `tuned_clip`; "" for nothing."""
        return ""

    def end_epoch(self) -> None:
        """Called when the steps of `self.epoch` are done, before its checkpoint is written; training time counts it."""

    # ---- training --------------------------------------------------------------------------------------------

    @property
    def scale(self) -> Tensor:
        """CLIP's factor before the softmax, 1 / tau."""
        return self.clip_model.logit_scale.exp().float()

    def autocast(self):
        return autocast(self.precision, self.device)

    def needed(self):
        """A block in which offloaded weights are there: around a whole extraction, so that they come once for it."""
        return self.offload.needed()

    def before_train(self):
        super().before_train()
        if not self.get_model_names():
            return
        self.weights.sync()
        self.offload = Offload(self.idle_parameters(), self.output_dir)
        began = time.perf_counter()
        self.prepare()
        self.extract_seconds += time.perf_counter() - began

    def before_epoch(self):
        super().before_epoch()
        extracted = isinstance(self.train_loader_x, FeatureCache)
        began = time.perf_counter()
        self.train_loader_x.start_epoch(self.epoch, last=self.epoch + 1 == self.max_epoch)
        if extracted:
            self.extract_seconds += time.perf_counter() - began

    def run_epoch(self):
        super().run_epoch()
        self.end_epoch()

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W), or features where they are cached, and labels (B,), on the device."""
        key = "features" if "features" in batch else "img"
        return tuple(batch[key].to(self.device, non_blocking=True) for key in (key, "label"))

    def update(self, terms: dict[str, Tensor]) -> None:
        """Backward pass and step for the sum of `terms`."""
        keep = not self.cfg.TRAIN.get("STEP_IN_BACKWARD", True)
        update(sum(terms.values()), self.weights, self.optim, self.scaler, keep)

    def finish_step(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> dict:
        """Check the loss, update, step the schedule when it is time; -> the numbers that the log shows.

        Args: the named terms of the loss; logits (B, K); labels (B,).
        """
        last = self.batch_idx + 1 == self.num_batches
        if last or self.device.type == "cpu":  # asking a GPU means waiting for it, and what is not finite stays so
            self.detect_anomaly(sum(terms.values()))
        self.update(terms)
        if last or self.per_step:
            self.update_lr()
        summary = {name: term.detach() for name, term in terms.items()}
        return {"loss": sum(summary.values()), **summary, "acc": compute_accuracy(logits.detach(), labels)[0]}

    def after_train(self):
        self.offload.end()
        super().after_train()

    def fixed_options(self):
        return {f"TRAINER.{type(self).__name__.upper()}.{name}": self.options[name] for name in self.fixed}

    # ---- test ------------------------------------------------------------------------------------------------

    def clip_copy(self) -> nn.Module:
        """A copy of CLIP with its current weights, fp32, on the CPU."""
        with self.offload.needed():
            return copy.deepcopy(self.clip_model).float().cpu()

    def load_model(self, directory, *args, epoch=None):
        """Without an epoch, or with a negative one, the best checkpoint, else the last. CLAP passes its cfg, too."""
        epoch = next((value for value in args if isinstance(value, int)), epoch)
        if epoch is not None and epoch < 0:  # a fork whose --load-epoch has a default can't leave it out
            epoch = None
        if directory and not OUR_DASSL:
            load_from_fork(self, directory, epoch)
        else:
            super().load_model(directory, epoch=epoch)
        if self.learned is not None:
            self.weights.sync()

    @torch.no_grad()
    def logits(self, image: Tensor, class_features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) on any device -> logits (B, C), as in a test.

        class_features: what the method of that name gives; computed here if None.
        """
        self.set_model_mode("eval")
        if class_features is None:
            class_features = self.class_features()
        with self.offload.needed():
            features = in_microbatches(self.image_features, image.to(self.device, non_blocking=True))
        return self.compare(features, class_features)

    @torch.no_grad()
    def test(self, split=None, **ignored):
        """ATPrompt passes `is_final`, at which its Dassl would end the process."""
        self.set_model_mode("eval")
        self.tested_features = self.class_features()  # once for all images
        with self.offload.needed():
            return super().test(split)

    def model_inference(self, input):
        return self.logits(input, self.tested_features)
