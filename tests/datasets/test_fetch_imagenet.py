"""python -m datasets.fetch imagenet: archives that the user has downloaded, and folders that he has unpacked."""

import hashlib
import os
import types

import pytest

from datasets.imagenet import ImageNet
from datasets.published import Published, lines_hash
from tests.datasets.fetching import files_in, run, tarred

WNIDS = [f"n{n:08d}" for n in range(20)]


@pytest.fixture
def imagenet(world, monkeypatch):
    """ImageNet with 20 classes of one training and one validation image; its archives are in `archives`."""
    listing = "".join(f"mkdir -p {w}\n" for w in WNIDS)
    listing += "".join(f"mv ILSVRC2012_val_{n:08d}.JPEG {w}/{chr(9) * (n % 2)}\n" for n, w in enumerate(WNIDS, 1))
    train = tarred({f"{w}.tar": tarred({f"{w}_1.JPEG": b"t"}, "w") for w in WNIDS}, "w")
    val = tarred({f"ILSVRC2012_val_{n:08d}.JPEG": str(n).encode() for n in range(1, 21)}, "w")
    entry = {
        "name": "ImageNet", "licence": "terms", "unpacked": 20_000_000, "files": [], "sources": [],
        "images": {"images/train": [], "images/val": []},
        "archives": {
            "ILSVRC2012_img_train.tar": {"what": "Training", "about": 2e9, "md5": hashlib.md5(train).hexdigest()},
            "ILSVRC2012_img_val.tar": {"what": "Validation", "about": 1e9, "md5": hashlib.md5(val).hexdigest()},
        },
    }  # fmt: skip
    world.catalogue["datasets"]["imagenet"] = entry
    world.catalogue["files"]["valprep.sh"] = {
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "sources": [{"official": {"url": world.server.put("valprep.sh", listing.encode())}}],
    }
    facts = Published(20, {"train": 20, "val": 20}, ids=lines_hash(WNIDS))
    monkeypatch.setattr(ImageNet, "published", facts)
    folder = world.root / "imagenet"
    folder.mkdir(parents=True)
    archives = {"ILSVRC2012_img_train.tar": train, "ILSVRC2012_img_val.tar": val}
    return types.SimpleNamespace(folder=folder, archives=archives, world=world)


def test_imagenet_without_archives_prints_the_steps_and_fails(imagenet, capsys):
    assert run(imagenet.world, "imagenet") == 1
    captured = capsys.readouterr()
    assert "https://image-net.org" in captured.out and f"into {imagenet.folder}" in captured.out
    assert "ILSVRC2012_img_train.tar  Training, 2.0 GB, MD5 " in captured.out
    assert f"no {imagenet.folder}/images/train" in captured.err


def test_imagenet_is_unpacked_from_the_users_archives_sorted_and_counted(imagenet, capsys):
    for name, content in imagenet.archives.items():
        (imagenet.folder / name).write_bytes(content)
    assert run(imagenet.world, "imagenet") == 0
    found = files_in(imagenet.folder / "images")
    assert len(found) == 40 and found["train/n00000007/n00000007_1.JPEG"] == b"t"
    assert found["val/n00000007/ILSVRC2012_val_00000008.JPEG"] == b"8"
    assert all((imagenet.folder / name).is_file() for name in imagenet.archives)


def test_a_flat_validation_folder_is_sorted_in_place_even_after_an_interruption(imagenet):
    val = imagenet.folder / "images" / "val"
    for n, wnid in enumerate(WNIDS, 1):
        (imagenet.folder / "images" / "train" / wnid).mkdir(parents=True)
        (imagenet.folder / "images" / "train" / wnid / "x.JPEG").touch()
        place = val / wnid if n <= 8 else val
        place.mkdir(parents=True, exist_ok=True)
        (place / f"ILSVRC2012_val_{n:08d}.JPEG").touch()
    assert run(imagenet.world, "imagenet") == 0
    assert not list(val.glob("*.JPEG")) and len(list(val.glob("*/*.JPEG"))) == 20


def test_a_linked_folder_leads_to_the_same_images_when_it_is_brought_to_its_place(imagenet, tmp_path):
    for part in ("train", "val"):
        for wnid in WNIDS:
            (tmp_path / "store" / part / wnid).mkdir(parents=True)
            (tmp_path / "store" / part / wnid / "x.JPEG").touch()
        (imagenet.folder / part).symlink_to(os.path.relpath(tmp_path / "store" / part, imagenet.folder))
    assert run(imagenet.world, "imagenet") == 0
    assert len(list((imagenet.folder / "images" / "train").glob("*/*.JPEG"))) == 20
    assert len(files_in(tmp_path / "store")) == 40


def test_a_broken_imagenet_archive_and_missing_images_are_named(imagenet, capsys):
    (imagenet.folder / "ILSVRC2012_img_val.tar").write_bytes(b"x")
    assert run(imagenet.world, "imagenet") == 1
    assert "ILSVRC2012_img_val.tar has the wrong MD5" in capsys.readouterr().err
    (imagenet.folder / "ILSVRC2012_img_val.tar").unlink()
    (imagenet.folder / "images" / "train" / "n00000001").mkdir(parents=True)
    (imagenet.folder / "images" / "val").mkdir()
    assert run(imagenet.world, "imagenet") == 1
    err = capsys.readouterr().err
    assert "the 1 folders in" in err and "val has 0 images in class folders instead of" in err
