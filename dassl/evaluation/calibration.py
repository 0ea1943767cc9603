"""Whether a model is as sure as it is right: errors of calibration, Brier score, likelihood, and one temperature.

p_i is an image's confidence, the softmax probability of its prediction, and a_i is 1 where the prediction is right. The
softmax is computed in fp64. docs/CALIBRATION.md has the definitions and where others differ.
"""

import torch
from torch import Tensor

BINS = 15  # of ace15, mce15 and the reliability diagram
TEMPERATURES = (0.01, 100.0)  # between which `fit_temperature` looks


class Calibration:
    """Collects four numbers of each image, never its C logits; `numbers()` makes the figures of them."""

    def __init__(self):
        self._images = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Logits (B, C), of which some may be -inf, and labels (B,)."""
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        own = log_p.gather(1, labels[:, None]).squeeze(1)
        brier = (p * p).sum(dim=1) - 2 * own.exp() + 1  # = sum_c (p_c - y_c)^2
        right = logits.argmax(dim=1) == labels
        self._images.append(torch.stack([p.amax(dim=1), right.double(), -own, brier], dim=1))

    def numbers(self) -> dict:
        """{"ece10", "ece15", "ace15", "mce15", "mean_confidence": in percent, "brier", "nll", "bins15": see `bins`}.

        nll is None where some image's class had the probability 0.
        """
        confidence, right, nll, brier = torch.cat(self._images).cpu().t().contiguous()
        found = bins(confidence, right, BINS)
        nll = nll.mean().item()
        return {
            "ece10": expected_error(bins(confidence, right, 10)),
            "ece15": expected_error(found),
            "ace15": adaptive_error(confidence, right, BINS),
            "mce15": max(abs(gap) for gap in gaps(found)),
            "brier": brier.mean().item(),
            "nll": nll if nll < float("inf") else None,
            "mean_confidence": 100 * confidence.mean().item(),
            "bins15": found,
        }


def bins(confidence: Tensor, right: Tensor, number: int) -> dict[str, list]:
    """Bins of equal width, [low, high) and the last one closed at 1.

    Args: confidence (N,) from 0 to 1, right (N,) of 0 and 1, both fp64.
    Returns: {"count": images, "confidence": their mean, "accuracy": their mean, both in percent and None in an empty
        bin}, lists of length `number`.
    """
    edges = torch.linspace(0, 1, number + 1, dtype=confidence.dtype)
    place = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=number - 1)
    count = torch.bincount(place, minlength=number)

    def means(values: Tensor) -> list:
        sums = torch.zeros(number, dtype=values.dtype).index_add_(0, place, values)
        return [100 * (total / n).item() if n else None for total, n in zip(sums, count, strict=True)]

    return {"count": count.tolist(), "confidence": means(confidence), "accuracy": means(right)}


def gaps(found: dict[str, list]) -> list[float]:
    """Accuracy minus confidence of each of the `bins`, in percent; 0 in an empty one."""
    pairs = zip(found["accuracy"], found["confidence"], strict=True)
    return [0.0 if accuracy is None else accuracy - confidence for accuracy, confidence in pairs]


def expected_error(found: dict[str, list]) -> float:
    """ECE: the mean of |accuracy - confidence| of the `bins`, weighted by their images; in percent."""
    weighted = [n * abs(gap) for n, gap in zip(found["count"], gaps(found), strict=True)]
    return sum(weighted) / sum(found["count"])


def adaptive_error(confidence: Tensor, right: Tensor, number: int) -> float:
    """ACE: the same for bins of equally many images, which differ by one at most; in percent.

    Images of one confidence share their accuracy, so that their order doesn't matter where a bin ends among them.
    """
    values, place = confidence.unique(return_inverse=True)  # sorted
    shared = torch.zeros_like(values).index_add_(0, place, right) / torch.bincount(place)
    order = place.argsort()
    confidence, right = confidence[order], shared[place[order]]
    parts = zip(confidence.tensor_split(number), right.tensor_split(number), strict=True)
    return 100 * sum(abs((right.sum() - confidence.sum()).item()) for confidence, right in parts) / len(order)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T between TEMPERATURES whose softmax(logits / T) has the smallest mean negative log-likelihood (Guo et al.,
    ICML 2017).

    Args: logits (N, C), labels (N,).
    """
    logits = logits.double().clamp(min=-1e6)  # a class left out has -inf
    wanted = logits.gather(1, labels[:, None]).mean()
    low, high = (1 / value for value in reversed(TEMPERATURES))
    for _ in range(60):  # the likelihood is concave in 1 / T: bisection finds where its slope is 0
        middle = (low * high) ** 0.5
        slope = wanted - (logits.mul(middle).softmax(dim=1) * logits).sum(dim=1).mean()
        low, high = (middle, high) if slope >= 0 else (low, middle)
    return 1 / middle
