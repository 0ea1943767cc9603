"""Split files, few-shot selection and its cache, base and new classes; on lists, without images."""

import errno
import json
import multiprocessing
import random
import shutil
import tracemalloc

import pytest

from dassl.data.datasets import DatasetBase
from dassl.utils import UserError, write_json
from datasets import splits
from datasets.splits import (
    Item,
    check_classes,
    few_shot,
    read_split,
    select_shots,
    split_hash,
    subsample_classes,
)


def make_items(part, per_class, order=(3, 0, 2, 1, 4)):
    """Labels in an order that is not sorted, as in OxfordFlowers and StanfordCars."""
    return [Item(f"{part}/{label}/{i}.jpg", label, f"class_{label}") for label in order for i in range(per_class)]


@pytest.fixture
def split():
    return {"train": make_items("train", 9), "val": make_items("val", 6), "test": make_items("test", 3)}


def keep(folder, split, shots=2, seed=1):
    return few_shot(folder, split, split_hash(split), shots, seed)


# ---- split files -------------------------------------------------------------------------------------------


def test_a_written_split_is_read_back_unchanged_in_the_order_of_its_rows(split, tmp_path):
    write_json(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split
    assert json.loads((tmp_path / "split.json").read_text())["train"][0] == ["train/3/0.jpg", 3, "class_3"]


def test_the_hash_is_of_the_content_not_of_the_bytes(split, tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({part: split[part] for part in ("test", "val", "train")}, indent=7) + "\n\n")
    assert split_hash(read_split(path)) == split_hash(split)
    split["test"].reverse()
    assert split_hash(read_split(path)) != split_hash(split)


@pytest.mark.parametrize("text", ["", "<html>quota</html>", "[]", '{"train": []}', '{"train": [["a.jpg", 0]]}'])
def test_a_file_that_is_no_split_is_refused_in_one_line_that_names_it(text, tmp_path):
    path = tmp_path / "split_zhou_EuroSAT.json"
    path.write_text(text)
    with pytest.raises(
        UserError, match=r"split_zhou_EuroSAT\.json is not a split file.* see docs/DATASETS\.md"
    ) as caught:
        read_split(path)
    assert "\n" not in str(caught.value)


# ---- few shots ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 6, 9])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_selection_is_what_the_engine_draws_from_the_global_random_train_first(split, shots, seed):
    """`generate_fewshot_dataset` is the call CoOp's datasets make right after seeding."""
    random.seed(seed)
    draw = DatasetBase.__new__(DatasetBase).generate_fewshot_dataset
    expected = {
        "train": draw(split["train"], num_shots=shots),
        "val": draw(split["val"], num_shots=min(shots, 4)),
    }
    assert select_shots(split, shots, seed) == expected


def test_classes_come_in_the_order_of_first_appearance(split):
    assert [item.label for item in select_shots(split, 1, seed=1)["train"]] == [3, 0, 2, 1, 4]


def test_val_has_at_most_four_per_class_and_test_is_not_sampled(split):
    selected = select_shots(split, 5, seed=1)
    assert (len(selected["train"]), len(selected["val"]), set(selected)) == (25, 20, {"train", "val"})


def test_the_global_random_is_untouched_by_drawing_and_by_reading_back(split, tmp_path):
    random.seed(7)
    state = random.getstate()
    for _ in ("drawn", "read back"):
        keep(tmp_path, split)
        assert random.getstate() == state


def test_a_class_with_too_few_training_images_is_an_error_that_says_how_many_it_has(split, tmp_path):
    split["train"] = split["train"][6:]  # class 3 keeps 3 of 9
    name = split["train"][0].classname
    with pytest.raises(UserError, match=f"class '{name}' has 3 training images.*4 shots.*NUM_SHOTS to 3 or less"):
        keep(tmp_path, split, shots=4)
    assert not (tmp_path / "split_fewshot").exists()
    assert len(keep(tmp_path, split, shots=3)["train"]) == 15


def test_a_class_with_too_few_validation_images_gives_all_it_has(split):
    split["val"] = [item for item in split["val"] if item.label != 3] + [i for i in split["val"] if i.label == 3][:1]
    assert sum(item.label == 3 for item in select_shots(split, 5, seed=1)["val"]) == 1


def test_an_unseeded_selection_is_kept_too_so_that_a_run_can_be_resumed(split, tmp_path):
    assert keep(tmp_path, split, shots=5, seed=-1) == keep(tmp_path, split, shots=5, seed=-1)
    draws = [select_shots(split, 5, seed=-1)["train"] for _ in range(4)]
    assert any(draw != draws[0] for draw in draws)


# ---- the cache of a selection ------------------------------------------------------------------------------


def test_the_cache_holds_relative_paths_and_is_read_back_equal(split, tmp_path, capsys):
    drawn = keep(tmp_path, split)
    text = (tmp_path / "split_fewshot" / "shot_2-seed_1.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["train"][0] == list(drawn["train"][0])
    capsys.readouterr()
    assert keep(tmp_path, split) == drawn
    assert capsys.readouterr().out.startswith("Loading few-shot data from")


def test_the_cache_keeps_working_where_the_data_was_moved(split, tmp_path, capsys):
    drawn = keep(tmp_path / "old", split)
    shutil.move(tmp_path / "old", tmp_path / "new")
    capsys.readouterr()
    assert keep(tmp_path / "new", split) == drawn
    assert "Creating" not in capsys.readouterr().out


def test_an_edited_split_makes_the_selection_afresh(split, tmp_path, capsys):
    keep(tmp_path, split)
    split["train"] = [item for item in split["train"] if not item.path.endswith("/0.jpg")]
    assert keep(tmp_path, split) == select_shots(split, 2, seed=1)
    assert "shot_2-seed_1.json belongs to another split: making it afresh" in capsys.readouterr().out
    keep(tmp_path, split)
    assert capsys.readouterr().out.startswith("Loading")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"split": 1}'])
def test_a_damaged_cache_is_made_afresh(split, tmp_path, damage, capsys):
    drawn = keep(tmp_path, split)
    (tmp_path / "split_fewshot" / "shot_2-seed_1.json").write_text(damage)
    assert keep(tmp_path, split) == drawn
    assert "shot_2-seed_1.json is damaged: making it afresh" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [1, -1])
def test_processes_started_together_all_use_the_same_picks(split, tmp_path, seed):
    """Unseeded, every process draws other images: the first one decides, and no one reads half a file."""
    fork = multiprocessing.get_context("fork")
    together, answers = fork.Barrier(4), fork.Queue()

    def run():
        together.wait()
        answers.put(keep(tmp_path, split, shots=5, seed=seed))

    runs = [fork.Process(target=run) for _ in range(4)]
    for process in runs:
        process.start()
    picks = [answers.get(timeout=60) for _ in runs]
    for process in runs:
        process.join()
    assert picks == [keep(tmp_path, split, shots=5, seed=seed)] * 4


def test_a_read_only_folder_is_only_a_note(split, tmp_path, capsys, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(splits, "write_atomic", refuse)
    assert keep(tmp_path, split) == select_shots(split, 2, seed=1)
    assert "Not kept for later runs" in capsys.readouterr().out


# ---- base and new classes ----------------------------------------------------------------------------------


def test_base_is_the_first_half_rounded_up_and_both_halves_count_from_zero(split):
    train, test = subsample_classes(split["train"], split["test"], subsample="base")
    assert {(item.label, item.classname) for item in train + test} == {
        (0, "class_0"),
        (1, "class_1"),
        (2, "class_2"),
    }
    assert [item.label for item in train[::9]] == [0, 2, 1]  # the order of the rows stays
    train, test = subsample_classes(split["train"], split["test"], subsample="new")
    assert {(item.label, item.classname) for item in train + test} == {(0, "class_3"), (1, "class_4")}
    assert len(test) == 2 * 3


def test_all_classes_keep_their_labels(split):
    assert subsample_classes(*split.values(), subsample="all") == list(split.values())


def test_a_wrong_subsample_names_the_three_valid_ones(split):
    with pytest.raises(UserError, match='SUBSAMPLE_CLASSES is "novel": it can be all, base or new'):
        subsample_classes(split["train"], subsample="novel")


def test_a_class_without_training_images_stops_the_run(split):
    split["train"] = [item for item in split["train"] if item.label not in (2, 4)]
    with pytest.raises(
        UserError, match=r"DTD: no training images for 2 of 5 classes \(first: class_2\), see docs/DATASETS"
    ):
        check_classes(split, "DTD")


# ---- files that are wrong in one place ---------------------------------------------------------------------


def test_a_huge_label_takes_no_memory(split):
    split["test"].append(Item("a.jpg", 10**8, "far"))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"no training images for 99,999,996 of 100,000,001 classes \(first: label 5\)"):
        check_classes(split, "DTD")
    assert tracemalloc.get_traced_memory()[1] < 10e6  # bytes
    tracemalloc.stop()


def test_a_label_with_two_names_is_refused(split):
    split["val"][0] = split["val"][0]._replace(classname="other")
    with pytest.raises(UserError, match="DTD: label 3 is 'class_3' and 'other'"):
        check_classes(split, "DTD")


@pytest.mark.parametrize("part", ["base", "new"])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_base_and_new_need_two_classes_each(part, classes):
    items = make_items("train", 2, range(classes))
    with pytest.raises(UserError, match=f"{classes} classes are too few for base and new .* few_shot.sh"):
        subsample_classes(items, subsample=part)
    assert len(subsample_classes(make_items("train", 2, range(4)), subsample=part)[0]) == 4
