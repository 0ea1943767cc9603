"""The training loop of the CoOp family: hooks, registered models, test, checkpoints."""

import math
import os
import time
from collections import OrderedDict
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import nn
from tqdm import tqdm

from ..data import DataManager
from ..evaluation import build_evaluator
from ..utils import (
    AverageMeter,
    MetricMeter,
    UserError,
    load_checkpoint,
    load_weights,
    mkdir_if_missing,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)
from . import checkpoint as ckpt
from .memory import PeakMemory

__all__ = [
    "AverageMeter",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "SummaryWriter",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
]


def SummaryWriter(*args, **kwargs):
    """TensorBoard's writer, imported when first wanted; ImportError where tensorboard is not installed."""
    from torch.utils import tensorboard

    return tensorboard.SummaryWriter(*args, **kwargs)


class LossError(UserError, FloatingPointError):
    """Training has diverged."""


class SimpleNet(nn.Module):
    """Upstream's default network, which no trainer of the family uses."""

    def __init__(self, *args, **kwargs):
        raise UserError("SimpleNet is not included; write build_model() in your trainer")


class TrainerBase:
    """Registered models with their optimizers and schedulers, and the steps all trainers share."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Have the engine train, save and load `model`; optim and sched may be None."""
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot assign model before super().__init__() call")
        assert name not in self._models, "Found duplicate model names"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """All registered names, or `names` as a list, each of which must be registered."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            assert name in self._models, f'No model is registered as "{name}"'
        return names

    # Checkpoints --------------------------------------------------------------------------------

    def fixed_options(self):
        """{config key: value} of the options that must be the same wherever this trainer's checkpoints are loaded."""
        return {}

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write `<directory>/<name>/model.pth.tar-<epoch + 1>` for every registered model."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": optim.state_dict() if optim is not None else None,
                "scheduler": sched.state_dict() if sched is not None else None,
                "val_result": val_result,
                "meta": ckpt.describe(self),
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def load_model(self, directory, epoch=None):
        """Load all registered models, strictly; without an epoch the best checkpoint, else the last.

        Errors: MissingFile; UserError for another backbone or dataset or weights that do not fit.
        """
        if not directory:
            print(
                "Note that load_model() is skipped as no pretrained model is given"
                " (ignore this if it's done on purpose)"
            )
            return
        for name in self.get_model_names():
            path = ckpt.find_checkpoint(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            if "meta" in checkpoint:  # upstream's have none
                ckpt.check_meta(path, checkpoint["meta"], ckpt.describe(self))
            load_weights(self._models[name], checkpoint["state_dict"], path)
            result = checkpoint.get("val_result")
            result = "" if result is None else f", val_result={result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}{result})")

    def resume_model_if_exist(self, directory):
        """Resume every registered model from `<directory>/<name>`; returns the number of finished epochs."""
        names = self.get_model_names()
        folders = [os.path.join(directory, name) for name in names]
        if not names or not all(map(os.path.isdir, folders)):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epochs = [
            resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
            for name, folder in zip(names, folders, strict=True)
        ]
        return epochs[-1]

    # TensorBoard --------------------------------------------------------------------------------

    def init_writer(self, log_dir):
        if self._writer is not None:
            return
        try:
            self._writer = SummaryWriter(log_dir)
            print(f"Initialize tensorboard (log_dir={log_dir})")
        except ImportError:
            pass  # optional

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag, scalar_value, global_step=None):
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # Hooks of the loop -----------------------------------------------------------------------

    def before_train(self):
        pass

    def after_train(self):
        pass

    def before_epoch(self):
        pass

    def after_epoch(self):
        pass

    def run_epoch(self):
        raise NotImplementedError

    def test(self):
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError

    # One step --------------------------------------------------------------------------------

    def set_model_mode(self, mode="train", names=None):
        """Registered models to "train", or to "eval" or "test"; KeyError for anything else."""
        training = {"train": True, "eval": False, "test": False}[mode]
        for name in self.get_model_names(names):
            self._models[name].train(training)

    def update_lr(self, names=None):
        """Step the schedulers. The loop does not: a trainer calls this from the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None):
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]

    def detect_anomaly(self, loss):
        if not torch.isfinite(loss).all():
            raise LossError("Loss is infinite or NaN! Lower OPTIM.LR, or choose a more exact precision")

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(self, loss_a, loss_b, lambda_=1, names=None):
        """ProGrad (Zhu et al., ICCV 2023): follow loss_a without its part that works against loss_b.

        Where the gradients a and b of a parameter form an obtuse angle, a loses lambda_ * (a . b / |b|^2) b.
        """
        self.model_zero_grad(names)
        self.detect_anomaly(loss_b)
        loss_b.backward(retain_graph=True)
        params = [p for name in self.get_model_names(names) for p in self._models[name].parameters()]
        general = [None if p.grad is None else p.grad.clone() for p in params]
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for p, b in zip(params, general, strict=True):
            if b is not None and p.grad is not None and (dot := (p.grad * b).sum()) < 0:
                p.grad -= lambda_ * dot / (b * b).sum() * b
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """Data, model, training, test and everything that survives a kill, from one config.

    Clocks in seconds: `train_seconds` (epochs, without extraction), `test_seconds` (the last test) and
    `extract_seconds`, to which trainers that extract features add. `memory.mb` is the peak of the training steps; on a
    CPU it is measured only with TRAIN.MEASURE_MEMORY, else None.
    """

    def __init__(self, cfg, data=None):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.train_seconds = self.test_seconds = self.extract_seconds = 0.0
        self.memory = PeakMemory(on_cpu=cfg.TRAIN.MEASURE_MEMORY)
        if data is None:
            self.build_data_loader()
        else:
            self.use_data(data)
        self.set_epochs()
        self.build_model()
        self.evaluator = build_evaluator(self.cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")

    def check_cfg(self, cfg):
        """Raise here if an option does not suit the trainer."""

    def build_data_loader(self):
        self.use_data(DataManager(self.cfg))

    def use_data(self, data):
        """Take loaders and classes from a DataManager, or from a stand-in such as `dassl.data.ClassNames`."""
        self.dm = data
        self.train_loader_x = data.train_loader_x
        self.train_loader_u = data.train_loader_u
        self.val_loader = data.val_loader
        self.test_loader = data.test_loader
        self.num_classes = data.num_classes
        self.num_source_domains = data.num_source_domains
        self.lab2cname = data.lab2cname

    def set_epochs(self):
        """OPTIM.STEPS_PER_SHOT decides `max_epoch`; `cfg` becomes a copy whose OPTIM.MAX_EPOCH says so."""
        steps = self.cfg.OPTIM.STEPS_PER_SHOT * max(self.cfg.DATASET.NUM_SHOTS, 1)
        if steps <= 0 or self.train_loader_x is None:
            return
        self.max_epoch = math.ceil(steps / len(self.train_loader_x))
        frozen = self.cfg.is_frozen()
        self.cfg = self.cfg.clone()
        self.cfg.defrost()
        self.cfg.OPTIM.MAX_EPOCH = self.max_epoch
        if frozen:
            self.cfg.freeze()

    def build_model(self):
        """Make `self.model` and register what learns, with `build_optimizer` and `build_lr_scheduler`."""
        raise NotImplementedError

    def extra_state(self):
        """What else the rest of the run depends on, as numbers, strings, tensors, lists and dicts."""
        return {}

    def load_extra_state(self, state):
        pass

    @property
    def resume_path(self):
        return os.path.join(self.output_dir, "resume.pt")

    # The loop --------------------------------------------------------------------------------

    def train(self):
        """All epochs, then the test. Without a registered model there is nothing to train, only to test."""
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch if self._models else 0):
            self.epoch = epoch
            with self._clock("train_seconds"):
                self.before_epoch()
                self.run_epoch()
            self.after_epoch()
            ckpt.save_resume(self, self.resume_path)
        self.after_train()

    @contextmanager
    def _clock(self, name):
        """Add the wall time of the block to an attribute, less what the block adds to `extract_seconds`."""
        start, extracted = time.perf_counter(), self.extract_seconds
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start - (self.extract_seconds - extracted)
        setattr(self, name, getattr(self, name) + seconds)

    def before_train(self):
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self._resume(directory)
        log_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(self.output_dir)
        self.init_writer(log_dir)
        self.time_start = time.time()

    def _resume(self, directory):
        path = os.path.join(directory, "resume.pt")
        if not os.path.isfile(path):
            return self.resume_model_if_exist(directory)
        print(f"Found checkpoint at {directory} (will resume training)")
        return ckpt.load_resume(self, path)

    def after_epoch(self):
        last = self.epoch + 1 == self.max_epoch
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar")
        if last or (frequency > 0 and (self.epoch + 1) % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()

    @torch.no_grad()
    def test(self, split=None, **ignored):
        """Evaluate on "test" (or "val", if there is one); returns the first result, accuracy in %."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is None:
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        print(f"Evaluate on the *{split}* set")
        self.test_seconds = 0.0
        with self._clock("test_seconds"):
            for batch in tqdm(loader):
                image, label = self.parse_batch_test(batch)
                self.evaluator.process(self.model_inference(image), label)
            results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)


class TrainerX(SimpleTrainer):
    """Training on labelled images: `forward_backward(batch)` returns a dict of numbers to print."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            data_time.update(time.time() - end)
            with self.memory.step(self.device):
                summary = self.forward_backward(batch)
            batch_time.update(time.time() - end)
            losses.update(summary)
            self._report(batch_time, data_time, losses)
            end = time.time()

    def _report(self, batch_time, data_time, losses):
        done = self.batch_idx + 1
        if done % self.cfg.TRAIN.PRINT_FREQ == 0 or self.num_batches < self.cfg.TRAIN.PRINT_FREQ:
            left = self.num_batches - done + (self.max_epoch - self.epoch - 1) * self.num_batches
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{done}/{self.num_batches}]"
                f" time {batch_time.val:.3f} ({batch_time.avg:.3f})"
                f" data {data_time.val:.3f} ({data_time.avg:.3f})"
                f" {losses} lr {self.get_current_lr():.4e}"
                f" eta {timedelta(seconds=int(batch_time.avg * left))}"
            )
        if self._writer is None:
            return  # reading the meters would make the host wait for the device
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def parse_batch_train(self, batch):
        """image (B, 3, H, W), label (B,), domain (B,) on the device."""
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Upstream's semi-supervised trainer, which no method of the family uses."""

    def __init__(self, cfg):
        raise UserError("TrainerXU (training with unlabelled images) is not included; build on TrainerX")
