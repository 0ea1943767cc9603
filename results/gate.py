"""The gate for what runs have written: size, encoding, syntax, shape; what does not pass is named with file and key.

dassl.utils has one for files that users write. This one loads no PyTorch, and its errors stand beside their folder.
"""

import json
import math
from pathlib import Path

RESULT_LIMIT, LOG_LIMIT = 1 << 24, 1 << 28  # bytes; no run writes more


class Broken(Exception):
    """A run folder without a usable result; the message says why."""


def is_name(value: object) -> bool:
    """A text that fits into a table's cell and can't command a terminal."""
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def is_whole(value: object) -> bool:
    """A whole number; Python counts true and false among them, we don't."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_amount(value: object) -> bool:
    """A finite number of at least 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def is_percent(value: object) -> bool:
    """A number from 0 to 100."""
    return is_amount(value) and value <= 100


def is_table(value: object) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def is_names(value: object) -> bool:
    """A list of texts, of any length."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_bins(value: object) -> bool:
    """Counts, and means of confidence and accuracy in percent, null where nothing was counted; of one length."""
    if not is_table(value) or set(value) != {"count", "confidence", "accuracy"}:
        return False
    lists = list(value.values())
    if not all(isinstance(found, list) and len(found) == len(lists[0]) for found in lists):
        return False
    rows = zip(*(value[key] for key in ("count", "confidence", "accuracy")), strict=True)
    return all(is_whole(n) and all(map(is_percent, means)) if n else n == 0 for n, *means in rows)


def one_of(*names: str) -> tuple:
    """(what is allowed, the test of it), as for the kinds below."""
    return f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names


NAME, WHOLE, TABLE, NAMES = ("text", is_name), ("a whole number", is_whole), ("a table", is_table), ("names", is_names)
PERCENT, AMOUNT = ("a number from 0 to 100", is_percent), ("a number of at least 0", is_amount)
# {key of result.json: what its value must be}; a null passes where it means "not measured" or "has none"
NEEDED = {
    **dict.fromkeys(("trainer", "dataset", "backbone"), NAME),
    **dict.fromkeys(("shots", "seed"), WHOLE),
    **dict.fromkeys(("accuracy", "macro_f1"), PERCENT),
    "subsample": one_of("all", "base", "new"),
    "seconds": TABLE,
    "peak_memory_mb": AMOUNT,
}
OPTIONAL = {  # not in every file that was ever written
    "protocol": one_of("", "base2new", "few_shot", "xd"),
    **dict.fromkeys(("preset", "config", "tested", "split", "images", "precision", "device"), NAME),
    **dict.fromkeys(("peak_rss_mb", "epochs", "workers", "learned_parameters", "total", "trials"), AMOUNT),
    **dict.fromkeys(("versions", "calibration"), TABLE),
    **dict.fromkeys(("classnames", "config_files"), NAMES),
}
CALIBRATION = {
    **dict.fromkeys(("ece10", "ece15", "ace15", "mce15", "mean_confidence"), PERCENT),
    **dict.fromkeys(("brier", "nll", "logit_scale"), AMOUNT),
    "bins15": ("bins", is_bins),
    "temperature": TABLE,
}
SECONDS = {"extract": AMOUNT, "train": AMOUNT}
NULLABLE = {
    "accuracy",
    "macro_f1",
    "peak_memory_mb",
    "peak_rss_mb",
    "tested",
    "split",
    "images",
    "precision",
    "trials",
    "calibration",
    "temperature",
    "nll",
    "logit_scale",
}


def read_text(file: Path, limit: int, errors: str = "strict") -> str:
    """The content of a regular UTF-8 file of at most `limit` bytes, or Broken. `errors`: as for bytes.decode."""
    if not file.is_file():  # a pipe would never end
        raise Broken(f"{file.name} is not a regular file")
    with open(file, "rb") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise Broken(f"{file.name} has more than {limit:,} bytes, which no run writes")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise Broken(f"{file.name} is not UTF-8 (byte {error.start})") from None


def read_json(file: Path, limit: int) -> dict:
    """The JSON object in a file, or Broken."""
    try:
        found = json.loads(read_text(file, limit))
    except json.JSONDecodeError as error:
        raise Broken(f"{file.name} is truncated or not JSON ({error})") from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of too many digits
        raise Broken(f"{file.name} can't be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise Broken(f"{file.name} is not what a run writes: no JSON object")
    return found


def check_shape(name: str, found: dict, needed: dict, optional: dict) -> None:
    """Broken names the key of the file `name` whose value is missing or not what `needed` and `optional` ask for."""
    for key, (kind, fits) in (needed | optional).items():
        if key not in found:
            if key in needed:
                raise Broken(f"{name} has no '{key}'")
        elif not (found[key] is None and key in NULLABLE) and not fits(found[key]):
            shown = repr(found[key])
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise Broken(f"{name} is not what a run writes: {key} is {shown}, not {kind}")


def read_record(file: Path) -> dict:
    """A result.json of any version, or Broken."""
    record = read_json(file, RESULT_LIMIT)
    check_shape(file.name, record, NEEDED, OPTIONAL)
    check_shape(f"seconds in {file.name}", record["seconds"], SECONDS, {})
    calibration = record.get("calibration") or {}
    check_shape(f"calibration in {file.name}", calibration, {}, CALIBRATION)
    check_shape(f"calibration at T in {file.name}", calibration.get("temperature") or {}, {}, CALIBRATION)
    if record["accuracy"] is None:
        raise Broken(f"{file.name} has no accuracy: trained, not tested")
    if len(record.get("classnames") or "several") == 1:
        raise Broken("tested on one class, where every answer is right: base-to-new takes 4 classes or more")
    return record
