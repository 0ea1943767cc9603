"""datasets/sources.yaml: every entry is complete, well formed, and fits the class that loads the dataset."""

import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from datasets import doctor, fetch, sources


def test_the_catalogue_has_the_fifteen_datasets_with_the_folders_and_files_of_their_loaders():
    entries = sources.catalogue()["datasets"]
    configs = {path.stem for path in (Path(fetch.__file__).parents[1] / "configs/datasets").glob("*.yaml")}
    assert len(entries) == 15 and set(entries) <= configs
    for entry in entries.values():
        cls = DATASET_REGISTRY.get(entry["name"])
        assert [cls.split_file] == [name for name in entry["files"] if name.startswith("split")] or not cls.split_file
        assert cls.image_dir in (*entry["images"], *(name.split("/")[0] for name in entry["images"]), ".")
        assert entry["licence"] and entry["unpacked"] > 1e7 and set(entry["files"]) <= set(sources.catalogue()["files"])


@pytest.mark.parametrize(
    "name, meant", [("oxford-iiit-pets", "oxford_pets"), ("imagenet-adversary", "imagenet_a"), ("Food-102", "food101")]
)
def test_fetch_and_doctor_take_a_wrong_name_for_the_same_dataset(name, meant, tmp_path, capsys):
    for command in (fetch, doctor):
        assert command.main([name, "--root", str(tmp_path)]) == 1
        assert re.search(f"do you mean ['\"]{meant}['\"]", capsys.readouterr().err)


def test_fetch_and_doctor_know_datasets_by_their_folders_too(tmp_path, capsys):
    for command, arguments in ((fetch, ["--dry-run"]), (doctor, [])):
        command.main(["oxford-iiit-pet", "--root", str(tmp_path), *arguments])
        assert "OxfordPets: " in capsys.readouterr().out


def all_sources():
    for entry in sources.catalogue()["datasets"].values():
        for source in entry["sources"]:
            ((kind, archives),) = source.items()
            yield from ((kind, archive) for archive in archives)
    for entry in sources.catalogue()["files"].values():
        for source in entry["sources"]:
            ((kind, place),) = source.items()
            yield kind, place


def test_every_source_is_of_a_known_kind_with_an_https_address_or_a_drive_id():
    for kind, archive in all_sources():
        assert kind in fetch.KINDS and set(archive) <= {"url", "host", "path", "id", "name", "size", "md5", "sha256"}
        assert ("id" in archive) == (kind == "drive") != ("url" in archive or {"host", "path"} <= set(archive))
        if kind == "drive":
            assert re.fullmatch(r"[\w-]{33}", archive["id"])
        else:
            parts = urlparse(sources.link(archive))
            assert parts.scheme == "https" and parts.path.rsplit("/", 1)[1] and "{" not in sources.link(archive)


def test_every_archive_has_a_name_and_every_dataset_without_archives_of_ones_own_has_sources():
    for entry in sources.catalogue()["datasets"].values():
        assert bool(entry["sources"]) != ("archives" in entry)
        assert all(sources.name_of(archive) for source in entry["sources"] for (archive, *_) in source.values())


def test_hashes_and_sizes_are_well_formed():
    described = [archive for _, archive in all_sources()]
    described += sources.catalogue()["files"].values()
    described += sources.catalogue()["datasets"]["imagenet"]["archives"].values()
    lengths = {"md5": 32, "sha256": 64}
    for facts in described:
        for name in lengths.keys() & facts.keys():
            assert re.fullmatch(f"[0-9a-f]{{{lengths[name]}}}", facts[name])
        assert facts.get("size", 1) > 0
