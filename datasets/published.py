"""What tells the published data from other data of the same name: hashes and numbers of images, by yaml name."""

import hashlib
from typing import NamedTuple

# SHA-256 of CLIP's "<WordNet id> <name>" lines of classnames.txt, joined by line feeds
CLASSNAMES = "51b5b1d8b800502030c5556eb206abaafdd682ef363ff7a7077591ea3c9befa5"
_IMAGENET_IDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"


class Published(NamedTuple):
    """Empty is what nobody has published."""

    classes: int
    images: dict  # {part: number}
    split: str = ""  # `splits.split_hash`
    picks: str = ""  # `picks_hash` of 16 shots, seed 1
    ids: str = ""  # SHA-256 of the sorted WordNet ids, joined by line feeds
    per_class: int = 0  # test images of every class
    files: str = ""  # `lines_hash` of the sorted "<WordNet id>/<file>" of the test images


def _parts(train, val, test):
    return {"train": train, "val": val, "test": test}


PUBLISHED = {
    "caltech101": Published(
        100,
        _parts(4128, 1649, 2465),
        "266b016abdaeeb65436a3273abb64b9c02633d8d97988b66592f0fd28b2659a4",
        "e60a836bd33c/53555d3fce94",
    ),
    "oxford_pets": Published(
        37,
        _parts(2944, 736, 3669),
        "175852640a3b1e8d7441c6224786fd018b4d6bcdd60f4495edca8a185631729d",
        "711e62ca7ba4/b75fc02100f3",
    ),
    "stanford_cars": Published(
        196,
        _parts(6509, 1635, 8041),
        "bffbe347fbf93ad532133ff506d15606ac007812cfac9933551a5877f5263dd3",
        "f7d56096c792/edeb0808f53c",
    ),
    "oxford_flowers": Published(
        102,
        _parts(4093, 1633, 2463),
        "9bf82a401539357a181e5f0b836ae7fcd5baa38b55e264a2059df8e86adc898a",
        "ea366f552e24/3a88b427e7b1",
    ),
    "food101": Published(101, _parts(50500, 20200, 30300), picks="8bcab0ea1c2d/0c299214865c"),
    "fgvc_aircraft": Published(100, _parts(3334, 3333, 3333), picks="27de4feb9721/fd4231e9d5e2"),
    "sun397": Published(397, _parts(15880, 3970, 19850), picks="4f0fcf0ddbbe/e1255316553e"),
    "dtd": Published(
        47,
        _parts(2820, 1128, 1692),
        "0d04a9bb08938c9d435fc3c6b5030906334f6d8ccf4d80f8319e5d7f4fbdd4ba",
        "daf3b28e531f/9ef81bd9b8f3",
    ),
    "eurosat": Published(
        10,
        _parts(13500, 5400, 8100),
        "b9db23fedd13a2d3374107fe494f4fa814e7837c771660c850aab95ec391ad1a",
        "ad260707da91/f171ab42c4e4",
    ),
    "ucf101": Published(
        101,
        _parts(7639, 1898, 3783),
        "29a5dc239824943e473244fc18abf1b43734213fc748cffa25ccd773fbe7271a",
        "b88bd6d2db74/6499ec117e62",
    ),
    "imagenet": Published(
        1000,
        _parts(1281167, 50000, 50000),
        ids=_IMAGENET_IDS,
        per_class=50,
        files="dc1395be7727d421ee079b005ea91fccada3ffd3409c4d8f61f043e6fb62c04f",
    ),
    "imagenetv2": Published(1000, {"test": 10000}, per_class=10),
    "imagenet_sketch": Published(1000, {"test": 50889}, ids=_IMAGENET_IDS),
    "imagenet_a": Published(
        200, {"test": 7500}, ids="f6aa4b23244554d9b864fd715ae20048f6a9686388911b2dfbf1ada01bf0f520"
    ),
    "imagenet_r": Published(
        200, {"test": 30000}, ids="e19a59d84e3746fafd34d2ccf6ae604a44e9a0500a596f343c878a89e30ce624"
    ),
}


def lines_hash(lines):
    """SHA-256 (hex) of the lines joined by line feeds."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def picks_hash(selected):
    """ "<train>/<val>": 12 digits each of the SHA-256 over the paths of few-shot picks, in their order."""
    return "/".join(lines_hash(item.path for item in items)[:12] for items in selected.values())
