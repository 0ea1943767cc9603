"""PREC: the numbers in which a method runs, and how its weights are updated.

What learns is part of CLIP (SkipTuning, FinetuneCLIP):

    PREC          weights that learn               forward and backward
    fp32          fp32                             fp32
    bf16          fp32, with bf16 copies           bf16
    amp           fp32                             autocast: fp16 with a scaled loss on CUDA, bf16 on the CPU
    fp16_master   fp32, with fp16 copies           fp16 with a scaled loss
    fp16          fp16, as in the released code    fp16: most updates are below half a unit in their weight's last
                                                   place, and are lost

What learns stands beside a frozen CLIP (all other methods): it is fp32, and PREC says in what CLIP runs: fp32, bf16,
amp, or fp16 with a scaled loss.

PREC auto is the trainer's own choice on a GPU. On a CPU it is bf16 where that multiplies bf16 itself, else fp32, or
what TRAIN.CPU_PREC says, as in the recipes of the embedded model, whose numbers are to be the same on every machine.

Half precision holds for what is half in OpenAI's archives, and the embeddings; the norms stay fp32.
"""

import copy
import functools
import platform
import statistics
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

HALF = {"bf16": torch.bfloat16, "fp16_master": torch.float16, "fp16": torch.float16}
WITH_COPIES = ("bf16", "fp16_master")
CHUNK = 1 << 18  # elements of a weight at a time on a CPU, whose caches hold them with gradient, momentum and copy
FASTER = 1.3  # times as fast as in fp32 bf16's products have to be
SAMPLE = 4096  # elements of each weight that `moved_share` looks at


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context for everything that runs in `precision`; it does something for amp only."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=precision == "amp")


@functools.cache
def cpu_precision() -> tuple[str, str]:
    """bf16 where this CPU multiplies it itself, else fp32; and why. Measured once where PyTorch can't tell."""
    asked = {"AMX": "_is_amx_tile_supported", "AVX512_BF16": "_is_avx512_bf16_supported"}
    if platform.machine().lower() in ("x86_64", "amd64") and all(hasattr(torch.cpu, name) for name in asked.values()):
        found = [unit for unit, name in asked.items() if getattr(torch.cpu, name)()]
        return ("bf16", f"this CPU has {found[0]}") if found else ("fp32", "this CPU has no products of bf16")
    ratio = _seconds_of_a_product(torch.float32) / _seconds_of_a_product(torch.bfloat16)
    return "bf16" if ratio > FASTER else "fp32", f"products of bf16 take 1/{ratio:.1f} of fp32's time here"


def _seconds_of_a_product(dtype: torch.dtype, size: int = 512) -> float:
    """The median of several; the first one is warm-up."""
    a, taken = torch.ones(size, size, dtype=dtype), []
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def halve(module: nn.Module, dtype: torch.dtype, keep: Iterable[nn.Parameter] = ()) -> None:
    """Convert the parameters of `module` to `dtype`, except norms, scalars and the parameters in `keep`."""
    kept = {id(p) for p in keep} | {id(p) for p in module.parameters() if p.dim() == 0}
    kept |= {id(p) for part in module.modules() if isinstance(part, nn.LayerNorm) for p in part.parameters()}
    for p in module.parameters():
        if id(p) not in kept:
            p.data = p.data.to(dtype)


class MasterWeights:
    """The weights of `module`, which are trained and saved, and the module that forward passes go through.

    `running` is `module` itself or, where `precision` asks for them, a copy of it in half precision. Then gradients
    are the copies', steps are made on the master weights, and the copies follow them.
    """

    def __init__(self, module: nn.Module, precision: str = "fp32"):
        self.module = module
        self.running = module
        self.step_in_backward = False  # set by the function of that name
        if precision in WITH_COPIES:
            self.running = copy.deepcopy(module)
            halve(self.running, HALF[precision])

    def pairs(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        """(weight, its copy or itself), one by one."""
        return zip(self.module.parameters(), self.running.parameters(), strict=True)

    def take_gradients(self) -> None:
        """Move the copies' gradients to the weights."""
        for weight, running in self.pairs():
            if running is not weight:
                weight.grad, running.grad = running.grad.to(weight.dtype), None

    @torch.no_grad()
    def sync(self) -> None:
        """Make the copies equal to the weights; needed after a step and after weights were loaded."""
        for weight, running in self.pairs():
            if running is not weight:
                running.copy_(weight)


def can_step_in_backward(optimizer: torch.optim.Optimizer) -> bool:
    """Whether each weight's step depends on its own gradient alone and is written here: SGD without dampening."""
    return type(optimizer) is torch.optim.SGD and not optimizer.defaults["dampening"]


def step_in_backward(weights: MasterWeights, optimizer: torch.optim.SGD) -> None:
    """Update each weight within the backward pass, as soon as its gradient is there, which is freed at once.

    The numbers are those of a step at the end, but the gradients of all weights are never held together.
    `optimizer.step()` then finds no gradient and tells schedulers that a step was made.
    """
    weights.step_in_backward = True
    running = dict(weights.pairs())
    for index, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            running[weight].register_post_accumulate_grad_hook(functools.partial(_sgd_step, optimizer, weight, index))


@torch.no_grad()
def _sgd_step(optimizer: torch.optim.SGD, weight: nn.Parameter, index: int, running: nn.Parameter) -> None:
    """SGD's step of one weight, with the options of parameter group `index`, by the gradient of what ran.

    A copy's gradient is widened, used and narrowed CHUNK by CHUNK on a CPU: whole ones would go through memory four
    times, and each take fresh memory for its fp32 version.
    """
    gradient, running.grad = running.grad, None
    group = optimizer.param_groups[index]
    tensors = [weight, running, gradient]
    if group["momentum"]:
        state = optimizer.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        tensors.append(state["momentum_buffer"])
    options = {name: group[name] for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov", "maximize")}
    fused = weight.dtype == torch.float32  # PyTorch 2.9 leaves half-precision elements as they are
    whole = running is weight or weight.device.type != "cpu" or not weight.is_contiguous()
    parts = [tensors] if whole else zip(*(tensor.flatten().split(CHUNK) for tensor in tensors), strict=True)
    for weight_part, running_part, gradient_part, *momentum in parts:
        sgd([weight_part], [gradient_part.to(weight.dtype)], momentum or [None], fused=fused, **options)
        if running is not weight:
            running_part.copy_(weight_part)


def update(
    loss: Tensor,
    weights: MasterWeights,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    keep_gradients: bool = False,
) -> None:
    """Backward pass and step for a scalar loss. With a scaled loss, a step whose gradients overflow is left out.

    keep_gradients: the weights' `.grad` stays until the next step, to be looked at.
    """
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if weights.step_in_backward:
        optimizer.step()  # finds no gradient
        return
    weights.take_gradients()
    scaler.step(optimizer)
    scaler.update()
    if not keep_gradients:
        optimizer.zero_grad()
    weights.sync()


def sample(module: nn.Module) -> list[Tensor]:
    """Up to about SAMPLE elements of each parameter, for `moved_share`."""
    samples = []
    for p in module.parameters():
        stride = p.numel() // SAMPLE
        stride += stride % 2 == 0  # an odd stride goes through all columns
        samples.append(p.detach().flatten()[::stride].clone())
    return samples


def moved_share(module: nn.Module, before: list[Tensor]) -> float:
    """The share of the parameters' elements that differ from `before`, an earlier `sample` of them; 0 to 1."""
    moved = total = 0.0
    for p, now, then in zip(module.parameters(), sample(module), before, strict=True):
        moved += p.numel() * float((now != then).float().mean())
        total += p.numel()
    return moved / total
