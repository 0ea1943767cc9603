"""From scores and labels to accuracy, macro F1 and the result block everyone greps."""

import os
from collections import OrderedDict

import torch

from ..utils import Registry, UserError, save_atomic
from .calibration import Calibration

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    """The evaluator that `cfg.TEST.EVALUATOR` names."""
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return evaluator(cfg, **kwargs)


class EvaluatorBase:
    """reset(), process(scores, labels) per batch, then evaluate() -> OrderedDict whose first value counts.

    After it: `results` (the same), `correct` and `total` (images), `calibration` (a dict, or None).
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self.results, self.correct, self.total = OrderedDict(), 0, 0
        self.calibration = None

    def reset(self):
        raise NotImplementedError

    def process(self, mo, gt):
        raise NotImplementedError

    def evaluate(self):
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 in percent at full precision; the log rounds to one decimal.

    `calibration` has the numbers of calibration.py and, where there is a `temperature` T, those of scores / T beside.
    """

    temperature = None  # {"value": T, ...}, to be set before the first batch

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        self._lab2cname = lab2cname
        self.reset()

    def reset(self):
        self._predicted, self._true, self._wrong = [], [], []
        self._plain, self._scaled = Calibration(), Calibration()

    def process(self, mo, gt):
        """Scores mo (B, C) and labels gt (B,). A class may be left out by a score of -inf."""
        self._predicted.append(mo.argmax(1))  # stays on its device: one wait at the end, not one per batch
        self._wrong.append(~mo.amax(1).isfinite())  # amax is NaN where one score is
        self._true.append(gt)
        self._plain.add(mo, gt)
        if self.temperature:
            self._scaled.add(mo.double() / self.temperature["value"], gt)

    def evaluate(self):
        """UserError if there were no images, or if scores are infinite or NaN."""
        if not self._true:
            raise UserError("Nothing to evaluate: the test set gave no images")
        predicted, true = torch.cat(self._predicted).cpu(), torch.cat(self._true).cpu()
        if wrong := int(torch.cat(self._wrong).sum()):
            raise UserError(
                f"The scores of {wrong} of {len(true)} images are infinite or NaN: the weights are damaged, or training"
                " diverged; lower OPTIM.LR, choose a more exact precision, or test other weights"
            )
        counts = _confusion(predicted, true)
        self.correct, self.total = int(counts.diagonal().sum()), len(true)
        accuracy = 100.0 * self.correct / self.total
        self.results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=100.0 * _macro_f1(counts))
        self._print()
        self.calibration = self._plain.numbers()
        if self.temperature:
            self.calibration["temperature"] = self.temperature | self._scaled.numbers()
        if self.cfg.TEST.PER_CLASS_RESULT:
            self.results["perclass_accuracy"] = self._per_class(counts)
        if self.cfg.TEST.COMPUTE_CMAT:
            path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            save_atomic(counts / counts.sum(1, keepdim=True).clamp(min=1), path)
            print(f"Confusion matrix is saved to {path}")
        return self.results

    def _print(self):
        print(
            "=> result\n"
            f"* total: {self.total:,}\n"
            f"* correct: {self.correct:,}\n"
            f"* accuracy: {self.results['accuracy']:.1f}%\n"
            f"* error: {self.results['error_rate']:.1f}%\n"
            f"* macro_f1: {self.results['macro_f1']:.1f}%"
        )

    def _per_class(self, counts):
        """Prints one line per class that occurs; returns the mean of their accuracies in percent."""
        print("=> per-class result")
        accuracies = []
        for label in counts.sum(1).nonzero().flatten().tolist():
            total, correct = int(counts[label].sum()), int(counts[label, label])
            accuracies.append(100.0 * correct / total)
            name = self._lab2cname[label]
            found = f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            print(f"* class: {label} ({name})\t{found}")
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean


def _confusion(predicted, true):
    """Image counts (C, C): row = true label, column = predicted one."""
    classes = int(max(predicted.max(), true.max())) + 1
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes).double()


def _macro_f1(counts):
    """Mean F1 of the classes that occur: scikit-learn's f1_score(average="macro", labels=unique(y_true))."""
    hits, true, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    f1 = 2 * hits / (true + predicted).clamp(min=1)
    return f1[true > 0].mean().item()
