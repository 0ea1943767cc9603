"""Every dataset class on a tiny copy of its real folder layout; images are empty files, never decoded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

import datasets  # noqa: F401  (registers the classes)
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import UserError
from datasets import imagenet
from datasets.published import lines_hash
from tests.datasets.layouts import (
    CLASSNAMES,
    CONFIGS,
    LAYOUTS,
    NAMES,
    SIZES,
    SPLIT_DATASETS,
    TRAINABLE,
    VARIANTS,
    WNIDS,
    aircraft_layout,
    build,
    get,
    imagenet_layout,
    touch,
    variant_layout,
)

# ---- every dataset -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_class_reads_its_layout(name, tmp_path):
    LAYOUTS[name](tmp_path)
    dataset = build(name, tmp_path)
    per_class = SIZES["test"] if name in VARIANTS else SIZES["train"]
    assert (len(dataset.train_x), len(dataset.test)) == (5 * per_class, 5 * SIZES["test"])
    assert sorted({item.label for item in dataset.test}) == [0, 1, 2, 3, 4]
    assert (dataset.num_classes, len(dataset.classnames), len(dataset.split_hash)) == (5, 5, 64)
    assert all(Path(item.impath).is_file() for item in dataset.train_x + dataset.test)
    assert not (tmp_path / "split_fewshot").exists()


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_class_selects_shots_and_keeps_them_in_its_folder(name, tmp_path):
    LAYOUTS[name](tmp_path)
    first, again = build(name, tmp_path, shots=2), build(name, tmp_path, shots=2)
    cache = first.dataset_dir / "split_fewshot" / "shot_2-seed_1.json"
    assert [item.impath for item in again.train_x] == [item.impath for item in first.train_x]
    assert len(first.train_x) == 5 * 2
    assert len(first.val) == (5 * SIZES["test"] if name == "ImageNet" else 5 * 2)  # ImageNet: val is test
    assert len(first.test) == 5 * SIZES["test"]
    assert str(tmp_path) not in cache.read_text()
    assert ("val" in json.loads(cache.read_text())) == (name != "ImageNet")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_class_keeps_base_or_new_classes_of_the_same_selection(name, tmp_path):
    LAYOUTS[name](tmp_path)
    whole, base, new = (build(name, tmp_path, shots=2, subsample=part) for part in ("all", "base", "new"))
    assert (base.num_classes, new.num_classes) == (3, 2)
    assert base.classnames + new.classnames == whole.classnames
    for part in ("train_x", "test"):
        halves = [item.impath for half in (base, new) for item in getattr(half, part)]
        assert sorted(halves) == sorted(item.impath for item in getattr(whole, part))
    assert base.split_hash == new.split_hash == whole.split_hash


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_of_imagenet_are_test_sets_whatever_the_shots(name, tmp_path):
    LAYOUTS[name](tmp_path)
    dataset = build(name, tmp_path, shots=1)
    assert len(dataset.train_x) == len(dataset.test) == 5 * SIZES["test"]
    assert dataset.val is None
    assert not (dataset.dataset_dir / "split_fewshot").exists()


def test_every_config_file_names_a_registered_dataset_and_says_what_it_is():
    registered = {DATASET_REGISTRY.get(name).__name__ for name in LAYOUTS}
    files = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    assert files["dtd"].read_text().endswith('DATASET:\n  NAME: "DescribableTextures"\n')
    named = {}
    for stem, path in files.items():
        assert path.read_text().startswith("# "), stem
        content = yaml.safe_load(path.read_text())
        if stem == "custom":
            assert content.pop("INPUT") == {"EXIF_TRANSPOSE": True}
        assert list(content) == ["DATASET"] and list(content["DATASET"]) == ["NAME"], stem
        named[stem] = content["DATASET"]["NAME"]
    assert set(named.values()) == registered | {"Emoji", "Custom"}
    assert len(named) == 17


# ---- folders -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, alias",
    [
        ("SUN397", "SUN397"),
        ("DescribableTextures", "DTD"),
        ("OxfordFlowers", "Flower102"),
        ("OxfordFlowers", "flowers-102"),
        ("OxfordPets", "oxford-iiit-pet"),
        ("Caltech101", "caltech101"),
        ("FGVCAircraft", "fgvc-aircraft-2013b/data"),
    ],
)
def test_folder_names_of_other_codebases_are_accepted(name, alias, tmp_path):
    LAYOUTS[name](tmp_path / "made")
    (made,) = (tmp_path / "made").iterdir()
    (tmp_path / alias).parent.mkdir(exist_ok=True)
    made.rename(tmp_path / alias)
    assert build(name, tmp_path).dataset_dir == tmp_path / alias


def test_a_moved_data_root_keeps_its_selection(tmp_path, capsys):
    LAYOUTS["EuroSAT"](tmp_path / "old")
    before = build("EuroSAT", tmp_path / "old", shots=2)
    shutil.move(tmp_path / "old", tmp_path / "new")
    capsys.readouterr()
    after = build("EuroSAT", tmp_path / "new", shots=2)
    assert "Loading few-shot data" in capsys.readouterr().out
    moved = [item.impath.replace(str(tmp_path / "old"), str(tmp_path / "new")) for item in before.train_x]
    assert [item.impath for item in after.train_x] == moved


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_folder_is_one_line_with_the_place_and_the_page(name, tmp_path):
    folder = DATASET_REGISTRY.get(name).dataset_dir
    with pytest.raises(UserError) as caught:
        build(name, tmp_path)
    assert str(caught.value) == f"{name}: folder {folder} not found in {tmp_path}; {get(name, tmp_path)}"


@pytest.mark.parametrize("name", SPLIT_DATASETS)
def test_a_missing_split_is_an_error_and_never_drawn_anew(name, tmp_path):
    LAYOUTS[name](tmp_path)
    folder = tmp_path / SPLIT_DATASETS[name][0]
    (folder / f"split_zhou_{name}.json").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        build(name, tmp_path)
    assert str(caught.value) == f"{name}: split_zhou_{name}.json not found in {folder}; {get(name, tmp_path)}"
    assert not list(folder.glob("*.json"))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "StanfordCars"])
def test_a_missing_image_folder_is_named(name, tmp_path):
    LAYOUTS[name](tmp_path)
    images = build(name, tmp_path).image_dir
    shutil.rmtree(images)
    with pytest.raises(UserError, match=f"^{name}: {images.name} not found in .*; get it with"):
        build(name, tmp_path)


@pytest.mark.parametrize("name, lost", [("StanfordCars", "cars_test"), ("EuroSAT", "2750/Class4")])
def test_a_missing_image_is_named(name, lost, tmp_path):
    LAYOUTS[name](tmp_path)
    shutil.rmtree(tmp_path / SPLIT_DATASETS[name][0] / lost)
    with pytest.raises(UserError, match=f"{lost}/.*jpg.*DATASETS.md"):
        build(name, tmp_path)


def test_only_images_that_are_used_have_to_exist(tmp_path):
    """A fast start, and partial mirrors: no file is looked up that the run doesn't read."""
    LAYOUTS["EuroSAT"](tmp_path)
    used = {item.impath for item in build("EuroSAT", tmp_path, shots=2).train_x}
    for path in (tmp_path / "eurosat" / "2750").rglob("train_*.jpg"):
        if str(path) not in used:
            path.unlink()
    assert len(build("EuroSAT", tmp_path, shots=2).train_x) == 10


# ---- published or not --------------------------------------------------------------------------------------


def test_a_split_that_is_not_the_published_one_is_used_with_a_warning(tmp_path, capsys):
    LAYOUTS["EuroSAT"](tmp_path)
    build("EuroSAT", tmp_path)
    assert capsys.readouterr().out == (
        "Warning: split_zhou_EuroSAT.json is not the published split: results don't compare; "
        "python -m datasets.doctor eurosat says more\n"
    )


@pytest.mark.parametrize("name, files_known", [("ImageNet", 1), ("ImageNetA", 0)])
def test_class_names_folders_and_validation_files_are_verified_by_hash(
    name, files_known, tmp_path, capsys, monkeypatch
):
    LAYOUTS[name](tmp_path)
    build(name, tmp_path)
    names, folders, *files = capsys.readouterr().out.splitlines()
    assert "classnames.txt has not the class names of CLIP" in names
    assert f"class folders of {name}: results don't compare" in folders
    assert ["val has not the published images in the published classes" in line for line in files] == [
        True
    ] * files_known
    listing = sorted(f"{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(SIZES["test"]))
    cls = DATASET_REGISTRY.get(name)
    facts = cls.published._replace(ids=lines_hash(WNIDS), files=lines_hash(listing))
    monkeypatch.setattr(imagenet, "CLASSNAMES", lines_hash(CLASSNAMES.splitlines()))
    monkeypatch.setattr(cls, "published", facts)
    build(name, tmp_path)
    assert capsys.readouterr().out == ""


# ---- details of single datasets ----------------------------------------------------------------------------


def test_aircraft_variants_keep_slashes_and_spaces(tmp_path):
    aircraft_layout(tmp_path)
    dataset = build("FGVCAircraft", tmp_path)
    assert dataset.classnames == ["707-320", "A300B4", "F-16A/B", "F/A-18", "Hawk T1"]
    assert Path(dataset.train_x[0].impath).name == "0000001.jpg"


@pytest.mark.parametrize("line", ["0000001", "0000001 707-321"])
def test_an_aircraft_list_with_an_unknown_variant_is_refused_with_its_line(line, tmp_path):
    aircraft_layout(tmp_path)
    touch(tmp_path / "fgvc_aircraft" / "images_variant_val.txt", line + "\n")
    with pytest.raises(UserError, match=f'images_variant_val.txt: "{line}" names no variant of variants.txt'):
        build("FGVCAircraft", tmp_path)


def test_imagenet_takes_its_names_by_id_so_that_equal_names_stay_two_classes(tmp_path):
    imagenet_layout(tmp_path)
    classnames = tmp_path / "imagenet" / "classnames.txt"
    classnames.write_bytes(CLASSNAMES.replace("\n", "\r\n").encode())
    dataset = build("ImageNet", tmp_path)
    assert tuple(dataset.classnames) == NAMES
    assert {item.label for item in dataset.test if item.classname == "missile"} == {3, 4}


def test_imagenet_selects_the_same_images_whatever_order_the_file_system_lists_them_in(tmp_path, monkeypatch):
    imagenet_layout(tmp_path)
    one = build("ImageNet", tmp_path, shots=3)
    shutil.rmtree(tmp_path / "imagenet" / "split_fewshot")
    (tmp_path / "imagenet" / "index.json").unlink()
    plain = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: plain(path)[::-1])
    other = build("ImageNet", tmp_path, shots=3)
    assert [item.impath for item in other.train_x] == [item.impath for item in one.train_x]


def test_imagenet_lists_only_folders_that_have_changed_since_its_index(tmp_path, monkeypatch):
    imagenet_layout(tmp_path)
    build("ImageNet", tmp_path)
    listed, plain = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or plain(path))
    build("ImageNet", tmp_path)
    assert listed == []
    folder = tmp_path / "imagenet" / "images" / "train" / WNIDS[2]
    touch(folder / "new.JPEG")
    os.utime(folder, ns=(1, 1))  # a clock too coarse to notice
    assert len(build("ImageNet", tmp_path).train_x) == 5 * SIZES["train"] + 1
    assert listed == [str(folder)]
    assert str(tmp_path) not in (tmp_path / "imagenet" / "index.json").read_text()


@pytest.mark.parametrize("damage", ["", "[]", '{"train/n01440764": 3}'])
def test_imagenet_makes_a_damaged_index_afresh(tmp_path, damage):
    imagenet_layout(tmp_path)
    touch(tmp_path / "imagenet" / "index.json", damage)
    assert len(build("ImageNet", tmp_path).train_x) == 5 * SIZES["train"]
    assert len(json.loads((tmp_path / "imagenet" / "index.json").read_text())) == 10


def test_a_flat_imagenet_val_is_told_from_a_missing_one(tmp_path):
    imagenet_layout(tmp_path)
    val = tmp_path / "imagenet" / "images" / "val"
    shutil.rmtree(val)
    touch(val / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="val has no class folders: sort its images into one folder per class"):
        build("ImageNet", tmp_path)
    shutil.rmtree(val)
    with pytest.raises(UserError, match="ImageNet: val not found in"):
        build("ImageNet", tmp_path)


@pytest.mark.parametrize("emptied", [True, False])
def test_an_imagenet_class_without_training_images_does_not_shift_the_labels(tmp_path, emptied):
    imagenet_layout(tmp_path)
    folder = tmp_path / "imagenet" / "images" / "train" / WNIDS[1]
    shutil.rmtree(folder)
    if emptied:
        folder.mkdir()
    with pytest.raises(UserError, match=r"no training images for 1 of 5 classes \(first: kite \(bird of prey\)\)"):
        build("ImageNet", tmp_path, subsample="base")


def test_a_class_folder_without_a_name_is_refused(tmp_path):
    imagenet_layout(tmp_path)
    touch(tmp_path / "imagenet" / "classnames.txt", CLASSNAMES.replace("n03773504", "n99999999"))
    with pytest.raises(UserError, match=r"classnames\.txt has no class for the folder .*n03773504; get it with"):
        build("ImageNet", tmp_path)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_without_its_own_class_names_uses_those_of_imagenet(name, tmp_path):
    LAYOUTS[name](tmp_path)
    folder = tmp_path / VARIANTS[name][0]
    (folder / "classnames.txt").unlink()
    with pytest.raises(UserError, match=rf"{name}: classnames\.txt not found in .*imagenet; get it with"):
        build(name, tmp_path)
    touch(tmp_path / "imagenet" / "classnames.txt", CLASSNAMES)
    assert tuple(build(name, tmp_path).classnames) == NAMES


def test_imagenet_a_numbers_the_classes_it_has_and_names_them_by_id(tmp_path):
    variant_layout("imagenet-adversarial", "imagenet-a", (WNIDS[1], WNIDS[4]))(tmp_path)
    assert build("ImageNetA", tmp_path).classnames == ["kite (bird of prey)", "missile"]


def test_imagenetv2_reads_folder_numbers_as_labels_not_as_text(tmp_path):
    """As text 10 comes before 2: the classes would be scrambled."""
    variant_layout("imagenetv2", VARIANTS["ImageNetV2"][1], tuple(map(str, range(12))))(tmp_path)
    touch(tmp_path / "imagenetv2" / "classnames.txt", "".join(f"n{i:08d} name {i}\n" for i in range(12)))
    dataset = build("ImageNetV2", tmp_path)
    assert dataset.classnames == [f"name {i}" for i in range(12)]
    assert {Path(item.impath).parent.name for item in dataset.test if item.label == 10} == {"10"}


def test_imagenetv2_reads_a_release_with_ids_as_folder_names(tmp_path):
    variant_layout("imagenetv2", VARIANTS["ImageNetV2"][1], WNIDS)(tmp_path)
    assert tuple(build("ImageNetV2", tmp_path).classnames) == NAMES
