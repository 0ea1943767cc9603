"""Learning rate per epoch: step, multi-step or cosine, behind a constant or linear warm-up."""

from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR

from ..config.ranges import AVAI_SCHEDS, AVAI_WARMUPS
from ..utils import UnknownName, UserError, nearest


class _WarmupScheduler(LRScheduler):
    """`warmup_epoch` epochs of its own, then only `successor` steps.

    As in upstream the successor starts late: its first own rate comes at epoch `warmup_epoch`. Its state is
    kept as plain numbers; upstream pickled the object, whose optimizer then was not the live one, so the
    learning rate froze after a resume. Such checkpoints are read as well.
    """

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1):
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer, last_epoch)

    def step(self, epoch=None):
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def get_lr(self):
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warmup_lr(base) for base in self.base_lrs]

    def state_dict(self):
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict):
        state = dict(state_dict)
        old = state.pop("successor")
        self.successor.load_state_dict(old.state_dict() if isinstance(old, LRScheduler) else old)
        super().load_state_dict(state)


class ConstantWarmupScheduler(_WarmupScheduler):
    """The same `cons_lr` for every group while warming up."""

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False):
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base):
        return self.cons_lr


class LinearWarmupScheduler(_WarmupScheduler):
    """`min_lr` in the first epoch, then base * epoch / warmup_epoch."""

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False):
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def warmup_lr(self, base):
        return base * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr


def build_lr_scheduler(optimizer, optim_cfg):
    """The scheduler that OPTIM describes; call its `step()` once per epoch.

    UserError (also a ValueError) for an unknown LR_SCHEDULER or WARMUP_TYPE, or a STEPSIZE of a wrong type.
    """
    scheduler = _main_scheduler(optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = optim_cfg.WARMUP_EPOCH
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_CONS_LR)
    if optim_cfg.WARMUP_TYPE == "linear":
        return LinearWarmupScheduler(optimizer, scheduler, optim_cfg.WARMUP_EPOCH, optim_cfg.WARMUP_MIN_LR)
    raise _unknown("WARMUP_TYPE", optim_cfg.WARMUP_TYPE, AVAI_WARMUPS)


def _main_scheduler(optimizer, optim_cfg):
    name, steps = optim_cfg.LR_SCHEDULER, optim_cfg.STEPSIZE
    if name == "single_step":
        step = steps[-1] if isinstance(steps, list | tuple) else steps
        if not isinstance(step, int):
            raise StepSizeError(f"OPTIM.STEPSIZE of single_step must be a whole number of epochs, not {step!r}")
        return StepLR(optimizer, step if step > 0 else optim_cfg.MAX_EPOCH, optim_cfg.GAMMA)
    if name == "multi_step":
        if not isinstance(steps, list | tuple):
            raise StepSizeError(f"OPTIM.STEPSIZE of multi_step must be a list of epochs, not {steps!r}")
        return MultiStepLR(optimizer, steps, optim_cfg.GAMMA)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))
    raise _unknown("LR_SCHEDULER", name, AVAI_SCHEDS)


class StepSizeError(UserError, TypeError, ValueError):
    """A STEPSIZE that does not fit the scheduler."""


def _unknown(key, given, known):
    return UnknownName(f"OPTIM.{key} must be one of {known}, but got {given} (nearest: {nearest(given, known)})")
