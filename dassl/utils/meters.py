from collections import defaultdict

import torch


class AverageMeter:
    """The last value and the running average (with `ema` an exponential one, weight 0.9 on the past).

    Takes numbers and one-element tensors, for which the host waits only when `val`, `avg` or `sum` is read.
    """

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self._val = self._avg = self._sum = 0
        self.count = 0

    def update(self, val, n=1):
        self._val = val.detach().double() if isinstance(val, torch.Tensor) else val
        self._sum = self._sum + self._val * n
        self.count += n
        self._avg = 0.9 * self._avg + 0.1 * self._val if self.ema else self._sum / self.count

    @property
    def val(self):
        return _number(self._val)

    @property
    def avg(self):
        return _number(self._avg)

    @property
    def sum(self):
        return _number(self._sum)


def _number(value):
    return value.item() if isinstance(value, torch.Tensor) else value


class MetricMeter:
    """Averages of named numbers; `str()` gives the middle of a progress line."""

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError("Input to MetricMeter.update() must be a dictionary")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
