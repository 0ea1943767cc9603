"""Numbers beside accuracy against torchmetrics, scikit-learn and plain loops: random cases, with ties, p = 1 and
empty bins.

Importing torchmetrics takes ten seconds, so that everything of it stands here.
"""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from dassl.evaluation.calibration import Calibration
from results.openworld import auroc, average_precision, false_positives

CASES = 200


def case(number):
    """Logits (N, C) and labels (N,); among them sure ones, equal ones and one class."""
    draw = torch.Generator().manual_seed(number)
    images, classes = (int(torch.randint(low, high, (), generator=draw)) for low, high in ((1, 80), (1, 12)))
    scale = 10 ** (3 * torch.rand((), generator=draw) - 0.5)
    logits = scale * torch.randn(images, classes, generator=draw)
    if number % 3 == 0:
        logits = logits.round()  # ties between classes, and between images
    if number % 4 == 0:
        logits[::2, 0] = 2000.0  # p = 1 exactly
    if number % 5 == 0:
        logits[:] = logits[:1]  # one bin holds all images
    return logits.double(), torch.randint(classes, (images,), generator=draw)


def as_torchmetrics_bins(p):
    """p (N, C) in its float32, where a confidence on an edge may fall below it: it is put clearly above. Besides, p = 1
    has a bin of its own there, behind the last: it is put into that one; and it takes at least two classes."""
    p = torch.cat([p, torch.zeros(len(p), max(0, 2 - p.shape[1]))], dim=1).float()
    for edges in (10, 15):
        near = ((p * edges).round() - p * edges).abs() < 1e-5
        p = torch.where(near & (p == p.amax(dim=1, keepdim=True)), (p * edges).round() / edges + 3e-7, p)
    return p.clamp(max=1 - 1e-7)


def test_calibration_is_that_of_torchmetrics_and_scikit_learn():
    for number in range(CASES):
        logits, labels = case(number)
        found, p = Calibration(), logits.softmax(dim=1)
        found.add(logits, labels)
        found = found.numbers()
        classes = p.shape[1]
        for name, norm, number_of_bins in (("ece10", "l1", 10), ("ece15", "l1", 15), ("mce15", "max", 15)):
            wanted = multiclass_calibration_error(
                as_torchmetrics_bins(p), labels, max(2, classes), n_bins=number_of_bins, norm=norm
            )
            assert found[name] / 100 == pytest.approx(wanted.item(), abs=1e-6), (number, name)
        if classes > 1:
            clipped = np.clip(p.numpy(), np.finfo(float).eps, 1)  # it would clip, too
            expected = log_loss(labels.numpy(), clipped / clipped.sum(1, keepdims=True), labels=range(classes))
            if (p.gather(1, labels[:, None]) > 1e-15).all():
                assert found["nll"] == pytest.approx(expected, abs=1e-6), number
        one_hot = np.eye(classes)[labels]
        assert found["brier"] == pytest.approx(((p.numpy() - one_hot) ** 2).sum(axis=1).mean(), abs=1e-9), number


def test_bins_of_equal_numbers_are_scikit_learns_quantiles():
    for number in range(CASES):
        draw = torch.Generator().manual_seed(number)
        logits, labels = 3 * torch.randn(150, 4, generator=draw), torch.randint(4, (150,), generator=draw)
        found = Calibration()
        found.add(logits, labels)
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        right = (predicted == labels).numpy()
        true, mean = calibration_curve(right, confidence.numpy(), n_bins=15, strategy="quantile")
        assert len(true) == 15  # of ten images each
        assert found.numbers()["ace15"] == pytest.approx(100 * np.abs(true - mean).mean(), abs=1e-6)


def plain_adaptive_error(confidence, right):
    """In percent. An image of a group of equal confidence is right to the share of those in it that are."""
    ranked = sorted((p, right[p == confidence].mean()) for p in confidence)
    total, begin = 0.0, 0
    for number in range(15):
        size = len(ranked) // 15 + (number < len(ranked) % 15)  # the first ones have one more
        part, begin = ranked[begin : begin + size], begin + size
        total += abs(sum(share - p for p, share in part))
    return 100 * total / len(ranked)


def test_bins_of_equal_numbers_are_those_of_a_plain_loop_with_ties_and_empty_bins():
    for number in range(CASES):
        logits, labels = case(number)
        found, order = Calibration(), torch.randperm(len(labels), generator=torch.Generator().manual_seed(number))
        found.add(logits[order], labels[order])
        confidence = logits.log_softmax(dim=1).exp().amax(dim=1).numpy()
        expected = plain_adaptive_error(confidence, (logits.argmax(dim=1) == labels).numpy())
        assert found.numbers()["ace15"] == pytest.approx(expected, abs=1e-6), number


def two_groups(number):
    """Scores of positive and negative images; every third case has ties."""
    draw = np.random.default_rng(number)
    positive, negative = draw.normal(0.7, 1, draw.integers(1, 60)), draw.normal(0, 1, draw.integers(1, 60))
    if number % 3 == 0:
        positive, negative = positive.round(), negative.round()
    if number % 10 == 0:
        negative[:] = positive[0]
    return positive, negative


def test_areas_are_those_of_scikit_learn():
    for number in range(CASES):
        positive, negative = two_groups(number)
        truth = [1] * len(positive) + [0] * len(negative)
        scores = [*positive, *negative]
        assert auroc(positive, negative) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
        assert average_precision(positive, negative) == pytest.approx(average_precision_score(truth, scores), abs=1e-9)


def plain_fpr95(accepted, others):
    """Every threshold is tried; the one that lets through fewest of the others counts."""
    found = []
    for threshold in {*accepted, *others}:
        if 100 * sum(score >= threshold for score in accepted) >= 95 * len(accepted):
            found.append(sum(score >= threshold for score in others) / len(others))
    return min(found)


def test_fpr95_is_that_of_a_plain_loop_by_both_conventions():
    for number in range(CASES):
        inside, outside = two_groups(number)
        assert false_positives(inside, outside) == pytest.approx(plain_fpr95(inside, outside))
        flagged = plain_fpr95(-outside, -inside)  # what is strange is looked for
        assert false_positives(-outside, -inside) == pytest.approx(flagged)
