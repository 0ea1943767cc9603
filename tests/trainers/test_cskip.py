"""CSkip: the sampler of Eq. 7 in both readings, and the loss over each image's own classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from trainers.cskip import keep_classes, keep_probability, masked_cross_entropy, ranking


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


def test_official_decay_drops_a_tail_of_one():
    assert keep_probability(3, 0.5, 0.3, decay="official").tolist() == [1.0, 1.0, 0.0]


def test_true_class_ranks_first_and_the_others_by_similarity():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert ranking(scores, torch.tensor([0])).tolist() == [[0, 1, 3, 2]]


def test_batch_scope_ranks_by_the_best_image_with_all_true_classes_in_front():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.0], [0.2, 0.1, 0.8, 0.3, 0.1]])
    rank = ranking(scores, torch.tensor([4, 3]), scope="batch")
    assert rank.shape == (1, 5)
    assert set(rank[0, [3, 4]].tolist()) == {0, 1}
    assert rank[0, :3].tolist() == [4, 2, 3]


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_labels_are_always_kept(scope):
    torch.manual_seed(0)
    probability = keep_probability(30, 0.1, 5.0)
    for _ in range(50):
        labels = torch.randint(30, (8,))
        kept = keep_classes(torch.randn(8, 30), labels, probability, scope)
        assert kept.shape == (8, 30) and kept[torch.arange(8), labels].all()


def test_batch_scope_shares_one_set_of_classes():
    torch.manual_seed(0)
    kept = keep_classes(torch.randn(4, 20), torch.tensor([3, 3, 5, 7]), keep_probability(20, 0.5, 0.3), "batch")
    assert (kept == kept[0]).all()


def test_kept_frequency_of_each_rank_approaches_its_probability():
    torch.manual_seed(0)
    probability = keep_probability(12, 0.25, 0.3)
    scores = -torch.arange(12.0).expand(4000, 12)  # class i has rank i
    kept = keep_classes(scores, torch.zeros(4000, dtype=torch.long), probability)
    torch.testing.assert_close(kept.float().mean(0), probability, rtol=0, atol=0.04)  # 5 standard errors


def test_given_draws_keep_the_same_ranks_whatever_the_scores():
    probability, draws = keep_probability(12, 0.25, 0.3), torch.rand(12)
    counts = {
        keep_classes(torch.randn(1, 12), torch.tensor([2]), probability, draws=draws).sum().item() for _ in range(10)
    }
    assert counts == {int((draws < probability).sum())}


def test_masked_loss_equals_each_images_cross_entropy_over_its_own_classes():
    torch.manual_seed(0)
    logits = torch.randn(3, 6, requires_grad=True)
    labels, kept = torch.tensor([1, 0, 5]), torch.rand(3, 6) < 0.5
    kept[torch.arange(3), labels] = True
    loss = masked_cross_entropy(logits, labels, kept)
    own = [-logits[i, label] + logits[i, kept[i]].logsumexp(0) for i, label in enumerate(labels)]
    torch.testing.assert_close(loss, torch.stack(own).mean())
    loss.backward()
    assert (logits.grad[~kept] == 0).all() and (logits.grad[kept] != 0).all()


def test_masking_nothing_is_plain_cross_entropy():
    logits, labels = torch.randn(3, 6), torch.tensor([1, 0, 5])
    torch.testing.assert_close(
        masked_cross_entropy(logits, labels, torch.ones(3, 6, dtype=torch.bool)), F.cross_entropy(logits, labels)
    )
