"""Custom: the layouts it reads, the split it draws and keeps, and what it says about copies."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import datasets.splits
from dassl.utils import UserError
from tests.datasets.own import contents, fill, make_image, names_of

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


def test_images_are_drawn_by_content_so_names_folders_and_machines_do_not_matter(pics, build, tmp_path):
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


def test_a_csv_file_lists_images_from_its_folder_and_may_say_the_split(pics, build, tmp_path):
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
    make_image(pics / "cat/deep/er/IMG 1.JPG")
    fill(tmp_path / "elsewhere", "more", number=1)
    (pics / "dog/linked").symlink_to(tmp_path / "elsewhere/more")
    (pics / "dog/loop").symlink_to(pics / "dog")
    for path in ("cat/.hidden.png", "cat/._1.png", ".trash/x/1.png", "cat/.thumbs/1.png"):
        make_image(pics / path)
    for path in ("cat/Thumbs.db", "notes.txt", "dog/list.json"):
        (pics / path).write_text("no image")
    dataset = build()
    used = names_of(dataset.train_x + dataset.val + dataset.test, pics)
    assert sorted(used) == [
        "cat/0.png", "cat/1.png", "cat/deep/er/IMG 1.JPG", "dog/0.png", "dog/1.png", "dog/linked/0.png"
    ]  # fmt: skip
    assert dataset.classnames == ["cat", "dog"]


def test_empty_folders_other_files_and_images_outside_class_folders_are_left_out_and_named(pics, build, capsys):
    fill(pics, "cat", "dog")
    (pics / "unsorted").mkdir()
    make_image(pics / "loose.png")
    for path in ("cat/1.HEIC", "dog/2.heic", "dog/notes.txt"):
        (pics / path).touch()
    assert build().classnames == ["cat", "dog"]
    out = capsys.readouterr().out
    assert "without an image (unsorted)" in out and "1 images that lie in" in out
    assert "no images by their extension (2 .heic, 1 .txt)" in out


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


def test_nothing_is_written_into_the_folder_with_the_images(pics, build, kept):
    fill(pics, "cat", "dog")
    before = contents(pics)
    build(shots=2)
    assert contents(pics) == before
    assert (kept().parent / "split_fewshot/shot_2-seed_1.json").is_file()


def test_the_hash_in_result_json_starts_from_the_folder_with_the_images(pics, build):
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


def test_new_images_and_classes_do_not_change_a_split_until_it_is_deleted(pics, build, kept, capsys):
    fill(pics, "cat", "dog")
    before = build()
    make_image(pics / "dog/new.png")
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


def test_a_image_that_is_gone_or_moved_to_another_class_stops_the_run(pics, build, kept):
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


# ---- copies, and images that do not decode ---------------------------------------------------------------


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


def test_one_image_in_two_classes_is_reported(pics, build, capsys):
    fill(pics, "cat", "dog")
    shutil.copy(pics / "cat/1.png", pics / "dog/x.png")
    build()
    assert "cat/1.png = dog/x.png" in capsys.readouterr().out


def test_a_drawn_split_keeps_the_copies_of_a_image_together(pics, build, capsys):
    fill(pics, "cat", "dog", number=6)
    for path in list(pics.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    dataset = build()
    parts = [{Path(item.impath).read_bytes() for item in part} for part in (dataset.train_x, dataset.val, dataset.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [len(part) for part in (dataset.train_x, dataset.val, dataset.test)] == [12, 4, 8]
    assert "more than once" not in capsys.readouterr().out


def test_images_that_do_not_decode_are_named_and_left_out(pics, build, kept, capsys):
    fill(pics, "cat", "dog")
    (pics / "cat/broken.jpg").write_text("no image")
    whole = make_image(pics / "dog/cut.png").read_bytes()
    (pics / "dog/cut.png").write_bytes(whole[: len(whole) // 2])
    dataset = build()
    out = capsys.readouterr().out
    for name in ("cat/broken.jpg", "dog/cut.png"):
        assert f'Cannot read the image "{pics / name}"' in out
    assert not {"broken.jpg", "cut.png"} & {Path(i.impath).name for i in dataset.train_x + dataset.val + dataset.test}
    build()
    assert "2 images that don't decode (cat/broken.jpg, dog/cut.png)" in capsys.readouterr().out
