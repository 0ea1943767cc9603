"""Upstream's own implementations, by now part of PyTorch."""

from torch.optim import AdamW, RAdam

__all__ = ["AdamW", "PlainRAdam", "RAdam"]

PlainRAdam = RAdam
