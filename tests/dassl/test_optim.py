import io

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.radam import RAdam
from dassl.utils import UserError

COSINE = [
    2e-3,
    1.9511e-3,
    1.8090e-3,
    1.5878e-3,
    1.3090e-3,
    1.0e-3,
    6.9098e-4,
    4.1221e-4,
    1.9098e-4,
    4.8943e-5,
]


def options(**changes):
    optim = get_cfg_default().OPTIM
    optim.update(NAME="sgd", LR=2e-3, MAX_EPOCH=10, LR_SCHEDULER="cosine", **{})
    optim.update(changes)
    return optim


def build(optim):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    optimizer = build_optimizer([weight], optim)
    return optimizer, build_lr_scheduler(optimizer, optim)


def rates(optimizer, scheduler, epochs):
    """Learning rate seen in each epoch."""
    seen = []
    for _ in range(epochs):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


CONSTANT = {"WARMUP_TYPE": "constant"}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"WARMUP_EPOCH": 1, **CONSTANT}, [1e-5, *COSINE[:9]]),
        ({}, COSINE),
        ({"WARMUP_EPOCH": 3, **CONSTANT}, [1e-5, 1e-5, 1e-5, *COSINE[:7]]),
        ({"WARMUP_EPOCH": 3}, [1e-5, 6.6667e-4, 1.3333e-3, *COSINE[:7]]),
        ({"WARMUP_EPOCH": 1}, [1e-5, *COSINE[:9]]),
        ({"WARMUP_EPOCH": 3, "WARMUP_RECOUNT": False, **CONSTANT}, [1e-5] * 3 + [2e-3, 1.6489e-3, 1.2596e-3]),
        ({"LR_SCHEDULER": "single_step"}, [2e-3] * 10 + [2e-4] * 2),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": [9, 2]}, [2e-3] * 2 + [2e-4] * 2 + [2e-5] * 2),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 3)}, [2e-3] + [2e-4] * 2 + [2e-5] * 2),
    ],
)
def test_learning_rates_are_those_of_upstream(changes, expected):
    seen = rates(*build(options(**changes)), len(expected))
    assert seen == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("scheduler", ["cosine", "single_step", "multi_step"])
def test_a_resumed_schedule_continues_the_uninterrupted_one(stop, scheduler):
    optim = options(WARMUP_EPOCH=2, LR_SCHEDULER=scheduler, STEPSIZE=[3])
    full = rates(*build(optim), 10)
    first = build(optim)
    rates(*first, stop)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = build(optim)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):  # plain numbers only
        part.load_state_dict(state)
    assert rates(*second, 10 - stop) == full[stop:]


def test_a_schedule_saved_by_upstream_with_its_successor_object_continues():
    optim = options(WARMUP_EPOCH=1, **CONSTANT)
    full = rates(*build(optim), 10)
    first = build(optim)
    rates(*first, 4)
    old = {**first[1].state_dict(), "successor": first[1].successor}
    assert isinstance(old["successor"], CosineAnnealingLR)
    second = build(optim)
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(old)
    assert rates(*second, 6) == full[4:]


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"])
def test_every_optimizer_takes_the_plain_step_of_pytorch(name):
    plain = {
        "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=5e-4),
        "amsgrad": lambda p: torch.optim.Adam(p, 0.1, weight_decay=5e-4, amsgrad=True),
        "sgd": lambda p: torch.optim.SGD(p, 0.1, weight_decay=5e-4, momentum=0.9),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, weight_decay=5e-4, momentum=0.9, alpha=0.99),
        "radam": lambda p: RAdam(p, 0.1, weight_decay=5e-4),
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=5e-4),
    }[name]
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = build_optimizer(ours, options(NAME=name, LR=0.1)), plain(theirs.parameters())
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(1, 4)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_a_parameter_may_get_its_first_gradient_late():
    """The fused SGD kernel fails when only some of the momentum buffers exist."""
    ours, theirs = ([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))] for _ in range(2))
    optimizers = build_optimizer(ours, options(LR=0.1)), torch.optim.SGD(theirs, 0.1, 0.9, weight_decay=5e-4)
    for params, optimizer in zip((ours, theirs), optimizers, strict=True):
        params[0].grad = torch.ones(2)
        optimizer.step()
        params[1].grad = torch.ones(2)
        optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_staged_rates_go_by_direct_children_and_param_groups_overrule_them():
    model = nn.ModuleDict({"old": nn.Linear(2, 2), "new": nn.Linear(2, 2)})
    staged = options(STAGED_LR=True, NEW_LAYERS=["new"])
    groups = build_optimizer(model, staged).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([2e-4, 2e-3])
    assert groups[1]["params"][0] is model["new"].weight
    with pytest.warns(UserWarning, match="STAGED_LR"):
        groups = build_optimizer(model, staged, [{"params": model["old"].parameters(), "lr": 1.0}]).param_groups
    assert [group["lr"] for group in groups] == [1.0]
    with pytest.raises(TypeError):
        build_optimizer(list(model.parameters()), staged)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"NAME": "sdg"}, "optim must be one of .*, but got sdg"),
        ({"LR_SCHEDULER": "cosin"}, "LR_SCHEDULER .*cosine"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "const"}, "WARMUP_TYPE .*constant"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}, "STEPSIZE"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (1.5,)}, "STEPSIZE"),
    ],
)
def test_unknown_names_are_user_errors_and_value_errors(changes, text):
    with pytest.raises(ValueError, match=text) as caught:
        build(options(**changes))
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_element_of_a_parameter_moves_in_every_precision(name, dtype):
    """PyTorch 2.9's fused SGD leaves most elements of half-precision parameters on the CPU as they are."""
    parameter = nn.Parameter(torch.ones(129, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    build_optimizer([parameter], options(NAME=name, LR=0.1)).step()
    assert (parameter < 0.95).all()
