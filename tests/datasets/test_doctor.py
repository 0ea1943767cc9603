"""The doctor: nothing to say about healthy data, one problem and one command for each thing that is wrong.

Trees of real layout with a tiny JPEG for each path of a small split; the classes are told that these are the published
ones. The commands are run where they need no network, and must fix it.
"""

import json
import os
import pickle
import random
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from datasets import DATASETS, doctor, fetch, files
from datasets.splits import few_shot, read_split, select_shots, split_hash
from tests.datasets.trees import (
    CLASSNAMES,
    FILES,
    FOLDERS,
    JPEG,
    SIZES,
    SPLITS,
    V2,
    WNIDS,
    capitals,
    examine,
    exchange,
    link,
    make_folders,
    make_trees,
    move,
    nest,
    other_seed,
    other_split,
    pickled,
    put,
    remove,
    rewrite,
    swap_variants,
    write,
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    return make_trees(tmp_path, monkeypatch)


# ---- healthy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_a_healthy_tree_has_no_problems(name, root):
    for _ in range(2):  # the second time with what loading leaves behind
        problems, seen = examine(name, root)
        assert problems == []
        assert f"images in {root / FOLDERS[name]}; " in seen
        if name in FILES:
            split = read_split(root / FOLDERS[name] / FILES[name])
            few_shot(root / FOLDERS[name], split, split_hash(split), 2, 1)


def test_a_published_split_with_an_image_for_every_path_has_no_problems(tmp_path):
    path = SPLITS / "split_zhou_DescribableTextures.json"
    if not path.is_file():
        pytest.skip("needs ../shared/data/splits/split_zhou_DescribableTextures.json")
    (tmp_path / "image").write_bytes(JPEG)
    for item in (item for items in read_split(path).values() for item in items):
        image = tmp_path / "dtd" / "images" / item.path
        image.parent.mkdir(parents=True, exist_ok=True)
        image.hardlink_to(tmp_path / "image")
    shutil.copy(path, tmp_path / "dtd")
    assert examine("dtd", tmp_path, 50) == ([], f"5,640 images in {tmp_path / 'dtd'}; split 0d04a9bb08938c9d")


def test_the_embedded_dataset_is_in_order(tmp_path):
    assert examine("emoji", tmp_path, 20)[0] == []


def test_every_published_dataset_can_be_asked_for():
    known = doctor.known_datasets()
    assert len([cls for cls in known.values() if cls.published]) == 15
    assert set(known) == set(DATASETS) - {"custom"}


# ---- everything that goes wrong ----------------------------------------------------------------------------


FETCH = "python -m datasets.fetch {name} --root {root}"


def anew(*names):
    """Set aside, then fetched."""
    return " && ".join([*(f"mv {{folder}}/{name} {{folder}}/{name}.old1" for name in names), FETCH])


LISTS = ("variants.txt", *(f"images_variant_{part}.txt" for part in SIZES))


class Case(NamedTuple):
    name: str
    plant: object  # done to the dataset's folder
    what: str  # what the problem says (a regular expression)
    fix: str
    fixes: bool = False  # the command needs no network: run it, and all is well


E = "split_zhou_EuroSAT.json"
CASES = {
    # the folder
    "no root": Case("eurosat", lambda f: shutil.rmtree(f.parent), "there is no folder {root}$", FETCH),
    "no folder": Case("eurosat", shutil.rmtree, "there is no folder eurosat in {root}", FETCH),
    # the split
    "no split": Case("eurosat", remove(E), f"{E} is missing", FETCH),
    "split empty": Case("eurosat", write(E, ""), f"{E} is not a split file: it is no JSON", anew(E)),
    "split is a web page": Case("eurosat", write(E, "<!DOCTYPE html><p>quota"), "is not a split file", anew(E)),
    "split cut off": Case("eurosat", write(E, '{"train": [["a.jpg", 0, '), "is not a split file", anew(E)),
    "split without val": Case(
        "eurosat", write(E, '{"train": [], "test": []}'), 'not a split file: it has no list "val"', anew(E)
    ),
    "split of another dataset": Case(
        *("eurosat", lambda f: shutil.copy(f.parent / "stanford_cars" / FILES["stanford_cars"], f / E)),
        *("not the published split: its rows differ", anew(E)),
    ),
    "split with a row less": Case(
        *("eurosat", rewrite(E, lambda s: s["val"].pop()), "published split: it has 11 val images instead of 12"),
        anew(E),
    ),
    "split in another order": Case(
        "eurosat", rewrite(E, lambda s: random.shuffle(s["train"])), "its rows differ .*, or their order does", anew(E)
    ),
    "split without known hash, reordered": Case(
        *("food101", rewrite(FILES["food101"], lambda s: s["train"].reverse())),
        *("its few-shot picks have the hash .* instead of", anew(FILES["food101"])),
    ),
    # the images
    "no image folder": Case("eurosat", remove("2750"), "66 of 66 listed images are missing: Forest/Ftest_0", FETCH),
    "image folder in itself": Case("eurosat", nest("2750"), "66 of 66 listed images are missing", FETCH),
    "class folder missing": Case("eurosat", remove("2750/Sea"), "22 of 66 .* missing: Sea/S", anew("2750")),
    "cars_test gone": Case("stanford_cars", remove("cars_test"), "6 of 66 listed images are missing", FETCH),
    "images missing": Case(
        *("eurosat", remove(*(f"2750/River/Rtrain_{i}.jpg" for i in range(5)))),
        "5 of 66 .* missing: River/Rtrain_0.jpg, River/Rtrain_1.jpg, River/Rtrain_2.jpg and 2 more$",
        anew("2750"),
    ),
    "image in capitals": Case("eurosat", capitals, "1 of 66 .* missing: River/Rtrain_3.jpg", anew("2750")),
    "empty image": Case("eurosat", write("2750/Sea/Stest_0.jpg", ""), "1 of 66 .* are empty files", anew("2750")),
    "dead link": Case("eurosat", link("2750/Sea/Stest_0.jpg", "/gone"), "1 of 66 .* missing", anew("2750")),
    "image cut off": Case(
        *("eurosat", write("2750/Sea/Stest_0.jpg", JPEG[:-80])),
        *("1 of 66 images decoded are damaged: Sea/Stest_0.jpg", anew("2750")),
    ),
    "web page as image": Case(
        *("stanford_cars", write("cars_test/Stest_0.jpg", "<html>404</html>")),
        *("1 of 66 images decoded are damaged: cars_test/Stest_0.jpg", anew("cars_test")),
    ),
    # aircraft's lists
    "aircraft: list missing": Case(
        "fgvc_aircraft", remove("images_variant_val.txt"), "images_variant_val.txt is missing", FETCH
    ),
    "aircraft: unknown variant": Case(
        *("fgvc_aircraft", write("images_variant_val.txt", "0000001 707-321"), '"0000001 707-321" names no variant'),
        anew(*LISTS),
    ),
    "aircraft: variants in another order": Case(
        *("fgvc_aircraft", swap_variants, "the variants are in another order"),
        anew(*LISTS),
    ),
    # few-shot picks
    "picks of another split": Case(
        *("eurosat", other_split, "shot_2-seed_1.json belongs to another split"),
        *("rm {folder}/split_fewshot/shot_2-seed_1.json", True),
    ),
    "picks cut off": Case(
        *("eurosat", write("split_fewshot/shot_2-seed_1.json", '{"split": '), "shot_2-seed_1.json is damaged"),
        *("rm {folder}/split_fewshot/shot_2-seed_1.json", True),
    ),
    "picks of another seed": Case(
        *("eurosat", other_seed, "shot_2-seed_1.json has other picks than its seed draws"),
        *("rm {folder}/split_fewshot/shot_2-seed_1.json", True),
    ),
    "pickle that runs code": Case(
        *("eurosat", pickled(b"cbuiltins\nexit\n(I3\ntR."), r"seed_1.pkl is not used: .*asks for 'builtins.exit'"),
        "mv {folder}/split_fewshot/shot_2-seed_1.pkl {folder}/split_fewshot/shot_2-seed_1.pkl.old1",
        True,
    ),
    "pickle of an early, incomplete run": Case(
        *("eurosat", pickled(pickle.dumps({"train": [], "val": []})), "3 classes have not 2 train images each"),
        "mv {folder}/split_fewshot/shot_2-seed_1.pkl {folder}/split_fewshot/shot_2-seed_1.pkl.old1",
        True,
    ),
    # ImageNet and its variants
    "no class names": Case("imagenet", remove("classnames.txt"), "classnames.txt is missing", FETCH),
    "other class names": Case(
        *("imagenet", write("classnames.txt", "\n".join(CLASSNAMES).replace("tench", "tench, Tinca tinca"))),
        *("classnames.txt has not CLIP's class names", anew("classnames.txt")),
    ),
    "own class names of a variant": Case(
        *("imagenet_a", write("classnames.txt", CLASSNAMES[0]), "classnames.txt has not CLIP's class names"),
        anew("classnames.txt"),
    ),
    "val is flat": Case(
        *("imagenet", lambda f: (shutil.rmtree(f / "images/val"), put(f / "images/val/ILSVRC2012_val_00000001.JPEG"))),
        *("images/val has no class folders", FETCH),
    ),
    "no train": Case("imagenet", remove("images/train"), "there is no folder .*images/train", FETCH),
    "train in itself": Case(
        "imagenet", nest("images/train"), "class folders are one too deep, in .*train/train", FETCH
    ),
    "class folder of ImageNet missing": Case(
        *("imagenet", remove(f"images/train/{WNIDS[1]}"), "2 class folders instead of 3"), anew("images/train")
    ),
    "training images missing": Case(
        *("imagenet", remove(f"images/train/{WNIDS[1]}/{WNIDS[1]}_0.JPEG"), "images/train: 11 images instead of 12$"),
        anew("images/train"),
    ),
    "val images in the wrong class": Case(
        *("imagenet", move(f"images/val/{WNIDS[0]}/{WNIDS[0]}_0.JPEG", f"images/val/{WNIDS[1]}/x.JPEG")),
        rf"val: 2 classes have not 2 images each: {WNIDS[0]}, {WNIDS[1]}$",
        anew("images/val"),
    ),
    "val images exchanged": Case(
        *("imagenet", exchange, "val: other file names than the published ones, or in other classes"),
        anew("images/val"),
    ),
    "empty image in ImageNet": Case(
        *("imagenet", write(f"images/val/{WNIDS[0]}/{WNIDS[0]}_0.JPEG", ""), "1 of 6 images in .*val are empty files"),
        anew("images/val"),
    ),
    "withdrawn release of V2": Case(
        *("imagenetv2", lambda f: make_folders(f / V2, 4, ("0", "1", "2")), "12 images instead of 6"),
        anew(V2),
    ),
    "V2 with a strange folder": Case(
        *("imagenetv2", move(f"{V2}/2", f"{V2}/3"), "other class folders than the published ones"), anew(V2)
    ),
    "other classes in ImageNet-A": Case(
        *("imagenet_a", move(f"imagenet-a/{WNIDS[1]}", f"imagenet-a/{WNIDS[0]}")),
        *("other class folders than the published ones", anew("imagenet-a")),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_planted_problem_is_found_with_the_command_that_fixes_it(case, root):
    name, plant, what, fix, fixes = CASES[case]
    folder = root / FOLDERS[name]
    plant(folder)
    before = sorted(root.rglob("*"))
    problems, _ = examine(name, root)
    assert sorted(path for path in root.rglob("*") if path.name != "index.json") == before
    assert len(problems) == 1, problems
    assert re.search(what.replace("{root}", str(root)), problems[0].what), problems[0].what
    assert problems[0].fix == fix.format(name=name, root=root, folder=folder)
    if fixes:
        subprocess.run(["bash", "-ec", problems[0].fix], check=True)
        assert examine(name, root)[0] == []


@pytest.mark.parametrize(
    "case", ["image folder in itself", "train in itself", "no images level", "images under their archive's name"]
)
def test_what_only_lies_elsewhere_is_put_right_by_fetch_without_a_download(case, root, monkeypatch):
    """`fetch` itself is called; that it finds no source here would be an error."""
    name = "eurosat"
    if case == "no images level":  # the layout of other codebases: imagenet/train and imagenet/val
        name = "imagenet"
        for part in ("train", "val"):
            (root / "imagenet" / "images" / part).rename(root / "imagenet" / part)
    elif case == "images under their archive's name":
        (root / "eurosat" / "2750").rename(root / "eurosat" / "EuroSAT_RGB")
    else:
        name = CASES[case].name
        CASES[case].plant(root / FOLDERS[name])
    assert examine(name, root)[0]
    monkeypatch.setattr("datasets.fetch.download", None)
    assert fetch.main([name, "--root", str(root)]) == 0
    assert examine(name, root)[0] == []


def test_a_folder_that_cannot_be_listed_is_one_line(root, monkeypatch, capsys):
    """Asked of a stand-in: the tests may run as root, who is never denied."""
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("images/val"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert doctor.main(["imagenet", "--root", str(root)]) == 1
    assert re.search("Error: .*Permission denied.*images/val", capsys.readouterr().err)


def test_several_problems_are_all_named(root):
    folder = root / "eurosat"
    for case in ("images missing", "empty image", "picks cut off"):
        CASES[case].plant(folder)
    put(folder / "2750" / "Sea" / "Strain_0.jpg", JPEG[:-80])
    found = [problem.what for problem in examine("eurosat", root)[0]]
    for what, expected in zip(found, ("missing", "empty files", "decoded are damaged", "json is damaged"), strict=True):
        assert expected in what


def test_nothing_that_was_set_aside_is_overwritten(root):
    put(root / "eurosat" / f"{E}.old1", "kept")
    put(root / "eurosat" / E, "")
    ((_, fix),) = examine("eurosat", root)[0]
    assert fix.startswith(f"mv {root}/eurosat/{E} {root}/eurosat/{E}.old2 && ")


def test_picks_from_coops_pickle_are_no_problem(root):
    folder = root / "eurosat"
    split = read_split(folder / E)
    picks = select_shots(split, 2, 7)
    few_shot(folder, split, split_hash(split), 2, 1)
    path = folder / "split_fewshot" / "shot_2-seed_1.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {part: items for part, items in picks.items()} | {"pickle": "0" * 64}))
    assert examine("eurosat", root)[0] == []


# ---- decoding ----------------------------------------------------------------------------------------------


def test_decode_takes_a_sample_over_the_whole_dataset_or_all(root, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "read_image", seen.append)
    for number, expected in ((0, 0), (1, 1), (6, 6), (1000, 66), (None, 66)):
        seen.clear()
        examine("eurosat", root, number)
        assert len(seen) == expected
    examine("eurosat", root, 6)
    assert len({path.parent for path in seen[-6:]}) == 3


# ---- command line ------------------------------------------------------------------------------------------


def test_the_command_prints_every_problem_with_its_command_and_tells_by_its_exit_code(root, capsys):
    assert doctor.main(["eurosat", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(rf"EuroSAT: in order \(66 images in {root}/eurosat; split [0-9a-f]{{16}}\)\n", out)
    CASES["no split"].plant(root / "eurosat")
    assert doctor.main(["eurosat", "imagenet_a", "--root", str(root)]) == 1
    first, what, fix, other = capsys.readouterr().out.splitlines()
    assert (first, what) == ("EuroSAT: 1 problem", f"  {root}/eurosat/{E} is missing")
    assert fix == f"    fix: python -m datasets.fetch eurosat --root {root}"
    assert other.startswith("ImageNetA: in order (6 images in ")


def test_problems_that_one_command_fixes_are_listed_above_it(root, capsys):
    """Run twice it would put aside what it has just brought."""
    for case in ("images missing", "empty image", "image cut off"):
        CASES[case].plant(root / "eurosat")
    put(root / "eurosat" / "2750" / "Forest" / "Ftest_0.jpg", "")
    assert doctor.main(["EuroSAT", "--root", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines] == ["EuroSAT: ", "  5 of 66", "  1 of 66", "  1 of 60", "    fix: "]


def test_all_stands_for_the_published_datasets(root, capsys):
    assert doctor.main(["all", "--root", str(root / "nowhere")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 15
    assert {line.split()[-3] for line in lines[2::3]} == set(DATASETS) - {"emoji", "custom"}


def test_ctrl_c_says_that_nothing_was_changed(root, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "read_image", interrupt)
    assert doctor.main(["eurosat", "--root", str(root)]) == 130
    assert "nothing was changed" in capsys.readouterr().err


def test_output_stays_short_however_much_is_wrong(root, capsys):
    for path in (root / "eurosat" / "2750").rglob("*.jpg"):
        path.write_bytes(b"")
    doctor.main(["eurosat", "--root", str(root)])
    assert len(capsys.readouterr().out) < 1000
