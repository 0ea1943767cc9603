"""Folders of images: which files are images, and which folders are classes."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dassl.utils import UserError, read_image

_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MODERN = (".avif", ".jp2", ".j2k", ".heic", ".heif")


def _readable_suffixes():
    """`_SUFFIXES`, and those of `_MODERN` that this Pillow (with pillow-heif, if it is there) has a reader for."""
    Image.init()  # all formats now: a thread that meets Pillow loading them takes a WebP for no image
    formats = Image.registered_extensions()
    return (*_SUFFIXES, *(suffix for suffix in _MODERN if formats.get(suffix) in Image.OPEN))


IMAGE_SUFFIXES = _readable_suffixes()


def is_image_name(name):
    """Whether a file of this name is an image by its extension; hidden files ("._a.jpg") are none."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_image(path):
    """Whether `path` is a file, or a link to one, with the name of an image."""
    return is_image_name(path.name) and path.is_file()


def find_images(folder):
    """Paths of all images in `folder` and the folders below, sorted."""
    return sorted(path for path in visible_files(folder) if is_image(path))


def visible_files(folder):
    """Paths of all files in `folder` and the folders below but hidden ones; links are followed, each folder once."""
    seen = set()

    def refuse(error):
        raise UserError(f"Can't list {error.filename} ({error.strerror}); make it readable or take it away") from error

    for base, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(base)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                yield Path(base, name)


def class_folders(path):
    """Names of the folders in `path`, sorted; plain files (README.txt) and hidden folders are no classes.

    UserError for a name that is no UTF-8: no prompt could be built of it, and no file could hold it.
    """
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"The name of the folder {os.fsencode(name)} in {path} is no UTF-8: rename it") from error
    return names


def check_images(paths):
    """Decode every image -> [(SHA-256 (hex) of its bytes, None) or (None, the error)]."""
    pool = ThreadPoolExecutor()
    try:
        checks = pool.map(_check_image, paths)
        return list(tqdm(checks, total=len(paths), desc="Checking images", unit="", leave=False))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C doesn't wait for the rest


def _check_image(path):
    try:
        read_image(path)
        return hashlib.sha256(path.read_bytes()).hexdigest(), None
    except (UserError, OSError) as error:
        return None, error


def count_suffixes(names):
    """The names' extensions and how often each occurs, as text: "2 .db, 1 without an extension"."""
    counts = Counter(os.path.splitext(name)[1].lower() for name in names)
    return ", ".join(f"{number} {suffix or 'without an extension'}" for suffix, number in counts.most_common())


def shorten(names, most=3):
    """The first few names and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
