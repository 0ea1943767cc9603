"""CoOp's few-shot pickles: the picks in them are used, whatever else is in them is not."""

import os
import pickle
import pickletools

import pytest

from dassl.data.datasets import Datum
from dassl.utils import UserError
from datasets.splits import Item, few_shot, select_shots, split_hash

ELSEWHERE = "/home/somebody/data/eurosat/2750"


def make_items(part, per_class):
    return [Item(f"Class{c}/{part}_{c}_{i}.jpg", c, f"class {c}") for c in (2, 0, 1) for i in range(per_class)]


@pytest.fixture
def split():
    return {"train": make_items("train", 6), "val": make_items("val", 3), "test": make_items("test", 2)}


@pytest.fixture
def picks(split):
    """Two shots of every class, not those that seed 1 draws."""
    chosen = {part: [item for item in split[part] if item.path[-5] in "12"] for part in ("train", "val")}
    assert chosen != select_shots(split, 2, seed=1)
    return chosen


def datum(impath, label, classname):
    """As upstream's: same module, same name, same fields; ours would look for the image."""
    made = Datum.__new__(Datum)
    made.__dict__.update(_impath=impath, _label=label, _domain=0, _classname=classname)
    return made


def upstream(picks, base=ELSEWHERE, join="/"):
    return {
        part: [datum(join.join([base, *item.path.split("/")]), item.label, item.classname) for item in items]
        for part, items in picks.items()
    }


def put(folder, content):
    path = folder / "split_fewshot" / "shot_2-seed_1.pkl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def keep(folder, split, parts=("train", "val")):
    return few_shot(folder, split, split_hash(split), 2, 1, parts)


@pytest.mark.parametrize("protocol", [2, 4, pickle.HIGHEST_PROTOCOL])
def test_pickled_picks_win_over_the_seed_and_that_is_printed(split, picks, tmp_path, capsys, protocol):
    path = put(tmp_path, pickle.dumps(upstream(picks)))
    assert keep(tmp_path, split) == picks
    assert capsys.readouterr().out == (
        f"Few-shot picks of {path}: not those that seed 1 draws, but they win as in CoOp\n"
    )
    assert keep(tmp_path, split) == picks  # from our JSON now
    assert capsys.readouterr().out.startswith("Loading few-shot data from")
    path.unlink()
    assert keep(tmp_path, split) == picks


def test_picks_that_the_seed_would_draw_too_are_used_without_ado(split, tmp_path, capsys):
    drawn = select_shots(split, 2, seed=1)
    path = put(tmp_path, pickle.dumps(upstream(drawn)))
    assert keep(tmp_path, split) == drawn
    assert capsys.readouterr().out == f"Few-shot picks of {path}\n"


def test_a_pickle_that_comes_later_or_changes_replaces_the_picks(split, picks, tmp_path, capsys):
    drawn = keep(tmp_path, split)
    put(tmp_path, pickle.dumps(upstream(picks)))
    assert keep(tmp_path, split) == picks
    assert "shot_2-seed_1.json has not the picks of shot_2-seed_1.pkl: making it afresh" in capsys.readouterr().out
    put(tmp_path, pickle.dumps(upstream(drawn)))
    assert keep(tmp_path, split) == drawn


@pytest.mark.parametrize(
    "base, join", [("2750", "/"), ("D:\\data\\eurosat\\2750", "\\"), ("/a/Class0/train_0_1.jpg", "/")]
)
def test_paths_of_any_machine_are_known_by_their_end(split, picks, tmp_path, base, join):
    put(tmp_path, pickle.dumps(upstream(picks, base, join)))
    assert keep(tmp_path, split) == picks


def test_imagenets_pickles_have_training_images_only(split, picks, tmp_path):
    path = put(tmp_path, pickle.dumps(upstream({"train": picks["train"]})))
    assert keep(tmp_path, split, ("train",)) == {"train": picks["train"]}
    with pytest.raises(UserError, match=f"{path.name} is not used: it has no val images. Move it away"):
        keep(tmp_path, split)


class Call:
    def __reduce__(self):
        return os.abort, ()


def hostile(kind):
    """Pickles that would do something if they were loaded as usual."""
    return {
        "code": pickle.dumps({"train": [Call()], "val": []}),
        "code in protocol 0": b"cbuiltins\nexit\n(I3\ntR.",
        "another class": pickle.dumps({"train": [Item("a", 0, "b")], "val": []}),
        "dotted name": b"\x80\x04\x8c\x20dassl.data.datasets.base_dataset\x8c\x08os.abort\x93.",
        "line end": b"\x80\x04\x8c\x02os\x8c\x03a\nb\x93.",
        "memory": b"\x80\x04]r\xff\xff\xff\x7f.",  # a slot number that makes C's unpickler reserve 16 GB
        "persistent": b"\x80\x04\x8c\x01aQ.",
        "extension": b"\x80\x02\x82\x01.",
        "not pickled": b"<html>quota exceeded</html>",
        "empty": b"",
        "huge file": b"",
        "no dict": pickle.dumps([1, 2]),
        "no lists": pickle.dumps({"train": 1, "val": 2}),
        "plain tuples": pickle.dumps({"train": [("a.jpg", 0)], "val": []}),
    }[kind]


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("code", "it asks for .posix.abort"),
        ("code in protocol 0", "it asks for .builtins.exit"),
        ("another class", "it asks for .datasets.splits.Item"),
        ("dotted name", "it asks for .dassl.data.datasets.base_dataset.os.abort"),
        ("line end", "it asks for .os."),
        ("huge file", "268,435,457 bytes are too many"),
        ("memory", "not a pickle of Datum lists"),
        ("persistent", "not a pickle of Datum lists"),
        ("extension", "not a pickle of Datum lists"),
        ("not pickled", "not a pickle of Datum lists"),
        ("empty", "not a pickle of Datum lists"),
        ("no dict", "not a pickle of Datum lists"),
        ("no lists", "not a pickle of Datum lists"),
        ("plain tuples", "not a pickle of Datum lists"),
    ],
)
def test_a_pickle_with_anything_but_datum_fields_is_refused_and_nothing_is_drawn(split, tmp_path, kind, reason):
    path = put(tmp_path, hostile(kind))
    if kind == "huge file":
        os.truncate(path, (1 << 28) + 1)  # sparse
    with pytest.raises(UserError, match=rf"shot_2-seed_1\.pkl is not used: .*{reason}.*Move it away") as caught:
        keep(tmp_path, split)
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == [path]


def change(picks, what):
    train = picks["train"]
    if what == "label":
        train[1].__dict__["_label"] = 2 - train[1]._label
    elif what == "name":
        train[1].__dict__["_classname"] = "forest"
    elif what == "unknown":
        train[1].__dict__["_impath"] = "/data/2750/Class2/train_2_99.jpg"
    elif what == "test":
        train[1].__dict__["_impath"] = "/data/2750/Class2/test_2_1.jpg"
    elif what == "few":
        del train[1]
    elif what == "twice":
        train[1] = train[0]
    elif what == "many":
        train.append(datum("/data/2750/Class2/train_2_5.jpg", 2, "class 2"))
    elif what == "fields":
        train[1].__dict__["_extra"] = 1
    elif what == "types":
        train[1].__dict__["_label"] = "2"
    elif what == "no fields":
        train[1].__dict__.clear()
    return picks


@pytest.mark.parametrize(
    "what, reason",
    [
        ("label", "1 of its train images are not in this split, or not in that class"),
        ("name", "1 of its train images are not in this split, or not in that class"),
        ("unknown", "not in this split, .*train_2_99.jpg"),
        ("test", "not in this split, .*test_2_1.jpg"),
        ("few", r"1 classes have not 2 train images each \(first: class 2\)"),
        ("twice", r"1 classes have not 2 train images each \(first: class 2\)"),
        ("many", r"1 classes have not 2 train images each \(first: class 2\)"),
        ("fields", "a Datum with other fields"),
        ("types", "a Datum with other fields"),
        ("no fields", "not a pickle of Datum lists"),
    ],
)
def test_picks_that_are_not_this_splits_are_refused(split, picks, tmp_path, what, reason):
    put(tmp_path, pickle.dumps(change(upstream(picks), what)))
    with pytest.raises(UserError, match=reason):
        keep(tmp_path, split)


def test_the_fixture_writes_what_upstream_writes(picks):
    """A reference made by hand would pass whatever the reader does."""
    strings = [arg for op, arg, _ in pickletools.genops(pickle.dumps(upstream(picks))) if isinstance(arg, str)]
    assert {"dassl.data.datasets.base_dataset", "Datum", "_impath", "_label", "_domain", "_classname"} <= set(strings)
