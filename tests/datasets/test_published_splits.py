"""CoOp's own split files: same images as in published few-shot index files, same base and new classes.

`published_selections.json` holds, per dataset and number of shots, for seeds 1, 2 and 3, "train/val": the
first 12 digits of the SHA-256 over the selected paths joined by line feeds.
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl.data.datasets import DATASET_REGISTRY
from datasets.splits import PARTS, read_split, select_shots, split_hash, subsample_classes

SPLITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "splits"
PUBLISHED = json.loads((Path(__file__).parent / "published_selections.json").read_text())

# yaml name: (class, content hash, base and new (train, val, test) images, last base and first new class)
FACTS = {
    "caltech101": (
        "Caltech101",
        "266b016abdaeeb65",
        (2594, 1036, 1549),
        (1534, 613, 916),
        "helicopter",
        "ibis",
    ),
    "oxford_pets": (
        "OxfordPets",
        "175852640a3b1e8d",
        (1508, 377, 1881),
        (1436, 359, 1788),
        "keeshond",
        "leonberger",
    ),
    "stanford_cars": (
        *("StanfordCars", "bffbe347fbf93ad5", (3240, 812, 4002), (3269, 823, 4039)),
        *("1998 Eagle Talon Hatchback", "2012 FIAT 500 Abarth"),
    ),
    "oxford_flowers": (
        *("OxfordFlowers", "9bf82a401539357a", (1744, 696, 1053), (2349, 937, 1410)),
        *("petunia", "wild pansy"),
    ),
    "dtd": (
        "DescribableTextures",
        "0d04a9bb08938c9d",
        (1440, 576, 864),
        (1380, 552, 828),
        "marbled",
        "matted",
    ),
    "eurosat": (
        *("EuroSAT", "b9db23fedd13a2d3", (7000, 2800, 4200), (6500, 2600, 3900)),
        *("Industrial Buildings", "Pasture Land"),
    ),
    "ucf101": ("UCF101", "29a5dc239824943e", (3926, 975, 1934), (3713, 923, 1849), "Long_Jump", "Lunges"),
}

_read = {}


def published_split(dataset):
    path = SPLITS / f"split_zhou_{FACTS[dataset][0]}.json"
    if not path.is_file():
        pytest.skip(f"needs ../shared/data/splits/{path.name}")
    if dataset not in _read:
        _read[dataset] = read_split(path)
    return _read[dataset]


def digest(items):
    return hashlib.sha256("\n".join(item.path for item in items).encode()).hexdigest()[:12]


@pytest.mark.parametrize("dataset", FACTS)
def test_the_selected_images_are_those_of_the_published_index_files(dataset):
    split = published_split(dataset)
    for shots, per_seed in PUBLISHED[dataset].items():
        for seed, expected in enumerate(per_seed, start=1):
            selected = select_shots(split, int(shots), seed)
            assert f"{digest(selected['train'])}/{digest(selected['val'])}" == expected, (shots, seed)


@pytest.mark.parametrize("dataset", FACTS)
def test_base_and_new_classes_have_the_published_sizes_and_border(dataset):
    split = published_split(dataset)
    _, _, *sizes, last_base, first_new = FACTS[dataset]
    base, new = (subsample_classes(*(split[part] for part in PARTS), subsample=half) for half in ("base", "new"))
    assert [tuple(map(len, half)) for half in (base, new)] == sizes
    classes = len({item.label for item in split["train"]})
    highest = max(item.label for item in base[0])
    assert highest + 1 == (classes + 1) // 2
    assert {item.classname for item in base[2] if item.label == highest} == {last_base}
    assert {item.classname for item in new[2] if item.label == 0} == {first_new}


@pytest.mark.parametrize("dataset", FACTS)
def test_the_content_hash_is_the_one_in_the_documentation(dataset):
    shown = FACTS[dataset][1]
    assert split_hash(published_split(dataset)).startswith(shown)
    assert f"`{shown}`" in (Path(__file__).parents[2] / "docs/DATASETS.md").read_text()


@pytest.mark.parametrize(
    "dataset, first",
    [("oxford_flowers", [76, 72, 87, 88, 80, 45]), ("stanford_cars", [13, 2, 90, 133, 105, 122])],
)
def test_two_splits_list_their_classes_unsorted_and_a_selection_follows_them(dataset, first):
    selected = select_shots(published_split(dataset), 1, seed=1)
    assert [item.label for item in selected["train"][:6]] == first


def test_a_whole_dataset_class_loads_the_published_split(tmp_path):
    """DTD with an empty file for each of its 5,640 images: 16 shots of the base classes."""
    split = published_split("dtd")
    images = tmp_path / "dtd" / "images"
    for path in {item.path for items in split.values() for item in items}:
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        (images / path).touch()
    name = "split_zhou_DescribableTextures.json"
    (tmp_path / "dtd" / name).write_bytes((SPLITS / name).read_bytes())
    settings = SimpleNamespace(ROOT=str(tmp_path), NUM_SHOTS=16, SUBSAMPLE_CLASSES="base", TEMPLATE="")
    dataset = DATASET_REGISTRY.get("DescribableTextures")(SimpleNamespace(DATASET=settings, SEED=1))
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (24 * 16, 24 * 4, 864)
    assert (dataset.num_classes, dataset.classnames[0], dataset.classnames[-1]) == (24, "banded", "marbled")
    assert dataset.split_hash.startswith(FACTS["dtd"][1])
