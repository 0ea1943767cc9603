"""Files of the right format that hold something else: one line that names the file and the place in it."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import predict
import train
from tests.bad_input.conftest import start
from tests.datasets.fetching import run as fetched
from tests.datasets.fetching import tarred, under, zipped

# ---- splits and lists of images --------------------------------------------------------------------------------

ROWS = [
    (["ant/0.png", 0.7, "ant"], "the label is 0.7, not a whole number from 0"),
    (["ant/0.png", -1, "ant"], "the label is -1, not a whole number from 0"),
    (["ant/0.png", True, "ant"], "the label is True, not a whole number"),
    (["ant/0.png", "0", "ant"], "the label is '0', not a whole number"),
    (["ant/0.png", None, "ant"], "the label is None, not a whole number"),
    (["ant/0.png", 1e300, "ant"], "the label is 1e+300, not a whole number"),
    (["ant/0.png", 0, 7], "the class name is 7, not a text"),
    (["ant/0.png", 0, None], "the class name is None, not a text"),
    (["ant/0.png", 0, " "], "the class name is ' ', not a text"),
    (["ant/0.png", 0, ["ant"]], "the class name is ['ant'], not a text"),
    (["", 0, "ant"], "the path is ''"),
    ([None, 0, "ant"], "the path is None"),
    (["a\0.png", 0, "ant"], r"the path is 'a\x00.png'"),
    (["ant/0.png", 0], "there is ['ant/0.png', 0]"),
    (["ant/0.png", 0, "ant", 1], "there is ['ant/0.png', 0, 'ant', 1]"),
    ("ant/0.png", "there is 'ant/0.png'"),
    ({"path": "ant/0.png"}, "there is {'path': 'ant/0.png'}"),
    (None, "there is None"),
    (["y" * 10**6, 0.5, "ant"], "the label is 0.5"),
    ([["y" * 10**6], 0, "ant"], "the path is ['yyy"),
    ([[1, 2], 0, "ant"], "the path is [1, 2]"),
]


@pytest.fixture
def split(place, refused, tmp_path):
    """split(change): the line about EuroSAT's split file after change(split)."""

    def damaged(change, *pairs, names=("split_zhou_EuroSAT.json",)):
        top = place("data", "tiny.safetensors")
        path = top / "data/eurosat/split_zhou_EuroSAT.json"
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))
        argv = start(top, "--output-dir", tmp_path / "out")
        pairs = ["DATASET.NAME", "EuroSAT", "DATASET.ROOT", top / "data", "DATASET.NUM_SHOTS", 1, *pairs]
        return refused(train.main, *argv, *pairs, names=names)

    return damaged


@pytest.mark.parametrize(("row", "problem"), ROWS)
def test_a_wrong_row_of_a_split_is_named(row, problem, split):
    line = split(lambda stored: stored["val"].append(row))
    assert f"in val[4] {problem}" in line and "a row is [path, label, class name]; get it again" in line
    assert len(line) < 600


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda split: split.pop("val"), ['no list "val"']),
        (lambda split: split.update(train={}), ['no list "train"']),
        (lambda split: split.update(test=None), ['no list "test"']),
        (lambda split: split["train"].clear(), ["EuroSAT", "no training images"]),
        (lambda split: split["test"].clear(), ["test set", "EuroSAT"]),
        (lambda split: split["train"][0].__setitem__(0, "ant/gone.png"), ["ant/gone.png"]),
        (lambda split: split["train"][0].__setitem__(0, "ant"), ["2750/ant"]),
        (lambda split: split["train"][0].__setitem__(1, 10**5), ["EuroSAT", "no training images"]),
        (lambda split: split["train"][0].__setitem__(1, 10**8), ["split_zhou", "train[0] the label is 100000000"]),
        (lambda split: split["test"][0].__setitem__(1, 10**4000), ["split_zhou", "test[0] the label is 1000"]),
        (lambda split: split["train"][0].__setitem__(2, "bear"), ["EuroSAT", "'bear' and 'ant'"]),
    ],
)
def test_a_split_that_cannot_be_is_named(change, names, split):
    split(change, names=names)


def test_two_classes_are_too_few_for_base_and_new(split):
    def keep_two(stored):
        for part in stored:
            stored[part] = [row for row in stored[part] if row[1] < 2]

    split(keep_two, "DATASET.SUBSAMPLE_CLASSES", "base", names=["2 classes are too few"])


LISTS = [
    ("pics/ant/0.png,ant\n", "path,label"),
    ("path;label\npics/ant/0.png;ant\n", "path,label"),
    ("Path,Label\npics/ant/0.png,ant\n", "path,label"),
    ("path,label\n", "lists no images"),
    ("path,label\npics/ant/0.png,a\npics/ant/9.png,b\n", "line 3: no image at "),
    ("path,label\npics/ant/0.png,\n", "line 2: no label"),
    ("path,label\npics/ant/0.png\n", "line 2: no label"),
    ("path,label\n,ant\n", "line 2: no image at "),
    ("path,label\npics/ant,ant\n", "line 2: no image at "),
    ("path,label\npics/ant/0.png,a\npics/ant/0.png,b\n", "line 3: pics/ant/0.png for the second time"),
    ("path,label,split\npics/ant/0.png,a,test\npics/ant/1.png,a,\n", "names a split for some images only"),
    ("path,label,split\npics/ant/0.png,a,dev\n", 'line 2: split "dev" is not train, val or test'),
    ("path,label\n" + "".join(f"pics/ant/{i}.png,ant\n" for i in range(4)), "only one class (ant)"),
    ("path,label\npics/ant/0.png,ant\npics/bee/0.png,bee\n", "have only one"),
    ('path,label\n"pics/ant/0.png,ant\n' + "x" * 200_000, "field larger than field limit"),
]


@pytest.mark.parametrize(("text", "name"), LISTS)
def test_a_csv_file_that_cannot_be_used_is_refused_with_its_line(text, name, place, refused, tmp_path):
    top = place("pics", "tiny.safetensors")
    (top / "list.csv").write_text(text)
    argv = start(top, "--output-dir", tmp_path / "out")
    refused(train.main, *argv, "DATASET.IMAGES", top / "list.csv", names=[name])


NAMES = [
    ("ant: the ant\nant: an ant\n", "ant stands twice"),
    ("emu: the emu\n", "names a class 'emu'"),
    ("ant: bee\n", "'ant' and 'bee'"),
    ("ant:\n", "line 1"),
    ("ant: [a, b]\n", "line 1"),
    ("ant: {a: b}\n", "line 1"),
    ("[1, 2]\n", "not a list"),
    ("ant\n", "names.yaml"),
    ("", "names.yaml"),
    ("- - ant\n", "line 1"),
    ("? [a, b]\n: ant\n", "line 1"),
    ("&a ant: *b\n", "names.yaml"),
]


@pytest.mark.parametrize(("text", "name"), NAMES)
def test_class_names_that_are_none_are_refused(text, name, place, healthy, refused, tmp_path):
    top = place("pics", "tiny.safetensors")
    (top / "names.yaml").write_text(text)
    argv = start(top, "--output-dir", tmp_path / "out")
    refused(train.main, *argv, "DATASET.CLASSNAMES", top / "names.yaml", names=[name])


# ---- recipes ---------------------------------------------------------------------------------------------------

RECIPES = [
    ("OPTIM: 3\n", "OPTIM"),
    ("OPTIM: {LRR: 1}\n", "OPTIM.LRR"),
    ("OPTIM: {LR: fast}\n", "OPTIM.LR"),
    ("OPTIM: {LR: }\n", "OPTIM.LR"),
    ("OPTIM: {LR: .nan}\n", "OPTIM.LR"),
    ("OPTIM:\n  MAX_EPOCH: 2\nOPTIM:\n  LR: 1\n", "OPTIM stands twice"),
    ("OPTIMS: {LR: 1}\n", "OPTIMS"),
    ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
    ("_BASE_: recipe.yaml\n", "based on itself"),
    ("_BASE_: 7\n", "_BASE_"),
    ("_BASE_: [[a]]\n", "_BASE_"),
    ("OVERRIDES: [1]\n", "OVERRIDES"),
    ("OVERRIDES: {few_shot: 3}\nPROTOCOL: few_shot\n", "few_shot"),
    ("OVERRIDES: {Custom: {OPTIM: {LRR: 1}}}\nDATASET: {NAME: Custom}\n", "OPTIM.LRR"),
    ("OPTIM: {LR: 2026-11-26}\n", "OPTIM.LR"),
    ("1: 2\n", "1"),
    ("? [a, b]\n: 1\n", "recipe.yaml"),
    ("null: 1\n", "None"),
]


@pytest.mark.parametrize(("text", "name"), RECIPES)
def test_a_recipe_that_says_something_else_is_refused(text, name, place, refused, tmp_path):
    (place() / "recipe.yaml").write_text(text)
    argv = ["--trainer", "CoOp", "--output-dir", tmp_path / "out", "--config-file", tmp_path / "in/recipe.yaml"]
    refused(train.main, *argv, names=[name])


# ---- what runs have left ---------------------------------------------------------------------------------------


def without(key):
    return lambda stored: {name: value for name, value in stored.items() if name != key}


def other(**values):
    return lambda stored: {**stored, **values}


CHECKPOINTS = {
    **{f"without {key}": without(key) for key in ("state_dict", "epoch")},
    "no state": other(state_dict=None),
    "numbers for weights": lambda stored: {**stored, "state_dict": dict.fromkeys(stored["state_dict"], 1)},
    "other shapes": lambda stored: {**stored, "state_dict": dict.fromkeys(stored["state_dict"], torch.zeros(2, 2))},
    "other names": lambda stored: {**stored, "state_dict": {"weight": torch.zeros(2)}},
    "sparse": lambda stored: {
        **stored,
        "state_dict": {key: value.to_sparse() for key, value in stored["state_dict"].items()},
    },
    "not finite": lambda stored: {
        **stored,
        "state_dict": {key: torch.full_like(value, torch.nan) for key, value in stored["state_dict"].items()},
    },
    "empty meta": other(meta={}),
    "no meta": other(meta=7),
    "other backbone": lambda stored: {**stored, "meta": {**stored["meta"], "backbone": "ViT-B/16"}},
    "other images": lambda stored: {**stored, "meta": {**stored["meta"], "split": "0" * 64}},
    "other options": lambda stored: {**stored, "meta": {**stored["meta"], "options": 3}},
    "a list": lambda stored: [stored],
    "a number": lambda stored: 7,
    "weights alone": lambda stored: next(iter(stored["state_dict"].values())),
}


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_named(change, place, healthy, refused, tmp_path):
    top = place("run")
    path = top / "run/learned/model.pth.tar-1"
    torch.save(change(torch.load(path, weights_only=True)), path)
    flags = ["--output-dir", tmp_path / "out", "--eval-only", "--model-dir", top / "run"]
    line = refused(train.main, *start(healthy, *flags))
    assert path.name in line or "infinite or NaN" in line


RESUMES = {
    **{f"without {key}": without(key) for key in ("config", "epoch", "models", "optims", "scheds", "random", "extra")},
    "no config": other(config=None),
    "config nested": other(config="[" * 20_000),
    "epoch as text": other(epoch="one"),
    "epoch infinite": other(epoch=float("inf")),
    "no models": other(models={}),
    "random as list": other(random=[]),
    "random too short": lambda stored: {**stored, "random": {**stored["random"], "torch": torch.zeros(3).byte()}},
    "seconds as text": other(seconds="many"),
    "a list": lambda stored: [stored],
    "a tensor": lambda stored: torch.zeros(3),
    "momentum of another shape": lambda stored: {
        **stored,
        "optims": {
            "learned": {**stored["optims"]["learned"], "state": {0: {"momentum_buffer": torch.zeros(3)}}},
        },
    },
    "momentum as text": lambda stored: {
        **stored,
        "optims": {"learned": {**stored["optims"]["learned"], "state": {0: {"momentum_buffer": "fast"}}}},
    },
}


@pytest.mark.parametrize("change", RESUMES.values(), ids=RESUMES)
def test_a_resume_file_that_is_none_is_named(change, place, healthy, refused):
    top = place("unfinished")
    path = top / "unfinished/resume.pt"
    torch.save(change(torch.load(path, weights_only=True)), path)
    refused(train.main, *start(healthy, "--output-dir", top / "unfinished"), names=["resume.pt"])


RECORDS = [
    (without("classnames"), "classnames"),
    (without("trainer"), "trainer"),
    (other(classnames=3), "classnames"),
    (other(classnames=[1, 2, 3, 4]), "classnames"),
    (other(classnames=None), "classnames"),
    (other(accuracy="high"), "accuracy"),
    (other(seed=[1]), "seed"),
    (other(classnames=[]), "result.json"),
    (other(classnames=["ant"] * 2000 + [None]), "classnames"),
]


@pytest.mark.parametrize(("change", "name"), RECORDS)
def test_a_result_that_no_run_wrote_is_named(change, name, place, healthy, refused):
    top = place("run")
    path = top / "run/result.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(predict.main, "--model-dir", top / "run", healthy / "pics/ant/0.png", names=["result.json", name])


OPTIONS = [
    ("TRAINER.NAME", "CoOpp", "CoOpp"),
    ("TRAINER.NAME", None, "TRAINER.NAME"),
    ("MODEL.BACKBONE.NAME", "/nowhere/tiny.safetensors", "/nowhere/tiny.safetensors"),
    ("TRAINER.COOP.N_CTX", -1, "TRAINER.COOP.N_CTX"),
    ("INPUT.SIZE", [1], "INPUT.SIZE"),
    ("NEW.OPTION", 1, "NEW.OPTION"),
    ("EVAL.ONLY", "perhaps", "EVAL.ONLY"),
]


@pytest.mark.parametrize(("key", "value", "name"), OPTIONS)
def test_options_that_no_run_wrote_are_named(key, value, name, place, healthy, refused):
    top = place("run")
    path = top / "run/config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), key: value}))
    refused(predict.main, "--model-dir", top / "run", healthy / "pics/ant/0.png", names=[name])


ADAPTERS = [
    (other(peft_type="LOHA"), "peft_type LOHA"),
    (other(peft_type=None), "peft_type None"),
    (without("peft_type"), "peft_type"),
    (other(r=4), "r 4: set TRAINER.CLIPLORA.R"),
    (other(r="2"), "r '2'"),
    (without("r"), "'r'"),
    (other(lora_alpha="1"), "lora_alpha"),
    (other(lora_alpha=float("nan")), "lora_alpha"),
    (other(lora_alpha=-1), "lora_alpha"),
    (other(use_dora=True), "use_dora"),
    (other(rank_pattern={"q_proj": 8}), "rank_pattern"),
    (other(alpha_pattern={"q_proj": 8}), "alpha_pattern"),
    (lambda stored: [stored], "adapter_config.json"),
    (lambda stored: "LORA", "adapter_config.json"),
]


@pytest.mark.parametrize(("change", "name"), ADAPTERS)
def test_an_adapter_of_another_kind_is_named(change, name, place, healthy, refused, tmp_path):
    folder = place("lora") / "lora/peft"
    stored = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(change(stored)))
    flags = ["--output-dir", tmp_path / "out", "--eval-only", "--model-dir", folder]
    refused(train.main, *start(healthy, *flags, trainer="CLIPLoRA"), names=[name])


@pytest.mark.parametrize("damage", ["none", "empty", "cut", "of another size", "not finite"])
def test_an_adapter_without_its_weights_is_named(damage, place, healthy, refused, tmp_path):
    folder = place("lora") / "lora/peft"
    path, weights = folder / "adapter_model.safetensors", load_file(folder / "adapter_model.safetensors")
    if damage == "none":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        wrong = {"of another size": torch.zeros(3), "not finite": torch.nan}.get(damage)
        fill = (lambda value: wrong) if damage == "of another size" else lambda value: torch.full_like(value, torch.nan)
        save_file({} if damage == "empty" else {key: fill(value).clone() for key, value in weights.items()}, path)
    flags = ["--output-dir", tmp_path / "out", "--eval-only", "--model-dir", folder]
    refused(train.main, *start(healthy, *flags, trainer="CLIPLoRA"))


# ---- images ----------------------------------------------------------------------------------------------------


def png_of(width, height):
    """A PNG that says it is so large and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [head, b"IDAT", b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zipfile.crc32(part)) for part in parts
    )


def saved(array, name):
    return lambda path: Image.fromarray(array).save(path, name)


IMAGES = {
    "13,000 pixels a side": lambda path: path.write_bytes(png_of(13_000, 13_000)),
    "more pixels than a number": lambda path: path.write_bytes(png_of(2**31 - 1, 2**31 - 1)),
    "no pixels": lambda path: path.write_bytes(png_of(0, 10)),
    "nothing behind its size": lambda path: path.write_bytes(png_of(10, 10)),
    "numbers of no range": saved(np.full((4, 4), 7.5, np.float32), "TIFF"),
    "not a number": saved(np.full((4, 4), np.nan, np.float32), "TIFF"),
    "an SVG": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "a PDF": lambda path: path.write_bytes(b"%PDF-1.4\n"),
    "PostScript": lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"),
    "a film": lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100)),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_what_is_no_image_is_named(make, healthy, place, refused):
    path = place() / "new.png"
    make(path)
    refused(predict.main, "--model-dir", healthy / "run", path, "--csv", path.with_name("found.csv"), names=["new.png"])


# ---- archives --------------------------------------------------------------------------------------------------


def pax_bomb(size=1 << 31):
    """A tar whose header of names is said to have 2 GB."""
    archive = bytearray(tarred(under("2750"), "w"))
    head = bytearray(512)
    head[:9], head[100:107], head[124:135], head[156:157] = b"PaxHeader", b"0000644", b"%011o" % size, b"x"
    head[257:265], head[148:156] = b"ustar\x0000", b" " * 8
    head[148:155] = b"%06o\0" % sum(head)
    return bytes(head) + bytes(archive)


ARCHIVES = {
    "not an archive": b"nothing" * 100,
    "empty": b"",
    "web page": b"<!DOCTYPE html><title>quota</title>",
    "half a zip": zipped(under("2750"))[:1000],
    "half a tar": tarred(under("2750"))[:200],
    "zip without its end": zipped(under("2750"))[:-30],
    "other folders": zipped(under("somewhere")),
    "no files": zipped({}),
    "a way out": zipped({"../../evil": b"x"}),
    "an absolute path": tarred({"/tmp/evil": b"x"}),
    "a Windows path": zipped({"C:\\evil": b"x"}),
    "a long name": zipped({"2750/" + "x" * 5000: b"x"}),
    "a file as folder": zipped({"2750": b"x", "2750/River/1.jpg": b"x"}),
    "a bomb": zipped({"2750/River/0.jpg": bytes(2_000_000)}),
    "a bomb in gzip": tarred({"2750/River/0.jpg": bytes(2_000_000)}),
    "a header of 2 GB": pax_bomb(),
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_that_is_none_is_refused(archive, world, capsys, tmp_path):
    world.entry["sources"] = [{"mirror": [{"url": world.server.put("any.zip", archive)}]}]
    assert fetched(world, "eurosat") == 1
    written = capsys.readouterr()
    assert "Traceback" not in written.out + written.err
    lines = [line for line in written.err.replace("\r", "\n").splitlines() if line.startswith(("The ", "Error: "))]
    assert "any.zip" in lines[0] and "still no" in lines[1] and "not complete: EuroSAT" in lines[-1], lines
    assert not (world.folder / "2750").exists() and not (tmp_path / "evil").exists()
