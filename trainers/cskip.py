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


def keep_probability(classes, ratio, lambda_, max_top=0, decay="paper"):
    """Probability that the class of rank 1, 2, ..., C is kept: (C,), non-increasing (Eq. 7).

    `max_top` caps the number of classes kept for sure (0: no cap, as in the paper; the released code has 50).
    A ratio of 1 or more keeps every class whatever the cap, as in the released code.
    """
    rank = torch.arange(1, classes + 1)
    top = ratio * classes if decay == "paper" else math.ceil(ratio * classes)
    if max_top:
        top = min(top, max_top)
    if ratio >= 1 or top >= classes:
        return torch.ones(classes)
    if decay == "paper":
        return torch.where(rank <= top, 1.0, torch.exp(-lambda_ * (rank - top)))
    rest = classes - top
    floor = math.exp(-5 / lambda_)
    x = 5 * (rank - top - 1) / max(rest - 1, 1)
    tail = (torch.exp(-x / lambda_) - floor) / (1 - floor)
    if rest == 1:
        tail = torch.zeros(classes)  # 0 / 0 in the released code, which drops the class
    return torch.where(rank <= top, 1.0, tail)


def ranking(scores, labels, scope="image"):
    """scores (B, C), labels (B,) -> classes from the best to the worst, true ones first: (B, C), or (1, C)."""
    scores = scores.scatter(1, labels[:, None], float("inf"))
    if scope == "batch":
        scores = scores.amax(0, keepdim=True)
    return scores.argsort(dim=1, descending=True, stable=True)


def sample_classes(scores, labels, probability, generator, scope="image"):
    """The sampler of Eq. 7: scores (B, C) on any device; labels (B,), probability (C,) by rank, generator on the CPU.

    Returns the kept classes, sorted (K,), and which of them each image keeps, bool (B, K), or None if all images keep
    the same. True classes are always kept. The host knows K without asking the device, except in the scope "image",
    where K is what the images' own sets add up to.
    """
    order = ranking(scores, labels.to(scores.device), scope)  # (B, C) or (1, C)
    kept_ranks = torch.rand(order.shape, generator=generator) < probability
    kept_ranks[:, : 1 if scope == "image" else len(labels.unique())] = True  # the true classes
    if scope == "batch":
        ranks = kept_ranks[0].nonzero()[:, 0].to(order.device)
        return order[0, ranks].sort().values, None
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, kept_ranks.to(order.device))  # (B, C)
    classes = kept.any(dim=0).nonzero()[:, 0]
    return classes, kept[:, classes]


def masked_cross_entropy(logits, labels, kept=None):
    """Cross-entropy over each image's own classes: logits (B, K), labels (B,), kept bool (B, K) or None for all
    -> scalar (Eq. 1)."""
    if kept is not None:
        logits = logits.masked_fill(~kept, float("-inf"))
    return F.cross_entropy(logits, labels)
