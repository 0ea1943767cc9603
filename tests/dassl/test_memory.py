"""Peak memory: bytes counted by hand against those that the meter saw."""

import gc
import mmap

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dassl.engine.memory import STEPS, LiveTensors, PeakMemory, peak_rss_mb

CPU = torch.device("cpu")
KB = 1024


def kilobytes(number):
    """A tensor of so many KiB."""
    return torch.ones(number * KB // 4)


def above(live):
    """KiB that `live` gained since it was entered, now and at its peak."""
    return (live.now - live.start) / KB, (live.peak - live.start) / KB


@pytest.fixture(scope="module", autouse=True)
def what_other_tests_left_is_gone():
    """And no cycle of theirs is broken up, and its tensors freed, while a meter runs."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def live():
    with LiveTensors() as live:
        live.start = live.now
        yield live


def test_tensors_that_exist_on_entry_count_once_whatever_shares_their_storage():
    with LiveTensors() as live:
        before = live.now
    whole = kilobytes(40)
    views = whole[::2], whole.view(2, -1), nn.Parameter(whole), whole.detach()
    with LiveTensors() as live:
        assert live.now - before == live.peak - before == 40 * KB
    del views


def test_tensors_that_only_pretend_to_be_on_the_cpu_have_no_bytes():
    with LiveTensors() as live:
        before = live.now
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbolic = mode.from_tensor(kilobytes(10), symbolic_context=StatelessSymbolicContext([DimDynamic.DYNAMIC]))
    assert symbolic.device == CPU
    with LiveTensors() as live:
        assert type(live.now) is int and live.now == before


def test_a_result_counts_until_it_is_freed(live):
    a = kilobytes(10)
    assert above(live) == (10, 10)
    b = a + 1
    assert above(live) == (20, 20)
    del a
    assert above(live) == (10, 20)
    a = b * 2
    assert above(live) == (20, 20)
    del a, b
    assert above(live) == (0, 20)


def test_views_and_in_place_operations_take_nothing(live):
    a = kilobytes(10)
    parts = a.view(2, -1), a[:7], a.unflatten(0, (16, -1)).transpose(0, 1), *a.chunk(2)
    a.add_(1).mul_(2)
    assert above(live) == (10, 10)
    del a
    assert above(live) == (10, 10)  # a view holds the whole storage
    del parts
    assert above(live) == (0, 10)


def test_operations_with_several_results_count_them_all(live):
    values, indices = kilobytes(4).view(32, 32).sort()
    assert above(live) == (4 + 8, 4 + 4 + 8)  # int64
    del values, indices
    assert above(live)[0] == 0


def test_what_autograd_keeps_for_the_backward_pass_counts_until_that_ran(live):
    a = kilobytes(10).requires_grad_()
    b = a.exp()  # saves its result
    c = b.sin()  # saves its argument
    total = c.sum()
    assert above(live)[0] == pytest.approx(30, abs=0.1)
    del b, c
    assert above(live)[0] == pytest.approx(20, abs=0.1)  # c is gone; b is held by the graph alone
    total.backward()
    assert above(live)[0] == pytest.approx(20, abs=0.1)  # a and its gradient
    a.grad = None
    assert above(live)[0] == pytest.approx(10, abs=0.1)


def test_a_training_step_counted_by_hand():
    """Weights W of two linear layers, as much in gradients and momentum; at most both activations besides."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, foreach=False)
    weights, x = 2 * 16 * KB, torch.randn(64, 64)  # 16 KiB
    with LiveTensors() as live:
        start = live.now
        loss = model(x).square().sum()
        forward = live.now - start
        assert forward == pytest.approx(2 * 16 * KB, abs=64)  # ReLU's and the last layer's output
        loss.backward()
        assert live.now - start == pytest.approx(weights, abs=64)  # activations are freed, gradients have come
        optimizer.step()
        assert live.now - start == pytest.approx(2 * weights, abs=64)
        optimizer.zero_grad()
        assert live.now - start == pytest.approx(weights, abs=64)


def test_gradients_left_by_an_earlier_step_count_on_entry():
    with LiveTensors() as live:
        before = live.now
    weight = nn.Parameter(kilobytes(10))
    with LiveTensors():
        (weight * 2).sum().backward()
    with LiveTensors() as live:
        assert live.now - before == 20 * KB


def test_memory_that_is_not_pytorchs_own_does_not_count(tmp_path, live):
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(10 * KB)
        tensor = torch.frombuffer(mmap.mmap(file.fileno(), 10 * KB), dtype=torch.float32)
    assert above(live) == (0, 0)
    copied = tensor.clone()
    assert above(live) == (10, 10)
    del copied


def test_two_meters_do_not_disturb_each_other():
    with LiveTensors() as first:
        start = first.now
        a = kilobytes(10)
        with LiveTensors() as second:
            inner = second.now
            b = kilobytes(5)
            assert second.now - inner == 5 * KB
        del a, b
        assert first.now - start <= 0
    assert second.now - inner == -10 * KB  # what it counted on entry went as well


def test_peak_of_a_run_is_that_of_its_hungriest_step():
    memory = PeakMemory(on_cpu=True)
    assert memory.mb is None
    with memory.step(CPU):
        pass
    quiet = memory.mb
    with memory.step(CPU):
        kilobytes(4096)
    assert memory.mb - quiet == pytest.approx(4096 * KB / 1e6, abs=1e-3)


def measured_steps(memory, steps):
    """For each of so many steps on the CPU, whether LiveTensors watches it."""
    measured = []
    for _ in range(steps):
        with memory.step(CPU):
            kilobytes(1)
            measured.append(torch.utils._python_dispatch._get_current_dispatch_mode() is not None)
    return measured


def test_on_a_cpu_only_the_first_steps_are_measured_and_only_on_request():
    assert measured_steps(PeakMemory(on_cpu=True), STEPS + 2) == [True] * STEPS + [False] * 2
    unasked = PeakMemory()
    assert measured_steps(unasked, STEPS) == [False] * STEPS and unasked.mb is None


def test_on_another_device_nothing_is_measured_rather_than_the_tensors_of_the_cpu():
    memory = PeakMemory(on_cpu=True)
    with memory.step(torch.device("meta")):
        kilobytes(1)
    assert memory.mb is None


def test_an_interrupted_step_leaves_no_meter_behind():
    memory = PeakMemory(on_cpu=True)
    with pytest.raises(KeyboardInterrupt), memory.step(CPU):
        raise KeyboardInterrupt
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with memory.step(CPU):
        pass
    assert memory.mb is not None


def test_the_peak_of_the_process_is_in_mb_and_never_falls():
    before = peak_rss_mb()
    block = torch.ones(64 * KB * KB // 4)
    held = peak_rss_mb()
    del block
    assert 20 < before <= held <= peak_rss_mb() < 1e5  # PyTorch alone takes more than 20 MB
    assert held >= 64 * KB * KB / 1e6
