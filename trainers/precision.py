"""The precision in which Skip Tuning's deep halves run, and how their weights are updated.

    PREC          weights                          forward and backward
    fp32          fp32                             fp32
    bf16          fp32, with bf16 copies           bf16
    amp           fp32                             autocast: fp16 with a scaled loss on CUDA, bf16 on the CPU
    fp16_master   fp32, with fp16 copies           fp16 with a scaled loss
    fp16          fp16, as in the released code    fp16: most updates are below half a unit in their weight's last
                                                   place, and are lost

Half is what is half in OpenAI's archives, and the embeddings; the norms stay fp32.
"""

import copy
from functools import partial

import torch
from torch import nn
from torch.optim.sgd import sgd

HALF = {"bf16": torch.bfloat16, "fp16_master": torch.float16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", "bf16", "amp", "fp16_master", "fp16")
SAMPLE = 4096  # elements of each weight that `moved_share` looks at


def autocast(precision, device):
    """A context for everything that runs in `precision`; it does something for amp only."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision == "amp")


def halve(module, dtype, but=()):
    """Convert the parameters of `module` to `dtype`, except norms, scalars and the parameters `but`."""
    keep = {id(p) for p in but} | {id(p) for p in module.parameters() if p.dim() == 0}
    keep |= {id(p) for part in module.modules() if isinstance(part, nn.LayerNorm) for p in part.parameters()}
    for p in module.parameters():
        if id(p) not in keep:
            p.data = p.data.to(dtype)


class Learner:
    """Runs `deep`, the module that is trained and saved, in a precision, and makes its optimizer's steps.

    `running` is what forward passes go through: `deep` itself or, if it has half-precision copies, those. Gradients
    are then the copies', steps are made on `deep`, and the copies follow.

    With plain SGD (no dampening) and an unscaled loss a weight is updated as soon as the backward pass has its
    gradient, which is freed at once: the same numbers as a step at the end, without ever holding all gradients.
    """

    def __init__(self, deep, optimizer, precision, device):
        self.deep = deep
        self.optimizer = optimizer
        self.running = deep
        if precision in ("bf16", "fp16_master"):
            self.running = copy.deepcopy(deep)
            halve(self.running, HALF[precision])
        scaled = precision == "fp16_master" or (precision == "amp" and device.type == "cuda")
        self.scaler = torch.amp.GradScaler(device.type) if scaled else None
        self.in_backward = not scaled and type(optimizer) is torch.optim.SGD and not optimizer.defaults["dampening"]
        if self.in_backward:
            twins = dict(self.pairs())
            for index, group in enumerate(optimizer.param_groups):
                for weight in group["params"]:
                    twins[weight].register_post_accumulate_grad_hook(partial(self.step, weight, index))

    def pairs(self):
        """(weight, its running copy or itself), one by one."""
        return zip(self.deep.parameters(), self.running.parameters(), strict=True)

    @torch.no_grad()
    def step(self, weight, index, twin):
        """SGD's step of one weight, with the options of parameter group `index`, by the gradient of its copy."""
        gradient, twin.grad = twin.grad.to(weight.dtype), None
        group = self.optimizer.param_groups[index]
        buffers = [None]
        if group["momentum"]:
            state = self.optimizer.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [state["momentum_buffer"]]
        names = "weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize"
        fused = weight.dtype == torch.float32  # PyTorch 2.9 leaves half-precision elements as they are
        sgd([weight], [gradient], buffers, fused=fused, **{name: group[name] for name in names})
        if twin is not weight:
            twin.copy_(weight)

    def update(self, loss):
        """Backward pass and step. With a scaled loss, a step whose gradients overflow is left out."""
        if self.in_backward:
            loss.backward()
            self.optimizer.step()  # finds no gradient: tells schedulers that a step was made
            return
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        for weight, twin in self.pairs():
            if twin is not weight:
                weight.grad, twin.grad = twin.grad.to(weight.dtype), None
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.follow()

    @torch.no_grad()
    def follow(self):
        """Copy the weights to their running copies; needed after they were loaded."""
        for weight, twin in self.pairs():
            if twin is not weight:
                twin.copy_(weight)


def sample(module):
    """Up to about SAMPLE elements of each parameter, for `moved_share`; an odd step goes through all columns."""
    return [p.detach().flatten()[:: p.numel() // SAMPLE | 1].clone() for p in module.parameters()]


def moved_share(module, before):
    """The share of the parameters' elements that differ from `before`, an earlier `sample` of them; 0 to 1."""
    sizes = [p.numel() for p in module.parameters()]
    moved = [float((a != b).float().mean()) for a, b in zip(sample(module), before, strict=True)]
    return sum(size * share for size, share in zip(sizes, moved, strict=True)) / sum(sizes)
