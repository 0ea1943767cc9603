import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.utils import UserError

PREDICTED = [0, 0, 1, 1, 2, 3, 2, 2, 0]
TRUE = [0, 0, 1, 2, 2, 2, 2, 0, 4]


def evaluate(cfg=None, batch=4):
    cfg = cfg or get_cfg_default()
    evaluator = build_evaluator(cfg, lab2cname={i: f"class {i}" for i in range(5)})
    scores = torch.nn.functional.one_hot(torch.tensor(PREDICTED), 5).float()
    for i in range(0, len(TRUE), batch):
        evaluator.process(scores[i : i + batch], torch.tensor(TRUE[i : i + batch]))
    return evaluator, evaluator.evaluate()


def plain_macro_f1():
    scores = []
    for label in set(TRUE):
        hits = sum(p == t == label for p, t in zip(PREDICTED, TRUE, strict=True))
        precision = hits / PREDICTED.count(label) if label in PREDICTED else 0
        recall = hits / TRUE.count(label)
        scores.append(2 * precision * recall / (precision + recall) if hits else 0)
    return 100 * sum(scores) / len(scores)


def test_results_are_exact_and_macro_f1_is_over_the_classes_that_occur():
    evaluator, results = evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert (evaluator.correct, evaluator.total) == (5, 9)
    assert results["accuracy"] == 100 * 5 / 9 and results["error_rate"] == pytest.approx(400 / 9)
    assert results["macro_f1"] == pytest.approx(plain_macro_f1(), abs=1e-12)


def test_the_result_block_is_the_one_that_scripts_grep(capsys):
    evaluate()
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n=> result\n* total: 9\n* correct: 5\n* accuracy: 55.6%\n"
        "* error: 44.4%\n* macro_f1: 47.6%\n"
    )


def test_per_class_lines_and_the_confusion_matrix(tmp_path, capsys):
    cfg = get_cfg_default()
    cfg.merge_from_list(["TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True, "OUTPUT_DIR", str(tmp_path)])
    _, results = evaluate(cfg)
    out = capsys.readouterr().out
    assert "=> per-class result\n* class: 0 (class 0)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n" in out
    assert "class 3" not in out and "* average: 54.2%" in out
    assert results["perclass_accuracy"] == pytest.approx((200 / 3 + 100 + 50 + 0) / 4)
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=True)
    assert torch.equal(matrix[2], torch.tensor([0, 0.25, 0.5, 0.25, 0], dtype=torch.float64))


def test_an_empty_test_set_is_a_user_error():
    with pytest.raises(UserError, match="test set"):
        evaluator = build_evaluator(get_cfg_default())
        evaluator.evaluate()


def test_compute_accuracy_gives_one_element_tensors_in_percent():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    top1, top2 = compute_accuracy((scores,), torch.tensor([1, 1]), topk=(1, 2))
    assert top1.shape == (1,) and (top1.item(), top2.item()) == (50.0, 100.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ([float("nan"), 1.0, 2.0], True),
        ([2.0, 1.0, float("nan")], True),
        ([0.0, float("inf"), 0.0], True),
        ([float("-inf")] * 3, True),
        ([float("-inf"), 1.0, 2.0], False),  # a class left out on purpose
    ],
)
def test_scores_that_are_no_numbers_are_no_class(row, wrong, dtype):
    evaluator = build_evaluator(get_cfg_default(), lab2cname={})
    evaluator.process(torch.eye(3, dtype=dtype), torch.arange(3))
    evaluator.process(torch.tensor([row], dtype=dtype), torch.tensor([2]))
    if not wrong:
        assert evaluator.evaluate()["accuracy"] == 100
        return
    with pytest.raises(UserError, match="The scores of 1 of 4 images are infinite or NaN"):
        evaluator.evaluate()
    evaluator.reset()
    evaluator.process(torch.eye(3, dtype=dtype), torch.arange(3))
    assert evaluator.evaluate()["accuracy"] == 100  # reset() forgets
