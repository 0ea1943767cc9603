"""Values of options: what makes no sense is one line before anything is built."""

import math

import pytest

from dassl.config import check_ranges, flatten, get_cfg_default
from dassl.config.ranges import RANGES, each, whole
from dassl.utils import UserError


def refused(key, value):
    """The message about `value` as that of the option `key`."""
    cfg = get_cfg_default()
    *groups, name = key.split(".")
    node = cfg
    for group in groups:
        node = node[group]
    node[name] = value  # past the type checks of a merge
    with pytest.raises(UserError) as caught:
        check_ranges(cfg)
    return str(caught.value)


def test_the_defaults_are_allowed_and_every_rule_is_about_an_option():
    check_ranges(get_cfg_default())
    assert set(RANGES) <= set(flatten(get_cfg_default()))


@pytest.mark.parametrize("key", sorted(flatten(get_cfg_default())))
@pytest.mark.parametrize("value", [None, b"1", object()])
def test_no_option_is_none_or_something_strange(key, value):
    assert key in refused(key, value)


@pytest.mark.parametrize(
    "key", sorted(key for key, value in flatten(get_cfg_default()).items() if type(value) is float)
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "0.1"])
def test_a_number_is_finite_and_a_number(key, value):
    assert f"{key} must be a number" in refused(key, value)


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("OPTIM.LR", -0.1, "a number at least 0, not -0.1"),
        ("OPTIM.MAX_EPOCH", 0, "a whole number of at least 1, not 0"),
        ("OPTIM.MAX_EPOCH", -1, "at least 1"),
        ("OPTIM.MAX_EPOCH", 2.0, "a whole number"),
        ("OPTIM.MAX_EPOCH", True, "a whole number"),
        ("OPTIM.NAME", "adamm", "'adamw'"),
        ("OPTIM.ADAM_BETA2", 1.0, "at most"),
        ("OPTIM.STEPSIZE", (5, 0.5), "a list, each entry a whole number"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0, "at least 1"),
        ("DATALOADER.NUM_WORKERS", -1, "from 0 to 1024"),
        ("SEED", 2**40, f"from -1 to {2**32 - 1}"),
        ("SEED", -2, "from -1"),
        ("INPUT.SIZE", (224,), "a list of 2"),
        ("INPUT.SIZE", (224, 0), "from 1 to 4096"),
        ("INPUT.PIXEL_STD", [0.0, 0.0, 0.0], "a list of 3, each entry a number above 0"),
        ("INPUT.RRCROP_SCALE", (0.9, 0.1), "the smaller first"),
        ("INPUT.GB_K", 4, "an odd whole number"),
        ("DATASET.NUM_SHOTS", -2, "at least -1"),
        ("TRAIN.PRINT_FREQ", 0, "at least 1"),
        ("TEST.SPLIT", "train", "one of 'test', 'val', not 'train'"),
        ("TEST.FINAL_MODEL", "best", "one of 'last_step', 'best_val', not 'best'"),
        ("PROTOCOL", "few-shot", "'few_shot'"),
        ("OUTPUT_DIR", " ", "the name of a folder"),
        ("USE_CUDA", 1, "True or False"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_key_value_and_what_is_allowed(key, value, wanted):
    message = refused(key, value)
    assert message.startswith(f"{key} must be ") and wanted in message and repr(value) in message
    assert "\n" not in message


def test_lists_are_checked_entry_by_entry():
    assert each(whole(1)).holds([1, 2]) and each(whole(1)).holds(()) and not each(whole(1)).holds([1, "2"])
    assert not each(whole(1)).holds("12") and not each(whole(1), 3).holds([1, 2])
