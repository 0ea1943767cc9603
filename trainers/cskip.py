"""Class-wise skipping (CSkip) of Skip Tuning, CVPR 2025, Eq. 7: which classes enter an image's loss.

Pure functions of scores, labels and uniform draws. B images, C classes, K classes kept by at least one image.

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
    """scores (B, C), labels (B,) -> rank of each class from 0, true classes first: (B, C), or (1, C) for the batch."""
    scores = scores.scatter(1, labels[:, None], float("inf"))
    if scope == "batch":
        scores = scores.amax(0, keepdim=True)
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def keep_classes(scores, labels, probability, scope="image", draws=None):
    """The sampler of Eq. 7: scores (B, C), labels (B,), probability (C,) by rank -> bool (B, C), labels always kept.

    `draws` (C,), uniform in [0, 1), one per rank, keeps the same ranks in every step (the released code draws once per
    run); None draws anew for each image, or once for a batch that shares its classes.
    """
    rank = ranking(scores, labels, scope)  # (B, C) or (1, C)
    if draws is None:
        draws = torch.rand(rank.shape).to(scores.device)
        kept = draws < probability[rank]
    else:
        kept = (draws < probability)[rank]
    return kept.expand(len(labels), -1).scatter(1, labels[:, None], True)


def masked_cross_entropy(logits, labels, kept):
    """Cross-entropy over each image's own classes: logits (B, K), labels (B,), kept bool (B, K) -> scalar (Eq. 1)."""
    return F.cross_entropy(logits.masked_fill(~kept, float("-inf")), labels)
