"""TEST.TEMPERATURE: the T of softmax(logits / T), given, fitted on validation images, or that of the training run."""

from pathlib import Path

import torch

from ..data.datasets import tests_on_validation
from ..evaluation.calibration import fit_temperature
from ..utils import MissingFile, UserError, read_json


def check_temperature(cfg, dataset):
    """UserError if TEST.TEMPERATURE auto would be fitted on images that it must not see, or on none."""
    if cfg.TEST.get("TEMPERATURE") != "auto":  # the defaults of a fork lack it
        return
    reason = ""
    if not dataset.val:
        reason = f"{cfg.DATASET.NAME} has no validation images"
    elif cfg.DATASET.get("SUBSAMPLE_CLASSES") == "new":
        reason = "those here are of new classes"
    elif cfg.TEST.SPLIT == "val" or tests_on_validation(dataset):
        reason = "they are the images of the test"
    if reason:
        raise UserError(
            f"TEST.TEMPERATURE auto is fitted on validation images of the classes of the training, but {reason}:"
            " give a number, or leave it out"
        )


@torch.no_grad()
def find_temperature(trainer):
    """{"value": T, "source": "given" or "val"} for the test of `trainer`; None without TEST.TEMPERATURE.

    Errors: as `check_temperature`.
    """
    wanted = trainer.cfg.TEST.get("TEMPERATURE")
    if wanted != "auto":
        return {"value": float(wanted), "source": "given"} if wanted else None
    check_temperature(trainer.cfg, trainer.dm.dataset)
    logits, labels = [], []
    for batch in trainer.val_loader:
        image, label = trainer.parse_batch_test(batch)
        logits.append(trainer.model_inference(image).double())
        labels.append(label)
    return {"value": fit_temperature(torch.cat(logits), torch.cat(labels)), "source": "val"}


def trained_temperature(folder):
    """The temperature that the training run in `folder` found; UserError if it has none."""
    file = Path(folder, "result.json")
    try:
        return {"value": float(read_json(file)["calibration"]["temperature"]["value"]), "source": "training"}
    except (MissingFile, KeyError, TypeError):
        raise UserError(
            f"TEST.TEMPERATURE auto takes the temperature that the training run found, but {file} has none:"
            " train with TEST.TEMPERATURE auto, or give a number"
        ) from None
