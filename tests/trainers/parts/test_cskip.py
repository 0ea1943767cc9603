"""CSkip: the sampler of Eq. 7 in both readings, and the loss over each image's own classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainers.parts.cskip import keep_probability, masked_cross_entropy, ranking, sample_classes


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The probabilities -----------------------------------------------------------------------------------


def test_paper_decay_is_equation_7():
    p = keep_probability(10, 0.5, 0.3)
    assert p[:5].tolist() == [1.0] * 5
    expected = [math.exp(-0.3 * (rank - 5)) for rank in range(6, 11)]
    torch.testing.assert_close(p[5:], torch.tensor(expected))


def test_paper_decay_takes_r_times_m_as_it_is():
    p = keep_probability(5, 0.5, 1.0)  # r M = 2.5
    torch.testing.assert_close(p[2:], torch.exp(-torch.tensor([0.5, 1.5, 2.5])))


def test_official_decay_runs_from_one_to_zero_over_the_tail():
    p = keep_probability(24, 0.5, 0.3, decay="official")
    assert p[:13].tolist() == [1.0] * 13 and p[-1] == pytest.approx(0, abs=1e-6)
    floor = math.exp(-5 / 0.3)
    expected = [(math.exp(-(5 * k / 11) / 0.3) - floor) / (1 - floor) for k in range(12)]
    torch.testing.assert_close(p[12:], torch.tensor(expected))


@pytest.mark.parametrize(
    ("classes", "expected"), [(500, 77.4), (50, 27.0), (19, 11.1), (98, 52.4), (199, 59.4), (24, 13.3), (1000, 107.4)]
)
def test_official_decay_keeps_as_many_classes_as_the_released_code(classes, expected):
    p = keep_probability(classes, 0.5, 0.3, max_top=50, decay="official")
    assert p.sum().item() == pytest.approx(expected, abs=0.06)


def test_larger_lambda_keeps_fewer_by_the_paper_and_more_by_the_released_code():
    paper = [keep_probability(100, 0.5, value).sum() for value in (0.1, 0.3, 1.0)]
    official = [keep_probability(100, 0.5, value, decay="official").sum() for value in (0.1, 0.3, 1.0)]
    assert paper == sorted(paper, reverse=True) and official == sorted(official)


def test_cap_limits_what_is_kept_for_sure():
    assert (keep_probability(200, 0.5, 0.3, max_top=50) == 1).sum() == 50
    assert (keep_probability(200, 0.5, 0.3) == 1).sum() == 100


@pytest.mark.parametrize("decay", ["paper", "official"])
def test_ratio_one_keeps_every_class_whatever_the_cap(decay):
    assert keep_probability(200, 1.0, 0.3, max_top=50, decay=decay).tolist() == [1.0] * 200


@pytest.mark.parametrize(
    ("decay", "classes", "expected"),
    [
        ("paper", 1, [math.exp(-0.15)]),  # r M = 0.5; a true class is kept all the same
        ("paper", 2, [1.0, math.exp(-0.3)]),
        ("paper", 3, [1.0, math.exp(-0.15), math.exp(-0.45)]),  # r M = 1.5
        ("official", 1, [1.0]),
        ("official", 2, [1.0, 0.0]),  # 0 / 0 in the released code, which drops a tail of one
        ("official", 3, [1.0, 1.0, 0.0]),
        ("official", 4, [1.0, 1.0, 1.0, 0.0]),
        ("official", 5, [1.0, 1.0, 1.0, 1.0, 0.0]),  # EuroSAT's base classes
    ],
)
def test_few_classes(decay, classes, expected):
    p = keep_probability(classes, 0.5, 0.3, decay=decay)
    torch.testing.assert_close(p, torch.tensor(expected), rtol=0, atol=1e-6)


def test_ratio_zero_keeps_none_for_sure():
    torch.testing.assert_close(keep_probability(3, 0.0, 1.0), torch.exp(-torch.tensor([1.0, 2.0, 3.0])))
    assert keep_probability(3, 0.0, 0.3, decay="official")[1:].max() < 1


@pytest.mark.parametrize("decay", ["paper", "official"])
@pytest.mark.parametrize("max_top", [0, 7, 50])
@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.99])
def test_probabilities_never_rise_with_the_rank_and_lie_within_0_and_1(decay, max_top, ratio):
    for classes in range(1, 60):
        p = keep_probability(classes, ratio, 0.3, max_top, decay)
        assert p.shape == (classes,) and p.dtype == torch.float32
        assert (p.diff() <= 1e-6).all() and p.min() > -1e-6 and p.max() <= 1


def test_a_cap_moves_the_decay_to_where_it_cuts():
    torch.testing.assert_close(keep_probability(200, 0.5, 0.3, max_top=50)[50:53], torch.exp(-0.3 * torch.arange(1, 4)))


# The ranking -----------------------------------------------------------------------------------------


def test_true_class_ranks_first_and_the_others_by_similarity():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.3, 0.2, 0.4, 0.1]])
    assert ranking(scores, torch.tensor([0, 3])).tolist() == [[0, 1, 3, 2], [3, 2, 0, 1]]


def test_batch_scope_ranks_by_the_best_image_with_all_true_classes_in_front():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.0], [0.2, 0.1, 0.8, 0.3, 0.1]])
    assert ranking(scores, torch.tensor([4, 3]), scope="batch").tolist() == [[3, 4, 1, 2, 0]]


# The sampler -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_true_classes_are_always_kept_also_when_they_outnumber_the_sure_ranks(scope):
    """8 labels against r M = 0.3 ranks, and a decay that keeps no other class."""
    probability, generator = keep_probability(30, 0.01, 50.0), seeded()
    for _ in range(20):
        labels = torch.randint(30, (8,))
        classes, kept = sample_classes(torch.randn(8, 30), labels, probability, generator, scope)
        assert torch.equal(classes, labels.unique())
        assert kept is None or torch.equal(kept, labels[:, None] == classes)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("decay", ["paper", "official"])
def test_with_few_classes_the_true_ones_are_among_the_kept(scope, classes, decay):
    probability, generator = keep_probability(classes, 0.5, 0.3, decay=decay), seeded()
    for _ in range(20):
        labels = torch.randint(classes, (4,))
        found, kept = sample_classes(torch.randn(4, classes), labels, probability, generator, scope)
        assert set(labels.tolist()) <= set(found.tolist()) <= set(range(classes))
        assert kept is None or kept[torch.arange(4), torch.searchsorted(found, labels)].all()


def test_batch_scope_keeps_one_sorted_set_of_distinct_classes_for_all_images():
    probability, generator = keep_probability(20, 0.5, 0.3), seeded()
    sizes = set()
    for _ in range(20):
        classes, kept = sample_classes(torch.randn(4, 20), torch.tensor([3, 3, 5, 7]), probability, generator, "batch")
        assert kept is None and (classes.diff() > 0).all()
        sizes.add(len(classes))
    assert min(sizes) >= 10 and len(sizes) > 1


def test_batch_scope_keeps_the_classes_of_the_best_ranks():
    scores = torch.zeros(2, 8)
    scores[1, [6, 2, 4]] = torch.tensor([0.9, 0.8, 0.7])
    probability = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # the ranks 1, 2 and 4
    classes, _ = sample_classes(scores, torch.tensor([5, 5]), probability, seeded(), "batch")
    assert classes.tolist() == [4, 5, 6]  # ranked 5 6 2 4


def test_image_scope_equals_one_image_after_the_other():
    """The union, and each image's rows of it, from a plain loop with the same draws."""
    probability = keep_probability(15, 0.2, 0.3)
    scores, labels = torch.randn(6, 15), torch.randint(15, (6,))
    classes, kept = sample_classes(scores, labels, probability, seeded(3))
    draws = torch.rand(6, 15, generator=seeded(3))
    own = []
    for i, label in enumerate(labels.tolist()):
        others = sorted((c for c in range(15) if c != label), key=lambda c: -scores[i, c])
        ranked = [label, *others]
        own.append({c for rank, c in enumerate(ranked) if rank == 0 or draws[i, rank] < probability[rank]})
    assert classes.tolist() == sorted(set.union(*own))
    assert kept.shape == (6, len(classes)) and kept.any(dim=0).all()
    assert [set(classes[row].tolist()) for row in kept] == own


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("decay", ["paper", "official"])
def test_frequency_of_each_rank_is_its_probability(scope, decay):
    """Within 5 standard errors, over 4000 draws; a class that is kept for sure or never has no error."""
    probability, generator, times = keep_probability(12, 0.25, 0.3, decay=decay), seeded(), 4000
    scores = -torch.arange(12.0)  # class i has rank i
    if scope == "image":
        classes, kept = sample_classes(scores.expand(times, 12), torch.zeros(times).long(), probability, generator)
        found = torch.zeros(12).index_copy(0, classes, kept.float().mean(0))
    else:
        draws = [
            sample_classes(scores[None], torch.tensor([0]), probability, generator, "batch")[0] for _ in range(times)
        ]
        found = torch.cat(draws).bincount(minlength=12) / times
    error = (probability * (1 - probability)).clamp(min=0).div(times).sqrt()
    assert ((found - probability).abs() <= 5 * error + 1e-6).all()
    assert (found[:3] == 1).all() and (decay == "paper" or found[-1] == 0)


def test_ranks_are_kept_independently_of_each_other():
    probability, times = torch.tensor([1.0, 0.5, 0.5, 0.5]), 4000
    _, kept = sample_classes(-torch.arange(4.0).expand(times, 4), torch.zeros(times).long(), probability, seeded())
    sets = (kept[:, 1:] * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8) / times
    assert ((sets - 1 / 8).abs() <= 5 * (1 / 8 * 7 / 8 / times) ** 0.5).all()


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_the_sampler_depends_on_its_generator_alone(scope):
    probability, scores, labels = keep_probability(40, 0.1, 0.1), torch.randn(3, 40), torch.tensor([1, 1, 2])
    before = torch.get_rng_state()

    def draw(generator):
        classes, kept = sample_classes(scores, labels, probability, generator, scope)
        return classes.tolist(), None if kept is None else kept.tolist()

    generator = seeded(7)
    first, second = draw(generator), draw(generator)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    generator = seeded(7)
    assert (draw(generator), draw(generator)) == (first, second) and first != second


def test_a_generator_set_back_keeps_the_same_ranks_whatever_the_scores():
    """What RESAMPLE run does: the released code draws the ranks once."""
    probability, label = keep_probability(12, 0.25, 0.3), torch.tensor([2])
    sizes = {len(sample_classes(torch.randn(1, 12), label, probability, seeded(5), "batch")[0]) for _ in range(10)}
    draws = torch.rand(12, generator=seeded(5)) < probability
    assert sizes == {int(draws.sum())}


def test_scores_and_labels_are_left_as_they_were():
    scores, labels = torch.randn(2, 5), torch.tensor([4, 0])
    copy = scores.clone()
    sample_classes(scores, labels, keep_probability(5, 0.5, 0.3), seeded(), "batch")
    assert torch.equal(scores, copy) and labels.tolist() == [4, 0]


# The loss --------------------------------------------------------------------------------------------


def test_masked_loss_equals_each_images_cross_entropy_over_its_own_classes():
    logits = torch.randn(3, 6, requires_grad=True)
    labels, kept = torch.tensor([1, 0, 5]), torch.rand(3, 6) < 0.5
    kept[torch.arange(3), labels] = True
    loss = masked_cross_entropy(logits, labels, kept)
    own = [-logits[i, label] + logits[i, kept[i]].logsumexp(0) for i, label in enumerate(labels)]
    torch.testing.assert_close(loss, torch.stack(own).mean())
    loss.backward()
    assert (logits.grad[~kept] == 0).all() and (logits.grad[kept] != 0).all()


def test_a_class_alone_in_the_loss_costs_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = masked_cross_entropy(
        logits, torch.tensor([1, 0]), torch.tensor([[False, True, False], [True, False, False]])
    )
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("kept", [None, torch.ones(3, 6, dtype=torch.bool)])
def test_masking_nothing_is_plain_cross_entropy(kept):
    logits, labels = torch.randn(3, 6), torch.tensor([1, 0, 5])
    assert torch.equal(masked_cross_entropy(logits, labels, kept), F.cross_entropy(logits, labels))
