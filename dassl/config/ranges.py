"""Which values the options may have. `check_ranges(cfg)` is to be called before anything is built."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..utils import UserError
from .config import flatten
from .defaults import _C

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]
AVAI_SCHEDS = ["single_step", "multi_step", "cosine"]
AVAI_WARMUPS = ["linear", "constant"]


@dataclass(frozen=True)
class Rule:
    """`wanted` completes "must be ..."; `holds(value)` says whether a value, of whatever type, will do."""

    wanted: str
    holds: Callable[[object], bool]


def number(low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> Rule:
    """A finite number from `low` to `high` that is greater than `above`."""
    limits = [f"above {above}"] if above > -math.inf else []
    limits += [f"at least {low}"] if low > -math.inf else []
    limits += [f"at most {high}"] if high < math.inf else []

    def holds(value: object) -> bool:
        right_type = isinstance(value, int | float) and not isinstance(value, bool)
        return right_type and math.isfinite(value) and low <= value <= high and value > above

    return Rule(" ".join(["a number", " and ".join(limits)]).strip(), holds)


def whole(low: int, high: float = math.inf) -> Rule:
    """A whole number from `low` to `high`."""
    wanted = f"a whole number of at least {low}" if high == math.inf else f"a whole number from {low} to {high}"
    return Rule(wanted, lambda value: type(value) is int and low <= value <= high)


def choice(*names: str) -> Rule:
    return Rule(f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names)


def each(rule: Rule, length: int | None = None) -> Rule:
    """A list or tuple, of `length` entries if given, each of which fits `rule`."""

    def holds(value: object) -> bool:
        fits = isinstance(value, list | tuple) and all(map(rule.holds, value))
        return fits and (length is None or len(value) == length)

    return Rule(f"a list{'' if length is None else f' of {length}'}, each entry {rule.wanted}", holds)


def _temperature(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value in ("", "auto") or 0 < float(value) < math.inf
    except ValueError:
        return False


def _share_of_area(value: object) -> bool:
    return each(number(above=0, high=1), 2).holds(value) and value[0] <= value[1]


RANGES = {
    "OUTPUT_DIR": Rule("the name of a folder", lambda value: isinstance(value, str) and bool(value.strip())),
    "SEED": whole(-1, 2**32 - 1),  # numpy takes 32 bits
    "TRIALS": whole(-1),
    "PROTOCOL": choice("", "base2new", "few_shot", "xd"),
    "INPUT.SIZE": each(whole(1, 4096), 2),
    "INPUT.RESIZE": choice("shortest", "squash"),
    "INPUT.PIXEL_MEAN": each(number(), 3),
    "INPUT.PIXEL_STD": each(number(above=0), 3),
    "INPUT.RRCROP_SCALE": Rule("two numbers above 0 and at most 1, the smaller first", _share_of_area),
    "INPUT.COLORJITTER_B": number(0),
    "INPUT.COLORJITTER_C": number(0),
    "INPUT.COLORJITTER_S": number(0),
    "INPUT.COLORJITTER_H": number(0, 0.5),
    "INPUT.RGS_P": number(0, 1),
    "INPUT.GB_P": number(0, 1),
    "INPUT.GB_K": Rule("an odd whole number above 0", lambda value: whole(1).holds(value) and value % 2 == 1),
    "DATASET.NUM_SHOTS": whole(-1),
    "DATALOADER.NUM_WORKERS": whole(0, 1024),
    "DATALOADER.K_TRANSFORMS": whole(1),
    "DATALOADER.DECODED_MB": number(0),
    "DATALOADER.TRAIN_X.BATCH_SIZE": whole(1),
    "DATALOADER.TRAIN_X.N_DOMAIN": whole(0),
    "DATALOADER.TRAIN_X.N_INS": whole(1),
    "DATALOADER.TEST.BATCH_SIZE": whole(1),
    "OPTIM.NAME": choice(*AVAI_OPTIMS),
    "OPTIM.LR": number(0),
    "OPTIM.WEIGHT_DECAY": number(0),
    "OPTIM.MOMENTUM": number(0, 1),
    "OPTIM.SGD_DAMPNING": number(0, 1),
    "OPTIM.RMSPROP_ALPHA": number(0, 1),
    "OPTIM.ADAM_BETA1": number(0, 0.9999999),
    "OPTIM.ADAM_BETA2": number(0, 0.9999999),
    "OPTIM.BASE_LR_MULT": number(0),
    "OPTIM.LR_SCHEDULER": choice(*AVAI_SCHEDS),
    "OPTIM.STEPSIZE": each(whole(-1)),
    "OPTIM.GAMMA": number(0),
    "OPTIM.MAX_EPOCH": whole(1),
    "OPTIM.STEPS_PER_SHOT": whole(0),
    "OPTIM.WARMUP_EPOCH": whole(-1),
    "OPTIM.WARMUP_TYPE": choice(*AVAI_WARMUPS),
    "OPTIM.WARMUP_CONS_LR": number(0),
    "OPTIM.WARMUP_MIN_LR": number(0),
    "TRAIN.CHECKPOINT_FREQ": whole(-1),
    "TRAIN.PRINT_FREQ": whole(1),
    "TRAIN.CPU_PREC": choice("auto", "fp32", "bf16"),
    "TEST.SPLIT": choice("test", "val"),
    "TEST.FINAL_MODEL": choice("last_step", "best_val"),
    "TEST.TEMPERATURE": Rule("a number above 0 or 'auto', as a text", _temperature),
}


def check_ranges(cfg) -> None:
    """UserError for the first option whose value its rule does not allow, or that is not of its default's type."""
    values = flatten(cfg)
    rules = {key: _type_rule(default) for key, default in flatten(_C).items()} | RANGES
    for key, rule in rules.items():
        if key in values and not rule.holds(values[key]):
            raise UserError(f"{key} must be {rule.wanted}, not {values[key]!r}")


def _type_rule(default: object) -> Rule:
    """A rule for an option that takes whatever is of the same type as its default."""
    kinds = (list, tuple) if isinstance(default, list | tuple) else type(default)
    names = {bool: "True or False", str: "a text", tuple: "a list", list: "a list"}
    return Rule(names.get(type(default), "like its default"), lambda value: isinstance(value, kinds))
