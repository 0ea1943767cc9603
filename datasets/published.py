"""What tells the published data from other data of the same name: hashes, and numbers of images."""

import hashlib
from typing import NamedTuple

from dassl.utils import UserError

from .splits import select_shots, split_hash


class Published(NamedTuple):
    """Facts about one dataset. A field is empty where nobody has published it."""

    classes: int
    images: dict  # {part: number of images}
    split: str = ""  # `splits.split_hash`
    picks: str = ""  # `picks_hash` of 16 shots, seed 1
    ids: str = ""  # `lines_hash` of the sorted WordNet ids
    per_class: int = 0  # test images of every class
    files: str = ""  # `lines_hash` of the sorted "<WordNet id>/<file>" of the test images


def lines_hash(lines):
    """SHA-256 (hex) of the lines joined by line feeds."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def picks_hash(selected):
    """Few-shot picks as "<train>/<val>": 12 digits each of the SHA-256 over the paths, in their order."""
    return "/".join(lines_hash(item.path for item in items)[:12] for items in selected.values())


def split_problem(split, published):
    """How the split differs from the published one, or "".

    The split itself is known by its hash. Of some datasets only the numbers of images and the few-shot picks of
    16 shots and seed 1 are known.
    """
    if split_hash(split) == published.split:
        return ""
    for part, number in published.images.items():
        if len(split[part]) != number:
            return f"it has {len(split[part]):,} {part} images instead of {number:,}"
    if published.split:
        return "its rows differ from the published ones, or their order does"
    try:
        picks = picks_hash(select_shots(split, 16, 1))
    except UserError as error:
        return str(error)
    if picks != published.picks:
        return f"its few-shot picks have the hash {picks} instead of {published.picks}"
    return ""
