"""What all trainers share: registered models with their checkpoints, TensorBoard, and the parts of one step."""

import os
from collections import OrderedDict

import torch

from ..utils import (
    UserError,
    complete,
    load_checkpoint,
    load_weights,
    resume_from_checkpoint,
    save_checkpoint,
    tolist_if_not,
)
from . import checkpoint as ckpt


def SummaryWriter(*args, **kwargs):
    """TensorBoard's writer, imported when first wanted; ImportError where tensorboard is not installed."""
    from torch.utils import tensorboard

    return tensorboard.SummaryWriter(*args, **kwargs)


class LossError(UserError, FloatingPointError):
    """Training has diverged."""


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
            with complete(path, "choose another --model-dir"):
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
        ckpt.refuse_finished(directory, names)
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
