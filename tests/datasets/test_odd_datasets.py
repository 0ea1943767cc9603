"""Public datasets with something odd in their folders: each is left out by name, or refused in one line."""

import os

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from tests.datasets.layouts import (
    CLASSNAMES,
    LAYOUTS,
    SIZES,
    TRAINABLE,
    VARIANTS,
    WNIDS,
    aircraft_layout,
    build,
    cfg,
    imagenet_layout,
    touch,
)

FOLDER = {"ImageNet": f"imagenet/images/train/{WNIDS[1]}"}
FOLDER |= {name: f"{folder}/{images}/{classes[1]}" for name, (folder, images, classes) in VARIANTS.items()}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("template", ["a photo", "{x}", "{} {}", "a {"])
def test_a_template_without_exactly_one_place_is_refused_by_every_dataset(name, template, tmp_path):
    settings = cfg(tmp_path)
    settings.DATASET.TEMPLATE = template
    with pytest.raises(UserError, match="DATASET.TEMPLATE is .* it needs {} where the class name goes, once"):
        DATASET_REGISTRY.get(name)(settings)


def test_literal_braces_beside_the_place_are_text(tmp_path):
    LAYOUTS["EuroSAT"](tmp_path)
    settings = cfg(tmp_path)
    settings.DATASET.TEMPLATE = "a {{very}} good {}"
    assert DATASET_REGISTRY.get("EuroSAT")(settings).num_classes == 5


@pytest.mark.parametrize("name", FOLDER)
def test_what_is_no_image_in_a_class_folder_is_left_out_and_named(name, tmp_path, capsys):
    LAYOUTS[name](tmp_path)
    before = build(name, tmp_path)
    capsys.readouterr()
    for file in ("Thumbs.db", "notes.txt", "desktop.ini"):
        touch(tmp_path / FOLDER[name] / file)
    after = build(name, tmp_path)
    assert [item.impath for item in after.train_x] == [item.impath for item in before.train_x]
    assert after.split_hash == before.split_hash
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Left out")]
    assert len(lines) == 1 and "3 files that are no images by their extension (1 .db, 1 .ini, 1 .txt" in lines[0]
    assert "Thumbs.db" in lines[0]


def test_thumbs_in_an_index_made_before_are_left_out_too(tmp_path):
    imagenet_layout(tmp_path)
    touch(tmp_path / FOLDER["ImageNet"] / "Thumbs.db")
    assert len(build("ImageNet", tmp_path).train_x) == len(build("ImageNet", tmp_path).train_x) == 5 * SIZES["train"]


@pytest.mark.parametrize("name", FOLDER)
def test_a_class_folder_whose_name_is_no_utf_8_is_refused(name, tmp_path):
    LAYOUTS[name](tmp_path)
    os.mkdir(os.fsencode((tmp_path / FOLDER[name]).parent) + b"/caf\xe9")
    with pytest.raises(UserError, match=r"The name of the folder b'caf\\xe9' in .* is no UTF-8: rename it"):
        build(name, tmp_path)


@pytest.mark.parametrize("head", ["variant", "Variants:", "name\tlabel"])
def test_a_head_line_in_variants_is_named(head, tmp_path):
    aircraft_layout(tmp_path)
    path = tmp_path / "fgvc_aircraft" / "variants.txt"
    path.write_text(f"{head}\n{path.read_text()}")
    with pytest.raises(UserError, match=f'variants.txt: "{head}" is no variant of any image'):
        build("FGVCAircraft", tmp_path)


def test_variants_in_another_order_would_be_other_labels(tmp_path):
    aircraft_layout(tmp_path)
    path = tmp_path / "fgvc_aircraft" / "variants.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    with pytest.raises(UserError, match="variants.txt: the variants are in another order"):
        build("FGVCAircraft", tmp_path)


@pytest.mark.parametrize("name", ["ImageNet", *VARIANTS])
@pytest.mark.parametrize("content", [CLASSNAMES.encode("utf-16"), b"\xff" * 9])
def test_class_names_in_another_encoding_are_one_line(name, content, tmp_path):
    LAYOUTS[name](tmp_path)
    (tmp_path / FOLDER[name].split("/")[0] / "classnames.txt").write_bytes(content)
    with pytest.raises(UserError, match="classnames.txt.* is not UTF-8") as caught:
        build(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_only_the_variants_of_imagenet_are_for_tests_only(tmp_path):
    assert all(DATASET_REGISTRY.get(name).test_only == (name in VARIANTS) for name in LAYOUTS)


@pytest.mark.parametrize("name", TRAINABLE)
def test_base_and_new_need_two_classes_each(name, tmp_path, monkeypatch):
    LAYOUTS[name](tmp_path)
    keep_three(tmp_path, name, monkeypatch)
    with pytest.raises(UserError, match="3 classes are too few for base and new classes, which takes two of each"):
        build(name, tmp_path, subsample="new")


def keep_three(root, name, monkeypatch):
    """Have the dataset read three of its classes."""
    cls = DATASET_REGISTRY.get(name)
    split = {}
    for part, items in cls.read(root).items():
        split[part] = [item for item in items if item.label < 3]
    monkeypatch.setattr(cls, "read", staticmethod(lambda root: split))
