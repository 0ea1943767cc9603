"""What a user gives `custom`: every problem of a folder, a CSV file or a file of names is one line that names it."""

import os
import shutil
import unicodedata

import pytest

from dassl.utils import UserError
from datasets.files import find_images
from datasets.own_images import class_names, read_names
from tests.datasets.own import fill, make_image

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


def test_a_name_is_the_same_with_its_accents_apart_as_macos_writes_them(pics, build, tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    fill(pics / "train", apart, "dog")
    fill(pics / "test", "café", "dog", number=2)
    assert build().classnames == ["café", "dog"]
    (tmp_path / "names.yaml").write_text("café: crème\n", encoding="utf-8")
    (tmp_path / "apart.yaml").write_text(unicodedata.normalize("NFD", "café: crème\n"), encoding="utf-8")
    for names in ("names.yaml", "apart.yaml"):
        assert build(names=tmp_path / names).classnames == ["crème", "dog"]
    rows = [f"{part}/{name}/{i}.png,{name}" for part, name in (("train", apart), ("test", "café")) for i in range(2)]
    rows += [f"train/dog/{i}.png,dog" for i in range(4)]
    (pics / "list.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    assert build(pics / "list.csv").classnames == ["café", "dog"]


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


# ---- what can't be used ------------------------------------------------------------------------------------


def one_class(pics):
    fill(pics, "cat")


def wrapped_twice(pics):
    fill(pics / "pics", "cat", "dog")


def no_class_folders(pics):
    make_image(pics / "1.png")


def only_empty_folders(pics):
    (pics / "cat").mkdir()


def train_and_test_and_another(pics):
    for part in ("train", "test", "extra"):
        fill(pics / part, "cat", "dog", number=2)


def one_image_of_a_class(pics):
    fill(pics, "cat", "dog")
    fill(pics, "bee", "ant", number=1)


def only_copies_of_a_class(pics):
    fill(pics, "cat", "dog")
    for i in range(1, 10):
        shutil.copy(pics / "dog/0.png", pics / f"dog/{i}.png")


def a_class_that_does_not_decode(pics):
    fill(pics, "cat", "dog", "emu")
    for path in (pics / "dog").iterdir():
        path.write_text("no image")


def a_class_in_test_only(pics):
    fill(pics / "train", "cat", "dog")
    fill(pics / "test", "cat", "dog", "emu")


def case_between_train_and_test(pics):
    fill(pics / "train", "cat", "dog")
    fill(pics / "test", "Cat", "dog")


PROBLEMS = {
    one_class: r"only one class \(cat\), it takes two",
    wrapped_twice: r"only one class \(pics\).*perhaps the one above or below",
    no_class_folders: "no class folders with images .*make one folder per class",
    only_empty_folders: "no class folders with images",
    train_and_test_and_another: r"train and test folders, and others beside them \(extra\)",
    one_image_of_a_class: r"2 of 4 classes \(ant, bee\) have only one",
    only_copies_of_a_class: r"1 of 2 classes \(dog\) have only one",
    a_class_that_does_not_decode: "No image of the class 'dog' decodes",
    a_class_in_test_only: r"no training images for 1 of 3 classes \(first: emu\)",
    case_between_train_and_test: "'Cat' and 'cat' have the same name",
}


@pytest.mark.parametrize("make, message", PROBLEMS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_cannot_be_used_says_why_in_one_line(make, message, pics, build):
    make(pics)
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_class_with_fewer_images_than_shots_is_named(pics, build):
    fill(pics, "cat")
    fill(pics, "dog", number=4)
    with pytest.raises(UserError, match="'dog' has 2 training images, fewer than the 4 shots.*SHOTS=2"):
        build(shots=4)


def test_a_file_that_is_no_csv_is_refused(pics, build):
    with pytest.raises(UserError, match="neither a folder nor a CSV file"):
        build(make_image(pics / "1.png"))


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
