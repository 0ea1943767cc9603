"""The training loop of the CoOp family: from one configuration to data, model, training, test and resume."""

import math
import os
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import nn
from tqdm import tqdm

from ..data import DataManager
from ..data.datasets import tests_on_validation
from ..evaluation import build_evaluator
from ..utils import AverageMeter, MetricMeter, MissingFile, UserError, mkdir_if_missing
from . import checkpoint as ckpt
from .base import SummaryWriter, TrainerBase
from .memory import PeakMemory
from .temperature import check_temperature, find_temperature

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


class SimpleNet(nn.Module):
    """Upstream's default network, which no trainer of the family uses."""

    def __init__(self, *args, **kwargs):
        raise UserError("SimpleNet is not included; write build_model() in your trainer")


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
        self.tested = None  # the split of the last test
        self.temperature = None  # for that test, where TEST.TEMPERATURE isn't to be asked
        self.precision = None  # in which it runs, by the name that PREC has for it, if the trainer says so
        self.memory = PeakMemory(on_cpu=cfg.TRAIN.get("MEASURE_MEMORY", False))
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

    @property
    def images_per_class(self):
        """DATASET.NUM_SHOTS, or where that asks for all training images their mean number."""
        shots = self.cfg.DATASET.NUM_SHOTS
        return shots if shots >= 1 else len(self.dm.dataset.train_x) / self.num_classes

    def set_epochs(self):
        """OPTIM.STEPS_PER_SHOT decides `max_epoch`; `cfg` becomes a copy whose OPTIM.MAX_EPOCH says so."""
        steps = self.cfg.OPTIM.get("STEPS_PER_SHOT", 0)
        if steps <= 0 or self.train_loader_x is None:
            return
        self.max_epoch = math.ceil(steps * self.images_per_class / len(self.train_loader_x))
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
        self.check_final_model()
        if not self.cfg.TEST.NO_TEST:
            check_temperature(self.cfg, self.dm.dataset)
        if self._models and getattr(self.dm.dataset, "test_only", False):
            name = self.cfg.DATASET.NAME
            raise UserError(f"{name} has images for tests only; train on another dataset, then test with --eval-only")
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch if self._models else 0):
            self.epoch = epoch
            with self._clock("train_seconds"):
                self.before_epoch()
                self.run_epoch()
            self.after_epoch()
            ckpt.save_resume(self, self.resume_path)
        self.after_train()

    def check_final_model(self):
        """UserError if TEST.FINAL_MODEL is unknown, or asks for a validation set where there is none."""
        final = self.cfg.TEST.FINAL_MODEL
        if final not in ("last_step", "best_val"):
            raise UserError(f"TEST.FINAL_MODEL must be last_step or best_val, not {final!r}")
        if final == "best_val" and self.val_loader is None and not self.cfg.TEST.NO_TEST:
            raise UserError(
                f"{self.cfg.DATASET.NAME} has no validation images to find the best epoch with; use last_step"
                " instead of best_val for TEST.FINAL_MODEL"
            )
        if final == "best_val" and tests_on_validation(self.dm.dataset):
            raise UserError(
                f"{self.cfg.DATASET.NAME} has the images of its test as validation images, which must not find the"
                " best epoch; use last_step instead of best_val for TEST.FINAL_MODEL"
            )

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
        self.start_epoch = self._resume()
        log_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(self.output_dir)
        self.init_writer(log_dir)
        self.time_start = time.time()

    def _resume(self):
        """Put everything where the last finished epoch left it; returns the number of finished epochs.

        The folder's own resume.pt decides, then what lies in RESUME. Checkpoints count only where there is no
        resume.pt and they are upstream's: a run of ours writes that file first, and removes it when it is finished.
        """
        for directory in filter(None, (self.output_dir, self.cfg.RESUME)):
            path = os.path.join(directory, "resume.pt")
            if os.path.lexists(path) and (epoch := ckpt.load_resume(self, path)):
                ckpt.take_best(self.get_model_names(), directory, self.output_dir)
                print(f"Found checkpoint at {directory} (will resume training)")
                return epoch
        if self.cfg.RESUME:
            if epoch := self.resume_model_if_exist(self.cfg.RESUME):
                return epoch
            raise MissingFile(f'Nothing to resume in "{self.cfg.RESUME}"; name another folder for RESUME, or none')
        if os.path.exists(self.resume_path):
            print("No checkpoint found, train from scratch")  # a run has begun here, but finished no epoch
            return 0
        epoch = self.resume_model_if_exist(self.output_dir)
        if not epoch and self._models:
            ckpt.begin_resume(self, self.resume_path)
        return epoch

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
        """Evaluate on `split`, by default TEST.SPLIT; returns the first result, accuracy in %.

        Asked for "val" where there is no validation set, it takes "test", as upstream does: `tested` says which it was.
        UserError for another split, for TEST.SPLIT val without a validation set, or if there are no images at all.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        self.tested = self._split(split)
        loader = self.val_loader if self.tested == "val" else self.test_loader
        own = split is None  # not one after an epoch
        self.evaluator.temperature = (self.temperature or find_temperature(self)) if own else None
        print(f"Evaluate on the *{self.tested}* set")
        self.test_seconds = 0.0
        with self._clock("test_seconds"):
            for batch in tqdm(loader):
                image, label = self.parse_batch_test(batch)
                self.evaluator.process(self.model_inference(image), label)
            results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{self.tested}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _split(self, split):
        wanted = split or self.cfg.TEST.SPLIT
        if wanted not in ("test", "val"):
            raise UserError(f"A model can be tested on test or val, not on {wanted!r}; set TEST.SPLIT to one of them")
        if wanted == "val" and self.val_loader is None:
            if split is None:
                raise UserError(f"{self.cfg.DATASET.NAME} has no validation images; set TEST.SPLIT to test")
            return "test"
        if self.test_loader is None:
            raise UserError("This trainer was built without images and can't be tested; build it with its dataset")
        return wanted

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))


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
        done, frequency = self.batch_idx + 1, self.cfg.TRAIN.PRINT_FREQ
        printed = done % frequency == 0 or self.num_batches < frequency
        if printed:
            left = self.num_batches - done + (self.max_epoch - self.epoch - 1) * self.num_batches
            print(
                f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{done}/{self.num_batches}]"
                f" time {batch_time.val:.3f} ({batch_time.avg:.3f})"
                f" data {data_time.val:.3f} ({data_time.avg:.3f})"
                f" {losses} lr {self.get_current_lr():.4e}"
                f" eta {timedelta(seconds=int(batch_time.avg * left))}"
            )
        if self._writer is None or not (printed or done == self.num_batches):
            return  # reading the meters would make the host wait for the device
        step = self.epoch * self.num_batches + self.batch_idx
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def parse_batch_train(self, batch):
        """image (B, 3, H, W), label (B,), domain (B,) on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Upstream's semi-supervised trainer, which no method of the family uses."""

    def __init__(self, cfg):
        raise UserError("TrainerXU (training with unlabelled images) is not included; build on TrainerX")
