"""The embedded dataset `emoji`: the same things drawn by different vendors, from the npm package @iconify/json.

    python scripts/embedded/emoji.py icons/          # writes datasets/emoji_data/ from the package in icons/

A class is an emoji whose name at least three icon sets of the pre-training use too, drawn in every training set and in
at least four test sets. Drawings for training, validation and test come from different sets, and no company that
draws a test picture draws a training picture; none of the sets is in the embedded model's pre-training.
"""

import argparse
import collections
import json
import re
import shutil
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from icons import PACKAGE, SIZE, VERSION, fetch, read_set, render, svg
from PIL import Image

TARGET = Path(__file__).resolve().parents[2] / "datasets" / "emoji_data"

VENDORS = {
    "train": ("twemoji", "openmoji", "noto", "emojione", "emojione-monotone"),
    "val": ("noto-v1", "emojione-v1"),
    "test": (
        "fluent-emoji-flat",
        "fluent-emoji",
        "fluent-emoji-high-contrast",
        "fxemoji",
        "streamline-emojis",
    ),
}
THINGS = {
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Objects",
    "Activities",
}  # twemoji's categories
ICON_SETS = 3  # of the pre-training, that know the name
TEST_SETS = 4  # of the test vendors, that drew it


def drawings_by_name(package, vendor):
    """-> {name: [icon, ...]}: 'doughnut-1' and 'doughnut-2' are two drawings of 'doughnut'."""
    by_name = collections.defaultdict(list)
    for key, icon in read_set(package, vendor).items():
        by_name[re.sub(r"-\d$", "", key)].append((key, icon))
    return by_name


def choose_classes(package, records, vendors):
    """The class names, sorted: things, known by name to the pre-training, drawn often enough."""
    known = collections.defaultdict(set)
    for record in records:
        known[record["name"]].add(record["set"])
    categories = json.loads((package / "json" / "twemoji.json").read_text())["categories"]
    things = {name for category in THINGS for name in categories[category]}
    return sorted(
        name
        for name in things
        if len(known[name.replace("-", " ")]) >= ICON_SETS
        and all(name in vendors[vendor] for vendor in VENDORS["train"])
        and sum(name in vendors[vendor] for vendor in VENDORS["test"]) >= TEST_SETS
    )


def save_picture(job):
    """Draw one emoji on white and save it as a palette PNG; -> whether it could be drawn."""
    icon, path = job
    pixels = render(svg(*icon))
    if pixels is None:
        return False
    alpha = pixels[..., 3:] / 255  # (64, 64, 1)
    on_white = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(on_white).quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    return True


def attribution(package):
    """Text of ATTRIBUTION.md: who drew the pictures, and under which licence."""
    about = json.loads((package / "collections.json").read_text())
    lines = [
        "# Who drew these pictures",
        "",
        f"Rendered at {SIZE}x{SIZE} pixels on white, in 64 colours, from the npm package {PACKAGE} {VERSION} by",
        "`scripts/embedded/emoji.py`; otherwise unchanged. Each picture keeps its vendor's licence; its file is named",
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
    vendors = {vendor: drawings_by_name(package, vendor) for part in VENDORS.values() for vendor in part}
    classes = choose_classes(package, json.loads((folder / "icons.json").read_text()), vendors)

    shutil.rmtree(TARGET / "images", ignore_errors=True)
    jobs, rows = [], []
    for label, name in enumerate(classes):
        for part, sets in VENDORS.items():
            for vendor in sets:
                for key, icon in vendors[vendor].get(name, ()):
                    path = f"{name}/{vendor}{key.removeprefix(name)}.png"
                    jobs.append((icon, TARGET / "images" / path))
                    rows.append((part, [path, label, name.replace("-", " ")]))
    with Pool() as pool:
        drawn = pool.map(save_picture, jobs, chunksize=32)
    split = {part: [row for (p, row), ok in zip(rows, drawn, strict=True) if ok and p == part] for part in VENDORS}
    (TARGET / "ATTRIBUTION.md").write_text(attribution(package))
    (TARGET / "split_emoji.json").write_text(json.dumps(split, indent=0) + "\n")
    size = sum(path.stat().st_size for path in (TARGET / "images").rglob("*.png"))
    counts = ", ".join(f"{len(rows)} {part}" for part, rows in split.items())
    print(f"{len(classes)} classes, {SIZE}x{SIZE} pixels, {counts}, {size / 1e6:.1f} MB in {TARGET}")


if __name__ == "__main__":
    main()
