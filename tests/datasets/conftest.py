"""What the tests of fetching and of `custom` share."""

import json
import types

import pytest

from datasets import sources
from datasets.custom import Custom
from datasets.eurosat import EuroSAT
from datasets.published import Published
from datasets.splits import read_split, split_hash
from tests.datasets.fetching import SPLIT, hashes, under, zipped
from tests.datasets.own import cfg


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """A catalogue with one small dataset whose archive and split the server has; returns a namespace of it all."""
    archive, split = zipped(under("2750")), json.dumps(SPLIT).encode()
    (tmp_path / "made.json").write_bytes(split)
    eurosat = {
        "name": "EuroSAT",
        "licence": "MIT",
        "unpacked": 200_000,
        "files": ["split_zhou_EuroSAT.json"],
        "images": {"2750": ["EuroSAT_RGB"]},
        "sources": [{"official": [{"url": server.put("EuroSAT.zip", archive)} | hashes(archive, "sha256", "md5")]}],
    }
    split_file = {"sources": [{"mirror": {"url": server.put("split.json", split)}}]}
    facts = Published(1, {"train": 1, "val": 1, "test": 1}, split_hash(read_split(tmp_path / "made.json")))
    monkeypatch.setattr(EuroSAT, "published", facts)
    catalogue = {"datasets": {"eurosat": eurosat}, "files": {"split_zhou_EuroSAT.json": split_file}}
    monkeypatch.setattr(sources, "catalogue", lambda: catalogue)
    monkeypatch.setattr(sources, "DRIVE_URL", f"{server.base}/drive-")
    root = tmp_path / "data"
    return types.SimpleNamespace(
        server=server, archive=archive, entry=eurosat, split_file=split_file, catalogue=catalogue, root=root,
        folder=root / "eurosat",
    )  # fmt: skip


@pytest.fixture
def pics(tmp_path):
    """The image folder, empty."""
    folder = tmp_path / "pics"
    folder.mkdir()
    return folder


@pytest.fixture
def build(tmp_path, pics):
    """build(images=pics, ...): the dataset; what it keeps goes to tmp_path/kept."""

    def build(images=pics, **settings):
        return Custom(cfg(tmp_path / "kept", images, **settings))

    return build


@pytest.fixture
def kept(tmp_path):
    """kept(): the path of the split.json that was written."""

    def find():
        (path,) = (tmp_path / "kept" / "custom").glob("*/split.json")
        return path

    return find
