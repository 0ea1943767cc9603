"""Optimizers by name, with the options of the OPTIM node."""

import warnings

import torch
from torch import nn

from ..config.ranges import AVAI_OPTIMS
from ..utils import UnknownName, UserError


def build_optimizer(model, optim_cfg, param_groups=None):
    """The optimizer that OPTIM describes, over a module, or over an iterable of parameters or groups.

    STAGED_LR (modules only, TypeError otherwise): direct children named in NEW_LAYERS learn with LR, the rest
    with LR * BASE_LR_MULT; `param_groups` overrules it. A fused kernel does the step where PyTorch has one.
    UnknownName (also a ValueError) for an unknown name.
    """
    name = optim_cfg.NAME
    if name not in AVAI_OPTIMS:
        raise UnknownName(f"optim must be one of {AVAI_OPTIMS}, but got {name}")
    params = list(_parameters(model, optim_cfg, param_groups))
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if name == "sgd":
        return _sgd(params, optim_cfg, common)
    if name == "rmsprop":
        return torch.optim.RMSprop(params, **common, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA)
    if name == "radam":
        return torch.optim.RAdam(params, **common, betas=betas)
    fused = _fused(params)
    if name == "adamw":
        return torch.optim.AdamW(params, **common, betas=betas, fused=fused)
    return torch.optim.Adam(params, **common, betas=betas, amsgrad=name == "amsgrad", fused=fused)


def _parameters(model, optim_cfg, param_groups):
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR is ignored because param_groups are given", stacklevel=3)
        return param_groups
    if optim_cfg.STAGED_LR:
        return _staged(model, optim_cfg)
    return model.parameters() if isinstance(model, nn.Module) else model


def _staged(model, optim_cfg):
    if not isinstance(model, nn.Module):
        raise TypeError("With OPTIM.STAGED_LR, build_optimizer() needs a module, not a list of parameters")
    model = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else new_layers
    base, new = [], []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


def _fused(params):
    """Whether one kernel can do the whole step.

    On the CPU for fp32 and fp64 only: of half-precision parameters PyTorch 2.9's fused SGD silently leaves most as
    they are.
    """
    tensors = [t for p in params for t in (p["params"] if isinstance(p, dict) else [p])]
    exact = (torch.float32, torch.float64)
    return all(
        t.is_floating_point() and (t.device.type == "cuda" or (t.device.type == "cpu" and t.dtype in exact))
        for t in tensors
    )


def _sgd(params, optim_cfg, common):
    momentum, dampening = optim_cfg.MOMENTUM, optim_cfg.SGD_DAMPNING
    if optim_cfg.SGD_NESTEROV and not (momentum > 0 and dampening == 0):
        raise UserError("OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0 and OPTIM.SGD_DAMPNING 0: set them")
    optimizer = torch.optim.SGD(
        params,
        **common,
        momentum=momentum,
        dampening=dampening,
        nesterov=optim_cfg.SGD_NESTEROV,
        fused=dampening == 0 and _fused(params),
    )
    if momentum and optimizer.defaults["fused"]:
        optimizer.register_step_pre_hook(_start_momentum)
    return optimizer


def _start_momentum(optimizer, args, kwargs):
    """Zero momentum for parameters with a first gradient: the fused kernel wants all the buffers or none."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and "momentum_buffer" not in optimizer.state[p]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
