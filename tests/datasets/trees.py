"""Data roots with small, decodable versions of seven datasets, and what goes wrong in them.

Trees of real layout with a tiny JPEG for each path of a small split; the classes are told that these are the published
ones.
"""

import io
import shutil
from pathlib import Path

from PIL import Image

from dassl.utils import write_json
from datasets import doctor, imagenet
from datasets.published import Published, lines_hash, picks_hash
from datasets.splits import Item, few_shot, read_split, select_shots, split_hash

SPLITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "splits"
FOLDERS = {
    "eurosat": "eurosat",
    "food101": "food-101",
    "stanford_cars": "stanford_cars",
    "fgvc_aircraft": "fgvc_aircraft",
}
FOLDERS |= {"imagenet": "imagenet", "imagenetv2": "imagenetv2", "imagenet_a": "imagenet-adversarial"}
FILES = {"eurosat": "split_zhou_EuroSAT.json", "food101": "split_zhou_Food101.json"}
FILES |= {"stanford_cars": "split_zhou_StanfordCars.json"}
SIZES = {"train": 16, "val": 4, "test": 2}  # images per class
WNIDS = ("n01440764", "n01608432", "n02788148")
CLASSNAMES = ["n01440764 tench", "n01608432 kite (bird of prey)", "n02788148 baluster / handrail"]
V2 = "imagenetv2-matched-frequency-format-val"


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 80, 40)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def put(path, content=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def make_split(prefix="{name}/", names=("Forest", "River", "Sea")):
    def items(part):
        rows = ((name, label, i) for label, name in enumerate(names) for i in range(SIZES[part]))
        return [
            Item(f"{prefix.format(part=part, name=name)}{name[0]}{part}_{i}.jpg", label, name)
            for name, label, i in rows
        ]

    return {part: items(part) for part in SIZES}


def make_listed(root, name, images, split):
    for path in {item.path for items in split.values() for item in items}:
        put(root / FOLDERS[name] / images / path)
    write_json(split, root / FOLDERS[name] / FILES[name])
    return split


def make_aircraft(root):
    folder, variants = root / "fgvc_aircraft", ("707-320", "Hawk T1")
    split = make_split("", variants)
    put(folder / "variants.txt", "\n".join(variants))
    for part, items in split.items():
        put(folder / f"images_variant_{part}.txt", "\n".join(f"{item.path[:-4]} {item.classname}" for item in items))
        for item in items:
            put(folder / "images" / item.path)
    return split


def make_folders(folder, per_class, names=WNIDS):
    for name in names:
        for i in range(per_class):
            put(folder / name / f"{name}_{i}.JPEG")


def make_trees(tmp_path, monkeypatch):
    """A data root with healthy, small versions of seven datasets."""

    def publish(name, split, known=True):
        sizes = {part: len(items) for part, items in split.items()}
        hashes = (split_hash(split), "") if known else ("", picks_hash(select_shots(split, 16, 1)))
        classes = len({item.label for item in split["train"]})
        tell(name, Published(classes, sizes, *hashes))

    def tell(name, facts):
        monkeypatch.setattr(doctor.known_datasets()[name], "published", facts)

    publish("eurosat", make_listed(tmp_path, "eurosat", "2750", make_split()))
    cars = make_split("cars_{part}/".replace("{part}", "train"))
    cars["test"] = [item._replace(path=item.path.replace("_train/", "_test/")) for item in cars["test"]]
    publish("stanford_cars", make_listed(tmp_path, "stanford_cars", ".", cars))
    publish("food101", make_listed(tmp_path, "food101", "images", make_split(names=("beet_salad", "pho"))), known=False)
    publish("fgvc_aircraft", make_aircraft(tmp_path), known=False)

    put(tmp_path / "imagenet" / "classnames.txt", "\r\n".join(CLASSNAMES) + "\r\n")
    make_folders(tmp_path / "imagenet" / "images" / "train", 4)
    make_folders(tmp_path / "imagenet" / "images" / "val", 2)
    make_folders(tmp_path / "imagenetv2" / V2, 2, ("0", "1", "2"))
    make_folders(tmp_path / "imagenet-adversarial" / "imagenet-a", 3, WNIDS[1:])
    monkeypatch.setattr(imagenet, "CLASSNAMES", lines_hash(CLASSNAMES))
    ids = lines_hash(WNIDS)
    files = lines_hash(f"{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(2))
    imagenet_facts = Published(3, dict(train=12, val=6, test=6), ids=ids, per_class=2, files=files)
    tell("imagenet", imagenet_facts)
    tell("imagenetv2", Published(3, {"test": 6}, per_class=2))
    tell("imagenet_a", Published(2, {"test": 6}, ids=lines_hash(WNIDS[1:])))
    return tmp_path


def examine(name, root, decode=None):
    return doctor.examine(doctor.known_datasets()[name], root, decode)


# ---- what goes wrong ----------------------------------------------------------------------------------------


def move(old, new):
    def plant(folder):
        (folder / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / old, folder / new)

    return plant


def nest(name):
    def plant(folder):
        (folder / name).rename(folder / "x")
        (folder / name).mkdir()
        (folder / "x").rename(folder / name / Path(name).name)

    return plant


def write(name, content):
    return lambda folder: put(folder / name, content)


def remove(*names):
    def plant(folder):
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return plant


def rewrite(name, change):
    """Change the split in the file `name`."""

    def plant(folder):
        split = read_split(folder / name)
        change(split)
        write_json(split, folder / name)

    return plant


def swap_variants(folder):
    path = folder / "variants.txt"
    path.write_text("\n".join(reversed(path.read_text().split("\n"))))


def pickled(content):
    return write("split_fewshot/shot_2-seed_1.pkl", content)


def link(name, to):
    def plant(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return plant


def other_seed(folder):
    split = read_split(folder / FILES["eurosat"])
    few_shot(folder, split, split_hash(split), 2, 7)
    (folder / "split_fewshot" / "shot_2-seed_7.json").rename(folder / "split_fewshot" / "shot_2-seed_1.json")
    path = folder / "split_fewshot" / "shot_2-seed_1.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 1'))


def other_split(folder):
    few_shot(folder, make_split(), "0" * 64, 2, 1)


def capitals(folder):
    (folder / "2750" / "River" / "Rtrain_3.jpg").rename(folder / "2750" / "River" / "Rtrain_3.JPG")


def exchange(folder):
    """Two validation images in each other's class: every number stays right."""
    one, other = (folder / "images" / "val" / wnid / f"{wnid}_0.JPEG" for wnid in WNIDS[:2])
    one.rename(other.parent / one.name)
    other.rename(one.parent / other.name)
