"""Icon sets of the npm package @iconify/json as pairs (name, image): what the embedded model is pre-trained on.

    python scripts/embedded/icons.py icons/          # fetch with npm, clean the names, render 64 x 64; about 3 minutes

Needs npm and the renderer of RENDERER below (`pip install "resvg_py==0.5.0"`).

Writes into the folder: `package/` (the unpacked npm package), `icons.json` (one record per icon: set, key, name,
colour, row) and two arrays, `colour.npy` (uint8, (N, 64, 64, 4), RGBA) and `mono.npy` (uint8, (N, 64, 64), coverage).

Left out: brand, logo, flag and file-type sets (their names are trade names or codes), sets under non-commercial or GPL
licences, second versions that differ only in weight, and skin tones. Emoji sets are in: emoji.py decides what of them
the pre-training may see.
"""

import argparse
import collections
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dassl.utils.archives import unpack  # noqa: E402
from dassl.utils.download import file_hash  # noqa: E402

PACKAGE = "@iconify/json"
VERSION = "2.2.535"
SHA256 = "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"  # of its archive
LIMIT = 1 << 29  # bytes unpacked; it has 486 million
RENDERER = "resvg_py==0.5.0"  # the dataset's bytes are of this version
SIZE = 64  # pixels
KINDS = {True: "colour", False: "mono"}  # the two arrays, by a record's `colour`

EMOJI_SETS = (  # their names are Unicode's and stay as they are, but for a number at the end
    *("twemoji", "openmoji", "noto", "noto-v1", "emojione", "emojione-v1", "emojione-monotone", "fxemoji"),
    *("fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "streamline-emojis"),
)
SKIN_TONES = re.compile(r"skin-tone|-(light|medium|dark)$")  # the second form is fluent-emoji's

LEFT_OUT_CATEGORIES = {"Logos", "Programming"}
LEFT_OUT_SETS = {
    # flags and brands outside the categories above
    *("flag", "flagpack", "cif", "circle-flags", "fa-brands", "fa6-brands", "fa7-brands", "selfhst"),
    # the same icons as another set, only thinner or older
    *("material-symbols-light", "fa-solid", "fa-regular", "fa6-solid", "fa6-regular", "heroicons-outline"),
    *("heroicons-solid", "pepicons", "pepicons-print", "icon-park-outline", "uit", "bxl", "mono-icons"),
}
LEFT_OUT_LICENCES = ("NC", "GPL")

# Words that name a style, not a thing; taken off the end (or, in the sets that put them there, off the front).
STYLES = set(
    [
        "outline",
        "outlined",
        "line",
        "linear",
        "lines",
        "filled",
        "fill",
        "solid",
        "bold",
        "bolder",
        "duotone",
        "twotone",
        "tone",
        "broken",
        "bulk",
        "light",
        "thin",
        "regular",
        "sharp",
        "round",
        "rounded",
        "baseline",
        "stroke",
        "alt",
        "color",
        "colour",
        "flat",
        "rtl",
        "ltr",
        "o",
        "fa",
        "remix",
        "mini",
        "micro",
        "small",
        "large",
        "sm",
        "md",
        "lg",
        "xl",
        "filled-rounded",
    ]
)
# Shelf marks that some sets put in front: 'food-apple', 'animal-cat', 'vehicle-bus'.
SHELVES = {
    "food",
    "fruit",
    "animal",
    "vehicle",
    "weather",
    "device",
    "building",
    "transport",
    "sport",
    "emoji",
}
VARIANTS = 2  # icons kept of one name in one set: an outline and a filled one, usually


def emoji_name(key):
    """'doughnut-2' -> 'doughnut'; '' for a skin tone's variant."""
    return "" if SKIN_TONES.search(key) else re.sub(r"-\d+$", "", key.lower()).replace("-", " ")


def clean_name(key):
    """'food-apple-2-outline' -> 'apple': the words without sizes, styles, shelf marks; '' if it isn't words."""
    words = [word for word in re.split(r"[-_ ]+", key.lower()) if word]
    while len(words) > 1 and (words[-1] in STYLES or re.fullmatch(r"\d+(px|x)?", words[-1])):
        words.pop()
    while len(words) > 1 and (words[0] in STYLES or words[0].isdigit()):
        words.pop(0)
    if len(words) > 1 and words[0] in SHELVES:
        words.pop(0)
    return " ".join(words) if all(re.fullmatch(r"[a-z][a-z0-9]*", word) for word in words) else ""


def fetch(folder):
    """Unpack the npm package into `folder`/package, once. Exits, with what to do, where something is missing."""
    package, archive = folder / "package", folder / f"iconify-json-{VERSION}.tgz"
    if importlib.util.find_spec("resvg_py") is None:
        sys.exit(f'Error: icons need a renderer: pip install "{RENDERER}"')
    if not (package / "collections.json").exists():
        if not archive.exists():
            if not shutil.which("npm"):
                sys.exit(f"Error: npm is missing: install Node.js, or put the package's archive there: {archive}")
            subprocess.run(["npm", "pack", f"{PACKAGE}@{VERSION}", "--silent"], cwd=folder, check=True)
        if file_hash(archive) != SHA256:
            sys.exit(f"Error: {archive} is not version {VERSION} of {PACKAGE}: remove it and give this command again")
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            unpack(archive, Path(unpacked), LIMIT)
            shutil.rmtree(package, ignore_errors=True)  # part of a package
            (Path(unpacked) / "package").rename(package)  # whole or not at all
    return package


BOX = ("left", "top", "width", "height")


def read_set(package, prefix):
    """-> {key: (body, left, top, width, height)} of one set, hidden icons left out."""
    found = json.loads((package / "json" / f"{prefix}.json").read_text())
    box = [(side, found.get(side, default)) for side, default in zip(BOX, (0, 0, 16, 16), strict=True)]
    return {
        key: (icon["body"], *(icon.get(side, default) for side, default in box))
        for key, icon in found["icons"].items()
        if not icon.get("hidden")
    }


def svg(body, left, top, width, height):
    """A square image with the icon centred in it."""
    side = max(width, height)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000"'
        f' viewBox="{left} {top} {side} {side}">{body}</svg>'
    )


def render(source):
    """SVG text -> uint8 (SIZE, SIZE, 4) RGBA, or None where the icon can't be read or is empty."""
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=source, width=SIZE, height=SIZE))
    except ValueError:
        return None
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGBA"))
    return pixels if pixels[..., 3].any() else None


def icons(package):
    """Every icon to learn from: {set, key, name, colour, svg}, at most VARIANTS of one name in one set."""
    sets = json.loads((package / "collections.json").read_text())
    for prefix, about in sets.items():
        licence = about["license"].get("spdx", "")
        if (
            about.get("category") in LEFT_OUT_CATEGORIES
            or prefix in LEFT_OUT_SETS
            or any(word in licence for word in LEFT_OUT_LICENCES)
        ):
            continue
        kept = collections.Counter()
        for key, icon in read_set(package, prefix).items():
            name = emoji_name(key) if prefix in EMOJI_SETS else clean_name(key)
            if name and kept[name] < VARIANTS:
                kept[name] += 1
                yield {"set": prefix, "key": key, "name": name, "colour": bool(about.get("palette")), "svg": svg(*icon)}


def render_all(folder, package):
    records = list(icons(package))
    rows = {True: [], False: []}  # pixels by colour or not
    kept = []
    with Pool() as pool:
        images = pool.imap(render, (record.pop("svg") for record in records), chunksize=256)
        for record, pixels in tqdm(zip(records, images, strict=True), total=len(records), desc="render"):
            if pixels is None:
                continue
            record["row"] = len(rows[record["colour"]])
            rows[record["colour"]].append(pixels if record["colour"] else pixels[..., 3])
            kept.append(record)
    for colour, kind in KINDS.items():
        np.save(folder / f"{kind}.npy", np.stack(rows[colour]))
    (folder / "icons.json").write_text(json.dumps(kept))
    return kept


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="working folder, made if missing (about 1 GB)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    kept = render_all(folder, fetch(folder))
    names = collections.Counter(record["name"] for record in kept)
    print(f"{len(kept):,} icons, {len(names):,} names, {sum(r['colour'] for r in kept):,} in colour")


if __name__ == "__main__":
    main()
