"""The embedded dataset `emoji`: the same things by different companies, from the npm package @iconify/json.

    python scripts/embedded/icons.py icons/
    python scripts/embedded/emoji.py icons/          # writes datasets/emoji_data/, and icons/seen.json

A class is an emoji that every training set, every test set and at least one validation set has, and whose name at
least SETS other sets use too. Images for training, validation and test come from different companies.

`seen.json` lists the rows of icons.json that the pre-training may use: everything but, from the sets of this dataset,
what has a class in its name, and, from all sets, what looks like an image of this dataset.
"""

import argparse
import collections
import json
import re
import shutil
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from icons import KINDS, PACKAGE, ROOT, SIZE, VERSION, emoji_name, fetch, read_set, render, svg
from PIL import Image

TARGET = ROOT / "datasets" / "emoji_data"

VENDORS = {  # part: the sets of Twitter, OpenMoji and Google; of Mozilla and Streamline; of Microsoft
    "train": ("twemoji", "openmoji", "noto", "noto-v1"),
    "val": ("fxemoji", "streamline-emojis"),
    "test": ("fluent-emoji-flat", "fluent-emoji", "fluent-emoji-high-contrast"),
}
OWN_SETS = {vendor for part in VENDORS.values() for vendor in part}
THINGS = {
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Objects",
    "Activities",
}  # twemoji's categories
SETS = 3  # of the pre-training, that know the name
LETTERS = 5  # of a class name that is looked for within words too: fxemoji writes a name as one word
ALIKE = 0.97  # cosine of two small images without their mean, from which on they count as one image
THUMB = 16  # pixels of these small images


def joined(name):
    """'alarm clock' -> 'alarmclock': fxemoji writes its names in one word."""
    return re.sub("[^a-z0-9]", "", name)


def icons_by_name(package, vendor):
    """-> {joined name: [(key, icon), ...]}: 'doughnut-1' and 'doughnut-2' are two images of 'doughnut'."""
    by_name = collections.defaultdict(list)
    for key, icon in read_set(package, vendor).items():
        if emoji_name(key):
            by_name[joined(emoji_name(key))].append((key, icon))
    return by_name


def choose_classes(package, records, vendors):
    """The class names, sorted: things, known by name to the pre-training, that every set needed has."""
    known = collections.defaultdict(set)
    for record in records:
        if record["set"] not in OWN_SETS:
            known[record["name"]].add(record["set"])
    categories = json.loads((package / "json" / "twemoji.json").read_text())["categories"]
    things = {emoji_name(key) for category in THINGS for key in categories[category]} - {""}

    def has(name, part):
        return [joined(name) in vendors[vendor] for vendor in VENDORS[part]]

    return sorted(
        name
        for name in things
        if len(known[name]) >= SETS and all(has(name, "train") + has(name, "test")) and any(has(name, "val"))
    )


def names_a_class(key, classes):
    """Whether all words of a class are in an icon's name, or a longer class in its letters (fxemoji's names)."""
    words, letters = set(re.split("[^a-z0-9]+", key.lower())), joined(key.lower())
    return any(
        words.issuperset(name.split()) or (len(joined(name)) >= LETTERS and joined(name) in letters) for name in classes
    )


def thumbs(images):
    """uint8 (N, 64, 64, 3) -> float32 (N, D): small images of mean 0 and length 1; a blank one stays 0."""
    step = SIZE // THUMB
    small = images.reshape(-1, THUMB, step, THUMB, step, 3).mean((2, 4), dtype=np.float32).reshape(len(images), -1)
    small -= small.mean(1, keepdims=True)
    return small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-6)


def on_white(pixels):
    """uint8 RGBA (..., 64, 64, 4) -> RGB on white; coverage (..., 64, 64) counts as black ink."""
    if pixels.shape[-1] != 4:
        return np.repeat(255 - pixels[..., None], 3, axis=-1)
    alpha = pixels[..., 3:] / np.float32(255)
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def seen_rows(folder, records, classes, images):
    """Rows of `records` that the pre-training may use: see the head of this file. `images`: uint8 (N, 64, 64, 3)."""
    rows = [i for i, r in enumerate(records) if r["set"] not in OWN_SETS or not names_a_class(r["key"], classes)]
    pixels = {colour: np.load(folder / f"{kind}.npy", mmap_mode="r") for colour, kind in KINDS.items()}
    target, seen = thumbs(images).T.copy(), []
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        images = [on_white(pixels[records[i]["colour"]][records[i]["row"]]) for i in part]
        alike = (thumbs(np.stack(images)) @ target).max(1)
        seen += [i for i, cosine in zip(part, alike, strict=True) if cosine < ALIKE]
    print(f"{len(records):,} icons, {len(rows):,} by name, {len(seen):,} of them unlike the dataset's images")
    return seen


def save_image(job):
    """Render one emoji on white and save it as a palette PNG; -> whether it could be rendered."""
    icon, path = job
    pixels = render(svg(*icon))
    if pixels is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(on_white(pixels)).quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    return True


def attribution(package):
    """Text of ATTRIBUTION.md: who drew the images, and under which licence."""
    about = json.loads((package / "collections.json").read_text())
    lines = [
        "# Who drew these images",
        "",
        f"Rendered at {SIZE}x{SIZE} pixels on white, in 64 colours, from the npm package {PACKAGE} {VERSION} by",
        "`scripts/embedded/emoji.py`; otherwise unchanged. Each image keeps its vendor's licence; its file is named",
        "after the set. The Apache and MIT licences are beside this file, the Creative Commons licences are at",
        "the addresses below.",
        "",
        "| set | used for | author | licence |",
        "|---|---|---|---|",
    ]
    for part, sets in VENDORS.items():
        for vendor in sets:
            author, licence = about[vendor]["author"], about[vendor]["license"]
            link = f"[{licence['title']}]({licence['url']})" if "url" in licence else licence["title"]
            lines.append(
                f"| {about[vendor]['name']} (`{vendor}`) | {part} | [{author['name']}]({author['url']}) | {link} |"
            )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that icons.py filled")
    folder = parser.parse_args().folder
    package = fetch(folder)
    vendors = {vendor: icons_by_name(package, vendor) for part in VENDORS.values() for vendor in part}
    records = json.loads((folder / "icons.json").read_text())
    classes = choose_classes(package, records, vendors)

    shutil.rmtree(TARGET / "images", ignore_errors=True)
    jobs, rows = [], []
    for label, name in enumerate(classes):
        for part, sets in VENDORS.items():
            for vendor in sets:
                for number, (_, icon) in enumerate(vendors[vendor].get(joined(name), ())):
                    path = f"{name.replace(' ', '-')}/{vendor}{f'-{number + 1}' if number else ''}.png"
                    jobs.append((icon, TARGET / "images" / path))
                    rows.append((part, [path, label, name]))
    with Pool() as pool:
        saved = pool.map(save_image, jobs, chunksize=32)
    split = {part: [row for (p, row), ok in zip(rows, saved, strict=True) if ok and p == part] for part in VENDORS}
    (TARGET / "ATTRIBUTION.md").write_text(attribution(package))
    (TARGET / "split_emoji.json").write_text(json.dumps(split, indent=0) + "\n")
    images = [np.array(Image.open(path).convert("RGB")) for (_, path), ok in zip(jobs, saved, strict=True) if ok]
    seen = seen_rows(folder, records, classes, np.stack(images))
    (folder / "seen.json").write_text(json.dumps(seen))
    size = sum(path.stat().st_size for path in (TARGET / "images").rglob("*.png"))
    counts = ", ".join(f"{len(rows)} {part}" for part, rows in split.items())
    print(f"{len(classes)} classes, {SIZE}x{SIZE} pixels, {counts}, {size / 1e6:.1f} MB in {TARGET}")


if __name__ == "__main__":
    main()
