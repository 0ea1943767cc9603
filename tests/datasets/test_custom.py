"""Custom: the layouts it reads, the split it draws and keeps, and every fault of a folder it names."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import datasets.splits
from dassl.utils import UserError
from datasets.custom import Custom
from datasets.files import find_images
from datasets.own_images import class_names, read_names


def cfg(root, images, names="", template="", shots=-1, seed=1, subsample="all"):
    options = SimpleNamespace(
        ROOT=str(root),
        IMAGES=str(images),
        CLASSNAMES=str(names),
        TEMPLATE=template,
        NUM_SHOTS=shots,
        SUBSAMPLE_CLASSES=subsample,
    )
    return SimpleNamespace(DATASET=options, SEED=seed)


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


noise = np.random.default_rng(0)


def picture(path):
    """A picture unlike every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() not in (".jpg", ".jpeg") else "JPEG"
    Image.fromarray(noise.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path, format=kind)
    return path


def fill(top, *classes, number=10):
    for name in classes:
        for i in range(number):
            picture(top / name / f"{i}.png")


def names_of(items, folder):
    return [Path(item.impath).relative_to(folder).as_posix() for item in items]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- layouts -----------------------------------------------------------------------------------------------


def test_class_folders_are_cut_50_20_30_per_class_with_labels_in_the_order_of_their_names(pics, build):
    fill(pics, "dog", "cat")
    fill(pics, "ant", number=20)
    dataset = build()
    assert dataset.classnames == ["ant", "cat", "dog"]
    for part, share in (("train_x", 0.5), ("val", 0.2), ("test", 0.3)):
        labels = [item.label for item in getattr(dataset, part)]
        assert [labels.count(label) for label in range(3)] == [20 * share, 10 * share, 10 * share]
        assert all(Path(item.impath).parent.name == item.classname for item in getattr(dataset, part))
    used = [item.impath for part in (dataset.train_x, dataset.val, dataset.test) for item in part]
    assert sorted(used) == sorted(map(str, pics.rglob("*.png")))


def test_pictures_are_drawn_by_content_so_names_folders_and_machines_do_not_matter(pics, build, tmp_path):
    fill(pics, "cat", "dog")
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in (pics / "cat").iterdir())
    tested = [Path(item.impath) for item in build().test if item.classname == "cat"]
    assert sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in tested) == digests[:3]
    other = tmp_path / "other"
    for i, path in enumerate(sorted(pics.rglob("*.png"), reverse=True)):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / path.parent.name / f"renamed_{i}.png")
    bytes_of = [{Path(item.impath).read_bytes() for item in each.test} for each in (build(), build(other))]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize("train, val, test", [("train", "val", "test"), ("Training", "validation", "TESTING")])
def test_train_val_and_test_folders_are_taken_as_they_are(pics, build, train, val, test):
    fill(pics / train, "cat", "dog", number=3)
    fill(pics / val, "cat", "dog", number=1)
    fill(pics / test, "cat", "dog", number=2)
    dataset = build()
    assert set(names_of(dataset.test, pics)) == {f"{test}/{name}/{i}.png" for name in ("cat", "dog") for i in range(2)}
    assert (len(dataset.train_x), len(dataset.val)) == (6, 2)


def test_without_a_val_folder_there_is_no_validation_and_nothing_is_drawn(pics, build):
    fill(pics / "train", "cat", "dog")
    fill(pics / "test", "cat", "dog", number=2)
    dataset = build(shots=4)
    assert (len(dataset.train_x), dataset.val, len(dataset.test)) == (8, [], 4)


def test_without_a_test_folder_test_is_drawn_from_train_and_a_given_val_stays(pics, build):
    fill(pics / "train", "cat", "dog")
    fill(pics / "val", "cat", "dog", number=2)
    dataset = build()
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (14, 4, 6)
    assert all(name.startswith("val/") for name in names_of(dataset.val, pics))


def test_a_class_may_be_called_train(pics, build):
    fill(pics, "train", "car", "plane")
    assert build().classnames == ["car", "plane", "train"]


def test_a_csv_file_lists_pictures_from_its_folder_and_may_say_the_split(pics, build, tmp_path):
    fill(pics, "a", number=4)
    fill(tmp_path / "elsewhere", "b", number=4)
    rows = [f"a/{i}.png, red fox ,{part}" for i, part in enumerate(("train", "Train", "test", "valid"))]
    rows += [f"{tmp_path}/elsewhere/b/{i}.png,007,{part}" for i, part in enumerate(("train", "test", "test", "val"))]
    listing = pics / "list.csv"
    listing.write_bytes(("\ufeffpath,label,split\r\n" + "\r\n".join(rows) + "\r\n").encode())  # as Excel writes it
    dataset = build(listing)
    assert dataset.classnames == ["007", "red fox"]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [3, 2, 3]
    assert dataset.train_x[-1].impath == f"{tmp_path}/elsewhere/b/0.png"


def test_a_csv_file_without_splits_is_cut_like_a_folder(pics, build):
    fill(pics, "x", number=20)
    lines = [f"x/{i}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(20)]
    (pics / "list.csv").write_text("\n".join(["path,label", *lines]))
    dataset = build(pics / "list.csv")
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [10, 4, 6]


def test_nested_folders_links_and_upper_case_extensions_count_hidden_and_other_files_do_not(pics, build, tmp_path):
    fill(pics, "cat", "dog", number=2)
    picture(pics / "cat/deep/er/IMG 1.JPG")
    fill(tmp_path / "elsewhere", "more", number=1)
    (pics / "dog/linked").symlink_to(tmp_path / "elsewhere/more")
    (pics / "dog/loop").symlink_to(pics / "dog")
    for path in ("cat/.hidden.png", "cat/._1.png", ".trash/x/1.png", "cat/.thumbs/1.png"):
        picture(pics / path)
    for path in ("cat/Thumbs.db", "notes.txt", "dog/list.json"):
        (pics / path).write_text("no picture")
    dataset = build()
    used = names_of(dataset.train_x + dataset.val + dataset.test, pics)
    assert sorted(used) == [
        "cat/0.png", "cat/1.png", "cat/deep/er/IMG 1.JPG", "dog/0.png", "dog/1.png", "dog/linked/0.png"
    ]  # fmt: skip
    assert dataset.classnames == ["cat", "dog"]


def test_empty_folders_other_files_and_pictures_outside_class_folders_are_left_out_and_named(pics, build, capsys):
    fill(pics, "cat", "dog")
    (pics / "unsorted").mkdir()
    picture(pics / "loose.png")
    for path in ("cat/1.HEIC", "dog/2.heic", "dog/notes.txt"):
        (pics / path).touch()
    assert build().classnames == ["cat", "dog"]
    out = capsys.readouterr().out
    assert "without an image (unsorted)" in out and "1 images that lie in" in out
    assert "no images by their extension (2 .heic, 1 .txt)" in out


# ---- class names -------------------------------------------------------------------------------------------


def test_names_are_read_off_the_folders_or_given_in_a_yaml_file(pics, build, tmp_path):
    fill(pics, "n01", "sea_lion", "great-white_shark", "no")
    names = tmp_path / "names.yaml"
    names.write_text("n01: tench\nno: 007\n")
    assert build().classnames == ["great white shark", "n01", "no", "sea lion"]
    assert build(names=names).classnames == ["great white shark", "tench", "007", "sea lion"]


@pytest.mark.parametrize("same", [("Cat", "cat"), ("sea-lion", "sea_lion"), ("Sea_Lion", "sea lion")])
def test_two_classes_of_one_name_are_refused(same):
    with pytest.raises(UserError, match=f"{same[0]!r} and {same[1]!r} have the same name.*CLASSNAMES"):
        class_names(set(same))


def test_two_classes_of_one_name_can_be_given_two_names(tmp_path):
    (tmp_path / "names.yaml").write_text("crane: crane, a bird\n")
    assert class_names({"crane", "Crane"}, tmp_path / "names.yaml") == {"crane": "crane, a bird", "Crane": "Crane"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("dgo: hound", "names a class 'dgo', do you mean 'dog'?"),
        ("- dog\n- cat", 'must hold lines "folder: name"'),
        ("dog: [", "is not YAML"),
        ("dog: Cat", "'cat' and 'dog' have the same name"),
        ("dog", "must be YAML"),
        ("dog:", "must be YAML"),
        ("dog: [a, b]", "must be YAML, a class name on every line"),
    ],
)
def test_a_wrong_file_of_names_is_refused(text, message, tmp_path):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        class_names({"dog", "cat"}, tmp_path / "names.yaml")
    assert message in str(caught.value)


def test_a_missing_file_of_names_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names\.yaml"):
        read_names(tmp_path / "names.yaml")


# ---- the split is kept -------------------------------------------------------------------------------------


def test_the_split_is_written_once_in_coops_form_and_read_back_without_decoding(pics, build, kept, monkeypatch):
    fill(pics, "cat", "dog_house")
    first = build()
    split = json.loads(kept().read_text())
    assert split["train"][-1][1:] == [1, "dog_house"] and str(pics) not in kept().read_text()
    assert datasets.splits.read_split(kept()).keys() == {"train", "val", "test"}
    monkeypatch.setattr("datasets.custom.check_images", None)
    again = build()
    assert [item.impath for item in again.test] == [item.impath for item in first.test]
    assert again.split_hash == first.split_hash


def test_nothing_is_written_into_the_folder_with_the_pictures(pics, build, kept):
    fill(pics, "cat", "dog")
    before = contents(pics)
    build(shots=2)
    assert contents(pics) == before
    assert (kept().parent / "split_fewshot/shot_2-seed_1.json").is_file()


def test_the_hash_in_result_json_starts_from_the_folder_with_the_pictures(pics, build):
    fill(pics, "cat", "dog")
    assert build().dataset_dir == pics


def test_two_folders_of_the_same_name_have_two_splits(build, tmp_path):
    for place in ("a", "b"):
        fill(tmp_path / place / "pics", "cat", "dog", number=4)
        build(tmp_path / place / "pics")
    assert len(list((tmp_path / "kept/custom").glob("pics-*/split.json"))) == 2


def test_shots_and_seeds_select_from_the_same_split(pics, build):
    fill(pics, "cat", "dog", "emu", "fox")
    whole, one, two = build(), build(shots=2, seed=1), build(shots=2, seed=2)
    assert [item.impath for item in one.test] == [item.impath for item in two.test]
    assert {item.impath for item in one.train_x + two.train_x} <= {item.impath for item in whole.train_x}
    base, new = (build(shots=2, subsample=part) for part in ("base", "new"))
    assert (base.classnames, new.classnames) == (["cat", "dog"], ["emu", "fox"])


def test_new_pictures_and_classes_do_not_change_a_split_until_it_is_deleted(pics, build, kept, capsys):
    fill(pics, "cat", "dog")
    before = build()
    picture(pics / "dog/new.png")
    fill(pics, "bee")
    capsys.readouterr()
    after = build()
    assert after.classnames == ["cat", "dog"]
    assert [item.impath for item in after.test] == [item.impath for item in before.test]
    assert f"11 images newer than the split (first: bee/0.png); to have them in, delete {kept()}" in (
        capsys.readouterr().out
    )
    kept().unlink()
    assert build().classnames == ["bee", "cat", "dog"]


def test_a_picture_that_is_gone_or_moved_to_another_class_stops_the_run(pics, build, kept):
    fill(pics, "cat", "dog")
    build()
    (pics / "cat/3.png").rename(pics / "dog/cat3.png")
    with pytest.raises(UserError, match=r"1 images of the split in .* \(first: cat/3\.png\): put them back, or delete"):
        build()


def test_a_csv_file_with_other_labels_or_parts_does_not_meet_its_old_split(pics, build):
    fill(pics, "x", number=8)
    listing = pics / "list.csv"
    lines = [f"x/{i}.png,{'ab'[i % 2]},{'test' if i < 4 else 'train'}" for i in range(8)]
    listing.write_text("\n".join(["path,label,split", *lines]))
    build(listing)
    for old, new in (("x/7.png,b,train", "x/7.png,a,train"), ("x/7.png,b,train", "x/7.png,b,test")):
        listing.write_text("\n".join(["path,label,split", *lines]).replace(old, new))
        with pytest.raises(UserError, match=r"gone or filed elsewhere \(first: x/7.png\)"):
            build(listing)


@pytest.mark.parametrize("damage", ["", "[]", '{"train": [[1]]}'])
def test_a_damaged_split_says_what_to_do(pics, build, kept, damage):
    fill(pics, "cat", "dog")
    build()
    kept().write_text(damage)
    with pytest.raises(UserError, match=r"split\.json is damaged: delete it"):
        build()


def test_where_nothing_can_be_kept_the_same_split_is_drawn_every_time(pics, build, tmp_path, capsys):
    fill(pics, "cat", "dog")
    (tmp_path / "kept").write_text("a file where the folder should go")
    first = [item.impath for item in build(shots=2).train_x]
    assert "Not kept for later runs" in capsys.readouterr().out
    assert [item.impath for item in build(shots=2).train_x] == first


# ---- copies, and pictures that do not decode ---------------------------------------------------------------


def test_copies_in_train_and_test_are_reported_every_time(pics, build, kept, capsys):
    fill(pics / "train", "cat", "dog", number=3)
    fill(pics / "test", "cat", "dog", number=2)
    shutil.copy(pics / "train/cat/1.png", pics / "test/cat/other name.png")
    shutil.copy(pics / "train/dog/1.png", pics / "train/dog/harmless.png")
    for _ in ("drawn", "read back"):
        build()
        out = capsys.readouterr().out
        assert "1 images are there more than once" in out and "SHA-256" in out
        assert "test/cat/other name.png = train/cat/1.png" in out
    assert json.loads(kept().read_text())["copies"] == [["test/cat/other name.png", "train/cat/1.png"]]


def test_one_picture_in_two_classes_is_reported(pics, build, capsys):
    fill(pics, "cat", "dog")
    shutil.copy(pics / "cat/1.png", pics / "dog/x.png")
    build()
    assert "cat/1.png = dog/x.png" in capsys.readouterr().out


def test_a_drawn_split_keeps_the_copies_of_a_picture_together(pics, build, capsys):
    fill(pics, "cat", "dog", number=6)
    for path in list(pics.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    dataset = build()
    parts = [{Path(item.impath).read_bytes() for item in part} for part in (dataset.train_x, dataset.val, dataset.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [12, 4, 8]
    assert "more than once" not in capsys.readouterr().out


def test_pictures_that_do_not_decode_are_named_and_left_out(pics, build, kept, capsys):
    fill(pics, "cat", "dog")
    (pics / "cat/broken.jpg").write_text("no picture")
    whole = picture(pics / "dog/cut.png").read_bytes()
    (pics / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
    dataset = build()
    out = capsys.readouterr().out
    for name in ("cat/broken.jpg", "dog/cut.png"):
        assert f'Cannot read the image "{pics / name}"' in out
    assert not {"broken.jpg", "cut.png"} & {Path(i.impath).name for i in dataset.train_x + dataset.val + dataset.test}
    build()
    assert "2 images that don't decode (cat/broken.jpg, dog/cut.png)" in capsys.readouterr().out


# ---- what can't be used ------------------------------------------------------------------------------------


def one_class(pics):
    fill(pics, "cat")


def wrapped_twice(pics):
    fill(pics / "pics", "cat", "dog")


def no_class_folders(pics):
    picture(pics / "1.png")


def only_empty_folders(pics):
    (pics / "cat").mkdir()


def train_and_test_and_another(pics):
    for part in ("train", "test", "extra"):
        fill(pics / part, "cat", "dog", number=2)


def one_picture_of_a_class(pics):
    fill(pics, "cat", "dog")
    fill(pics, "bee", "ant", number=1)


def only_copies_of_a_class(pics):
    fill(pics, "cat", "dog")
    for i in range(1, 10):
        shutil.copy(pics / "dog/0.png", pics / f"dog/{i}.png")


def a_class_that_does_not_decode(pics):
    fill(pics, "cat", "dog", "emu")
    for path in (pics / "dog").iterdir():
        path.write_text("no picture")


def a_class_in_test_only(pics):
    fill(pics / "train", "cat", "dog")
    fill(pics / "test", "cat", "dog", "emu")


def case_between_train_and_test(pics):
    fill(pics / "train", "cat", "dog")
    fill(pics / "test", "Cat", "dog")


FAULTS = {
    one_class: r"only one class \(cat\), it takes two",
    wrapped_twice: r"only one class \(pics\).*perhaps the one above or below",
    no_class_folders: "no class folders with images .*make one folder per class",
    only_empty_folders: "no class folders with images",
    train_and_test_and_another: r"train and test folders, and others beside them \(extra\)",
    one_picture_of_a_class: r"2 of 4 classes \(ant, bee\) have only one",
    only_copies_of_a_class: r"1 of 2 classes \(dog\) have only one",
    a_class_that_does_not_decode: "No image of the class 'dog' decodes",
    a_class_in_test_only: r"no training images for 1 of 3 classes \(first: emu\)",
    case_between_train_and_test: "'Cat' and 'cat' have the same name",
}


@pytest.mark.parametrize("make, message", FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_cannot_be_used_says_why_in_one_line(make, message, pics, build):
    make(pics)
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_class_with_fewer_pictures_than_shots_is_named(pics, build):
    fill(pics, "cat")
    fill(pics, "dog", number=4)
    with pytest.raises(UserError, match="'dog' has 2 training images, fewer than the 4 shots.*SHOTS=2"):
        build(shots=4)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0.png,cat\n", '"path,label"'),
        ("", '"path,label"'),
        ("path,label\n", "lists no images"),
        ("path,label\nx/0.png,a\nx/9.png,b\n", "line 3: no image at .*x/9.png"),
        ("path,label\nx/0.png,\n", "line 2: no label"),
        ("path,label\nx/0.png,a\nx/0.png,b\n", "line 3: x/0.png for the second time"),
        ("path,label,split\nx/0.png,a,test\nx/1.png,a,\n", "names a split for some images only"),
        ("path,label,split\nx/0.png,a,dev\n", 'line 2: split "dev" is not train, val or test'),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_refused_with_its_line(text, message, pics, build):
    fill(pics, "x", number=2)
    (pics / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        build(pics / "list.csv")


def test_a_file_that_is_no_csv_is_refused(pics, build):
    with pytest.raises(UserError, match="neither a folder nor a CSV file"):
        build(picture(pics / "1.png"))


@pytest.mark.parametrize("images, message", [("", "IMAGES is not set"), ("/nowhere", "No /nowhere; .*IMAGES")])
def test_a_missing_folder_is_named(images, message, build):
    with pytest.raises(UserError, match=message):
        build(images)


def test_a_template_without_a_place_for_the_name_is_refused(pics, build):
    fill(pics, "cat", "dog")
    with pytest.raises(UserError, match="DATASET.TEMPLATE is 'a photo': it needs {} where"):
        build(template="a photo")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(pics):
    fill(pics, "cat/closed")
    (pics / "cat/closed").chmod(0)
    with pytest.raises(UserError, match=r"Can't list .*closed \(Permission denied\)"):
        find_images(pics / "cat")
    (pics / "cat/closed").chmod(0o755)
