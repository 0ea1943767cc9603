"""result.json says what was run and on what."""

import json
from pathlib import Path

import pytest

from dassl.engine import build_trainer
from dassl.engine.memory import peak_rss_mb
from dassl.engine.result import write_result


@pytest.fixture
def written(cfg):
    """written(KEY, VALUE, ...): result.json of a run with these options, written after `change(trainer)`."""

    def written(*options, change=lambda trainer: None):
        cfg.merge_from_list(options)
        trainer = build_trainer(cfg)
        trainer.train()
        change(trainer)
        write_result(trainer)
        return json.loads(Path(cfg.OUTPUT_DIR, "result.json").read_text())

    return written


def test_protocol_preset_epochs_and_workers_are_those_of_the_run(written):
    result = written("PROTOCOL", "few_shot", "PRESET", "paper", "OPTIM.MAX_EPOCH", 2)
    assert (result["protocol"], result["preset"], result["epochs"], result["workers"]) == ("few_shot", "paper", 2, 0)
    assert (result["config"], result["config_files"]) == ("", [])


def test_precision_and_device_are_those_that_it_ran_on(written):
    result = written(change=lambda trainer: setattr(trainer, "precision", "bf16"))
    assert (result["precision"], result["device"]) == ("bf16", "cpu")


def test_the_precision_of_a_trainer_that_doesnt_say_is_unknown(written):
    assert written()["precision"] is None


@pytest.mark.parametrize(("said", "trials"), [(-1, None), (0, 0), (7, 7)])
def test_trials_are_the_recipes_or_unknown(written, said, trials):
    assert written("TRIALS", said)["trials"] == trials


def test_split_is_the_datasets_own_hash_and_images_another(written):
    result = written(change=lambda trainer: setattr(trainer.dm.dataset, "split_hash", "4bc2c4d6ae409d04"))
    assert result["split"] == "4bc2c4d6ae409d04" != result["images"]


def test_a_dataset_without_a_split_hash_has_none(written):
    assert written()["split"] is None


@pytest.mark.parametrize(("split", "images"), [("test", 12), ("val", 6)])
def test_the_split_that_was_tested_is_named(written, split, images):
    result = written("TEST.SPLIT", split)
    assert (result["tested"], result["total"]) == (split, images)


def test_without_validation_images_the_test_split_was_tested(written):
    def without(trainer):
        trainer.val_loader = None
        trainer.test("val")

    assert written(change=without)["tested"] == "test"


def test_no_test_no_split_tested(written):
    result = written("TEST.NO_TEST", True)
    assert result["tested"] is None and result["accuracy"] is None


def test_the_process_needs_more_memory_than_its_tensors(written):
    result = written()
    assert 1 < result["peak_rss_mb"] <= peak_rss_mb() < 1e6
