"""The numbers beside accuracy against plain loops; tests/test_oracles.py has other people's code beside them."""

import math

import pytest
import torch

from dassl.config import check_ranges, get_cfg_default
from dassl.engine import build_trainer
from dassl.engine.result import write_result
from dassl.engine.temperature import trained_temperature
from dassl.evaluation import build_evaluator
from dassl.evaluation.calibration import Calibration, adaptive_error, bins, fit_temperature
from dassl.utils import UserError, set_random_seed, write_json


def numbers(logits, labels):
    found = Calibration()
    for start in range(0, len(logits), 3):
        found.add(logits[start : start + 3], labels[start : start + 3])
    return found.numbers()


def plain_ece(confidence, right, number):
    """Image by image; a confidence of 1 belongs to the last bin."""
    images = list(zip(confidence, right, strict=True))
    total = 0
    for b in range(number):
        inside = [(p, a) for p, a in images if min(math.floor(p * number), number - 1) == b]
        if inside:
            total += abs(sum(a for _, a in inside) - sum(p for p, _ in inside))
    return 100 * total / len(images)


def test_numbers_are_those_of_the_definitions():
    logits, labels = 4 * torch.randn(50, 5), torch.randint(5, (50,))
    found, p = numbers(logits, labels), logits.double().softmax(dim=1)
    confidence, predicted = p.max(dim=1)
    right = (predicted == labels).double()
    assert found["ece10"] == pytest.approx(plain_ece(confidence.tolist(), right.tolist(), 10), abs=1e-9)
    assert found["ece15"] == pytest.approx(plain_ece(confidence.tolist(), right.tolist(), 15), abs=1e-9)
    wanted = torch.nn.functional.one_hot(labels, 5)
    assert found["brier"] == pytest.approx(((p - wanted) ** 2).sum(dim=1).mean().item(), abs=1e-12)
    assert found["nll"] == pytest.approx(-p[range(50), labels].log().mean().item(), abs=1e-12)
    assert found["mean_confidence"] == pytest.approx(100 * confidence.mean().item())
    stored = found["bins15"]
    gaps = [abs(a - c) for a, c in zip(stored["accuracy"], stored["confidence"], strict=True) if a is not None]
    assert found["mce15"] == max(gaps) and sum(stored["count"]) == 50


def test_full_confidence_is_in_the_last_bin_and_an_empty_bin_counts_nothing():
    logits = torch.tensor([[900.0, 0.0], [900.0, 0.0], [0.0, 0.0]])
    found = numbers(logits, torch.tensor([0, 1, 0]))
    assert found["bins15"]["count"] == [0] * 7 + [1] + [0] * 6 + [2]
    assert found["bins15"]["confidence"][-1] == 100 and found["bins15"]["accuracy"][0] is None
    assert found["ece15"] == pytest.approx((2 * 50 + 50) / 3) and found["mce15"] == 50
    assert found["nll"] == pytest.approx((900 + math.log(2)) / 3)


def test_a_class_that_was_left_out_has_no_likelihood():
    found = numbers(torch.tensor([[1.0, -torch.inf, 0.0]]), torch.tensor([1]))
    assert found["nll"] is None and found["brier"] > 1 and math.isfinite(found["ece15"])


def test_bins_of_equal_numbers_do_not_depend_on_the_order_of_equal_confidences():
    confidence = torch.tensor([0.5] * 20 + [0.9] * 11, dtype=torch.float64)
    right = torch.tensor([1.0, 0.0] * 10 + [1.0] * 6 + [0.0] * 5, dtype=torch.float64)
    order = torch.randperm(31)
    first, other = (adaptive_error(confidence[at], right[at], 15) for at in (torch.arange(31), order))
    assert first == pytest.approx(other, abs=1e-12)
    assert first == pytest.approx(100 * (20 * 0 + 11 * abs(6 / 11 - 0.9)) / 31)


def test_bins_end_below_their_upper_edge():
    found = bins(torch.tensor([0.5, 0.4999], dtype=torch.float64), torch.ones(2, dtype=torch.float64), 10)
    assert found["count"] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]


def test_the_fitted_temperature_has_the_least_nll_and_takes_back_a_scale():
    logits = 2 * torch.randn(4000, 6)
    labels = torch.multinomial(logits.softmax(dim=1), 1).squeeze(1)
    found = fit_temperature(3 * logits, labels)
    assert found == pytest.approx(3, rel=0.05)

    def nll(temperature):
        return torch.nn.functional.cross_entropy(3 * logits.double() / temperature, labels).item()

    assert nll(found) <= min(nll(0.99 * found), nll(1.01 * found))


def test_a_temperature_without_an_optimum_ends_at_its_limit():
    sure = torch.eye(3).repeat(5, 1)
    assert fit_temperature(sure, torch.arange(3).repeat(5)) == pytest.approx(0.01)
    assert fit_temperature(sure, torch.arange(3).roll(1).repeat(5)) == pytest.approx(100)


def test_the_evaluator_has_both_numbers_and_forgets_on_reset():
    logits, labels = torch.randn(20, 4), torch.randint(4, (20,))
    evaluator = build_evaluator(get_cfg_default(), lab2cname={})
    for _ in range(2):
        evaluator.reset()
        evaluator.temperature = {"value": 0.5, "source": "given"}
        evaluator.process(logits.half(), labels)
        evaluator.evaluate()
        plain, scaled = numbers(logits.half(), labels), numbers(logits.half().double() / 0.5, labels)
        assert evaluator.calibration == plain | {"temperature": {"value": 0.5, "source": "given"} | scaled}
    evaluator.temperature = None
    evaluator.reset()
    evaluator.process(logits, labels)
    evaluator.evaluate()
    assert "temperature" not in evaluator.calibration


@pytest.mark.parametrize("value", ["0", "-1.0", "warm", True, "inf", "nan", 1.5])
def test_a_temperature_is_a_number_above_zero_or_auto(value):
    cfg = get_cfg_default()
    cfg.TEST.TEMPERATURE = value
    with pytest.raises(UserError, match="TEST.TEMPERATURE must be a number above 0 or 'auto'"):
        check_ranges(cfg)
    for right in ("", "auto", "2", "0.5"):
        cfg.TEST.TEMPERATURE = right
        check_ranges(cfg)


class TestOfARun:
    def test_auto_is_fitted_on_the_validation_images_alone(self, cfg):
        cfg.merge_from_list(["TEST.TEMPERATURE", "auto"])
        trainer = build_trainer(cfg)
        trainer.train()
        logits, labels = [], []
        with torch.no_grad():
            for batch in trainer.val_loader:
                logits.append(trainer.model_inference(batch["img"]))
                labels.append(batch["label"])
        found = write_result(trainer)["calibration"]["temperature"]
        assert found["source"] == "val" and found["value"] == fit_temperature(torch.cat(logits), torch.cat(labels))
        assert trained_temperature(cfg.OUTPUT_DIR) == {"value": found["value"], "source": "training"}

    def test_the_plain_numbers_stay_and_a_given_one_stands_beside(self, cfg):
        set_random_seed(0)
        plain = build_trainer(cfg)
        plain.train()
        set_random_seed(0)
        cfg.merge_from_list(["TEST.TEMPERATURE", "1000", "OUTPUT_DIR", cfg.OUTPUT_DIR + "_scaled"])
        scaled = build_trainer(cfg)
        scaled.train()
        found = scaled.evaluator.calibration
        beside = found.pop("temperature")
        assert found == plain.evaluator.calibration and beside["value"] == 1000
        assert beside["mean_confidence"] < found["mean_confidence"]

    def test_tests_between_epochs_have_none(self, cfg):
        cfg.merge_from_list(["TEST.TEMPERATURE", "auto"])
        trainer = build_trainer(cfg)
        trainer.test("val")
        assert "temperature" not in trainer.evaluator.calibration

    @pytest.mark.parametrize(
        ("why", "change"),
        [
            ("has no validation images", lambda trainer: setattr(trainer.dm.dataset, "_val", [])),
            (
                "they are the images of the test",
                lambda trainer: trainer.dm.dataset.val.append(trainer.dm.dataset.test[0]),
            ),
            ("they are the images of the test", lambda trainer: trainer.cfg.merge_from_list(["TEST.SPLIT", "val"])),
        ],
    )
    def test_it_is_refused_before_the_training_where_nothing_is_to_fit_on(self, cfg, why, change):
        cfg.merge_from_list(["TEST.TEMPERATURE", "auto"])
        trainer = build_trainer(cfg)
        change(trainer)
        trainer.run_epoch = None
        with pytest.raises(UserError, match=why):
            trainer.train()

    def test_a_training_run_without_one_is_named(self, tmp_path):
        write_json({"calibration": {"ece15": 1.0}}, tmp_path / "result.json")
        for folder in (tmp_path, tmp_path / "nothing"):
            with pytest.raises(UserError, match="has none: train with TEST.TEMPERATURE auto"):
                trained_temperature(folder)
