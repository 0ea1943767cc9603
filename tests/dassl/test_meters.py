"""Meters of the progress line: numbers and tensors alike, and nothing is read from a device before it is printed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.utils import AverageMeter, MetricMeter


class NoReading(TorchDispatchMode):
    """Fails where the value of a tensor is asked for: on a GPU the host would wait there."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return operation(*args, **(kwargs or {}))


def test_no_reading_notices_reading():
    with pytest.raises(AssertionError, match="was read"), NoReading():
        torch.tensor(1.0).item()


@pytest.mark.parametrize("make", [float, torch.tensor, lambda value: torch.tensor([value], dtype=torch.float16)])
@pytest.mark.parametrize("ema", [False, True])
def test_numbers_and_tensors_give_the_same_plain_numbers(make, ema):
    meter, expected = AverageMeter(ema=ema), 0.0
    for value, times in ((1.0, 1), (4.0, 3), (-2.5, 2)):
        meter.update(make(value), times)
        expected = 0.9 * expected + 0.1 * value
    assert (meter.val, meter.sum, meter.count) == (-2.5, 8.0, 6)
    assert meter.avg == pytest.approx(expected if ema else 8 / 6)
    assert all(isinstance(number, float) for number in (meter.val, meter.avg, meter.sum))


def test_a_fresh_or_reset_meter_reads_zero():
    meter = AverageMeter()
    assert (meter.val, meter.avg, meter.sum, meter.count) == (0, 0, 0, 0)
    meter.update(torch.tensor(3.0))
    meter.reset()
    assert (meter.val, meter.avg, meter.sum, meter.count) == (0, 0, 0, 0)


def test_nothing_is_read_before_it_is_asked_for():
    meter, ema = MetricMeter(), AverageMeter(ema=True)
    with NoReading():
        for value in (1.0, 2.0):
            meter.update({"loss": torch.tensor(value), "acc": torch.tensor([50 * value])})
            ema.update(torch.tensor(value), 4)
    assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"


def test_a_meter_holds_neither_the_graph_nor_the_tensor_it_was_given():
    meter, value = AverageMeter(), torch.ones((), requires_grad=True)
    loss = value * 3
    meter.update(loss)
    with torch.no_grad():
        loss.zero_()
    assert meter.val == meter.avg == 3
    assert not meter._sum.requires_grad


def test_a_long_average_of_half_precision_numbers_does_not_drift():
    meter = AverageMeter()
    for _ in range(5000):
        meter.update(torch.tensor(0.1, dtype=torch.float16))
    assert meter.avg == pytest.approx(float(torch.tensor(0.1, dtype=torch.float16)), rel=1e-9)
