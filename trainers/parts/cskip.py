"""Class-wise skipping (CSkip) of Skip Tuning, CVPR 2025, Eq. 7: which classes enter an image's loss.

Pure functions of scores, labels and a generator. B images, C classes, K classes kept by at least one image.

Classes are ranked by their similarity to the image, the true class always first. The best ratio * C are kept, the
others with a probability that falls with their rank. Paper and released code differ in the details, so each has a name:

    decay   paper      e^(-lambda (rank - ratio C)), Eq. 7: a larger lambda keeps fewer
            official   exponential density of scale lambda over [0, 5], stretched to 1..0: a larger lambda keeps more
    scope   image      each image has its own classes; the loss masks the others
            batch      one ranking for the batch, by the best similarity over its images
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def keep_probability(num_classes: int, ratio: float, lambda_: float, max_top: int = 0, decay: str = "paper") -> Tensor:
    """Probability that the class of rank 1, 2, ..., C is kept: (C,), fp32, non-increasing (Eq. 7).

    `max_top` caps the number of classes kept for sure (0: no cap, as in the paper; the released code has 50).
    A ratio of 1 or more keeps every class whatever the cap, as in the released code.
    """
    rank = torch.arange(1, num_classes + 1)
    top = ratio * num_classes if decay == "paper" else math.ceil(ratio * num_classes)
    if max_top:
        top = min(top, max_top)
    if ratio >= 1 or top >= num_classes:
        return torch.ones(num_classes)
    if decay == "paper":
        return torch.where(rank <= top, 1.0, torch.exp(-lambda_ * (rank - top)))
    # The released code samples the density at equal steps over [0, 5]: the first rank behind the top at 0, where it
    # is highest, the last one at 5. Stretched to 1..0, the first is kept for sure and the last never.
    rest = num_classes - top
    floor = math.exp(-5 / lambda_)
    x = 5 * (rank - top - 1) / max(rest - 1, 1)
    tail = (torch.exp(-x / lambda_) - floor) / (1 - floor)
    if rest == 1:
        tail = torch.zeros(num_classes)  # 0 / 0 in the released code, which drops the class
    return torch.where(rank <= top, 1.0, tail)


def mean_kept(num_classes: int, ratio: float, lambda_: float = 0.3, max_top: int = 50) -> float:
    """How many classes an image keeps on average with the paper's decay."""
    return float(keep_probability(num_classes, ratio, lambda_, max_top).sum())


def ranking(scores: Tensor, labels: Tensor, scope: str = "image") -> Tensor:
    """scores (B, C), labels (B,) -> classes from the best to the worst, true ones first: (B, C), or (1, C)."""
    scores = scores.scatter(1, labels[:, None], float("inf"))
    if scope == "batch":
        scores = scores.amax(0, keepdim=True)
    return scores.argsort(dim=1, descending=True, stable=True)


def sample_classes(
    scores: Tensor, labels: Tensor, probability: Tensor, generator: torch.Generator, scope: str = "image"
) -> tuple[Tensor, Tensor | None]:
    """The sampler of Eq. 7: scores (B, C) on any device; labels (B,), probability (C,) by rank, generator on the CPU.

    Returns the kept classes, sorted (K,), and which of them each image keeps, bool (B, K), or None if all images keep
    the same. True classes are always kept. The host draws the ranks and hands them over without waiting; it knows K
    without asking the device, except in the scope "image", where K is the size of the union of the images' own sets:
    the one question of a step.
    """
    order = ranking(scores, labels.to(scores.device, non_blocking=True), scope)  # (B, C) or (1, C)
    kept_ranks = torch.rand(order.shape, generator=generator) < probability
    kept_ranks[:, : 1 if scope == "image" else len(labels.unique())] = True  # the true classes
    if scope == "batch":
        ranks = kept_ranks[0].nonzero()[:, 0].to(order.device, non_blocking=True)
        return order[0, ranks].sort().values, None
    kept_ranks = kept_ranks.to(order.device, non_blocking=True)
    by_image = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, kept_ranks)  # (B, C)
    kept = by_image.any(dim=0).nonzero()[:, 0]
    return kept, by_image[:, kept]


def masked_cross_entropy(logits: Tensor, labels: Tensor, by_image: Tensor | None = None) -> Tensor:
    """Cross-entropy over each image's own classes: logits (B, K), labels (B,), by_image bool (B, K) or None for all
    -> scalar (Eq. 1)."""
    if by_image is not None:
        logits = logits.masked_fill(~by_image, float("-inf"))
    return F.cross_entropy(logits, labels)
