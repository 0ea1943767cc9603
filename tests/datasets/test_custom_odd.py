"""Custom and files that are odd: links to nowhere, names that are no UTF-8, other formats, folders for tests only."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dassl.utils import UserError
from datasets.files import IMAGE_SUFFIXES
from tests.datasets.own import fill, make_image, names_of

# ---- what is left out --------------------------------------------------------------------------------------


def test_links_to_nowhere_are_named_as_such(pics, build, capsys):
    fill(pics, "cat", "dog")
    (pics / "cat/gone.png").symlink_to("/nowhere/1.png")
    (pics / "dog/sub").mkdir()
    (pics / "dog/sub/lost.jpg").symlink_to(pics / "lost.jpg")
    build()
    out = capsys.readouterr().out
    assert "2 links in" in out and "lead to no file (cat/gone.png, dog/sub/lost.jpg)" in out
    assert "by their extension" not in out


def test_a_pipe_with_the_name_of_an_image_is_not_opened(pics, build):
    fill(pics, "cat", "dog")
    os.mkfifo(pics / "cat/pipe.png")
    assert len(build().train_x) == 10


def test_a_class_folder_whose_name_is_no_utf_8_is_refused_in_one_line(pics, build):
    fill(pics, "cat", "dog")
    os.mkdir(os.fsencode(pics) + b"/caf\xe9")
    with pytest.raises(UserError, match=r"The name of the folder b'caf\\xe9' in .* is no UTF-8: rename it"):
        build()


def test_an_image_whose_name_is_no_utf_8_is_used(pics, build, kept):
    fill(pics, "cat", "dog")
    odd = pics / "cat" / b"caf\xe9.png".decode(errors="surrogateescape")
    make_image(odd)
    for _ in ("drawn", "read back"):
        dataset = build()
        assert str(odd) in [item.impath for item in dataset.train_x + dataset.val + dataset.test]


def test_class_names_in_any_script_are_kept(pics, build):
    fill(pics, "日本語", "ßäö", "a😀")
    assert build().classnames == ["a😀", "ßäö", "日本語"]


# ---- formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [suffix for suffix in (".avif", ".jp2") if suffix in IMAGE_SUFFIXES])
def test_what_this_pillow_can_read_is_an_image(suffix, pics, build):
    noise = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (pics / name).mkdir()
        for i in range(4):
            pixels = noise.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(pics / name / f"{i}{suffix}")
    dataset = build()
    assert len(dataset.train_x + dataset.val + dataset.test) == 8


def test_what_it_cannot_read_is_left_out_and_counted(pics, build, capsys):
    fill(pics, "cat", "dog")
    (pics / "cat/1.heic").write_bytes(b"ftypheic")
    build()
    out = capsys.readouterr().out
    assert "(1 .heic)" in out or "1 images that don't decode (cat/1.heic)" in out


def test_gray_images_of_16_bits_and_transparent_ones_are_read_as_people_see_them(pics, build):
    fill(pics, "cat", "dog")
    Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16)).save(pics / "cat/gray.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(pics / "dog/clear.png")
    dataset = build()
    assert len(dataset.train_x + dataset.val + dataset.test) == 22


# ---- a problem is found before every image is decoded --------------------------------------------------------


def nested_parts(pics):
    for part in ("train", "test"):
        fill(pics / part / part, "cat", "dog", number=2)


def class_in_val_only(pics):
    fill(pics / "train", "cat", "dog", number=2)
    fill(pics / "val", "cat", "emu", number=2)


def single_images(pics):
    fill(pics, "cat", "dog", "emu", number=1)


def val_and_test(pics):
    for part in ("val", "test"):
        fill(pics / part, "cat", "dog", number=2)


@pytest.mark.parametrize(
    "make, message",
    [
        (nested_parts, r"no training images for 1 of 2 classes \(first: test\); .* nothing between"),
        (class_in_val_only, r"no training images for 1 of 3 classes \(first: emu\)"),
        (single_images, r"3 of 3 classes \(cat, dog, emu\) have only one; .*into one called test"),
        (val_and_test, "has val and test folders, but none called train"),
    ],
)
def test_a_folder_that_cannot_be_a_split_is_refused_at_once(make, message, pics, build, monkeypatch):
    make(pics)
    monkeypatch.setattr("datasets.custom.check_images", None)  # nothing is decoded
    with pytest.raises(UserError, match=message):
        build()


# ---- for tests only ----------------------------------------------------------------------------------------


def test_a_folder_with_nothing_but_a_test_folder_is_for_tests_even_with_one_image_per_class(pics, build, kept):
    fill(pics / "test", "cat", "dog", "emu", "fox", number=1)
    for _ in ("made", "read back"):
        dataset = build(shots=16)
        assert dataset.test_only and dataset.val is None
        assert names_of(dataset.test, pics) == [f"test/{name}/0.png" for name in ("cat", "dog", "emu", "fox")]
        assert dataset.classnames == ["cat", "dog", "emu", "fox"]
    assert json.loads(kept().read_text())["train"] == []
    assert build(subsample="new").classnames == ["emu", "fox"]
    assert not (kept().parent / "split_fewshot").exists()


def test_so_is_a_csv_file_that_calls_everything_test(pics, build):
    fill(pics, "x", number=2)
    (pics / "list.csv").write_text("path,label,split\nx/0.png,a,test\nx/1.png,b,test\n")
    dataset = build(pics / "list.csv")
    assert dataset.test_only and len(dataset.test) == 2


def test_other_folders_are_not(pics, build):
    fill(pics, "cat", "dog")
    assert not build().test_only


# ---- which images these are --------------------------------------------------------------------------------


def test_the_hash_tells_other_images_of_the_same_names_apart(build, tmp_path):
    for place in ("a", "b"):
        fill(tmp_path / place, "cat", "dog")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    a, b, c = (build(tmp_path / place).split_hash for place in "abc")
    assert a != b and a == c
    assert a == build(tmp_path / "a").split_hash == build(tmp_path / "a", subsample="all", shots=2).split_hash


def test_the_hash_is_one_for_base_and_new_classes(pics, build):
    fill(pics, "cat", "dog", "emu", "fox")
    assert len({build(subsample=part).split_hash for part in ("all", "base", "new")}) == 1


@pytest.mark.parametrize("change", [{"train": [["a", 0.5, "cat"]]}, {"unreadable": 3}, {"copies": [1]}, {"val": None}])
def test_a_kept_split_with_a_part_of_another_kind_is_damaged(change, pics, build, kept):
    fill(pics, "cat", "dog")
    build()
    kept().write_text(json.dumps(json.loads(kept().read_text()) | change))
    with pytest.raises(UserError, match=r"split\.json is damaged: delete it"):
        build()


def test_a_class_that_stands_twice_in_the_file_of_names_is_refused(pics, build, tmp_path):
    fill(pics, "cat", "dog")
    (tmp_path / "names.yaml").write_text("cat: tiger\ncat: lion\n")
    with pytest.raises(UserError, match="cat stands twice in one group"):
        build(names=tmp_path / "names.yaml")


@pytest.mark.parametrize("template", ["a photo", "{x}", "{} {}", "a {", "a }"])
def test_a_template_without_exactly_one_place_is_refused(template, pics, build):
    with pytest.raises(UserError, match="DATASET.TEMPLATE is .* it needs {} where the class name goes, once"):
        build(template=template)
