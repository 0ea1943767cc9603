"""Images as the networks see them: 8 bits of red, green and blue, nothing transparent."""

import os
import struct
import threading
from contextlib import nullcontext

import numpy as np
from PIL import Image, ImageOps

from .errors import MissingFile, UserError

try:
    import pillow_heif

    pillow_heif.register_heif_opener()  # in every process that decodes, also in workers that are not forked
except ImportError:
    pass

MAX_PIXELS = 100_000_000  # 300 MB in RGB
LARGE = 20_000_000  # pixels; threads decode such images one after the other
_one_large = threading.Lock()
_UNREADABLE = (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error, Image.DecompressionBombError)


def read_image(path, exif_transpose=False):
    """The image at `path` as RGB.

    More than 8 bits a channel are scaled to 8, what is transparent is laid on white.
    exif_transpose: turn it as its EXIF orientation says. CoOp doesn't, so published datasets stay as they are.
    Errors: MissingFile; UserError that names a file which is no plain file, too large, or does not decode.
    """
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise UserError(f'"{path}" is not a plain file; remove it or name an image')
        raise MissingFile(f'No image at "{path}"; docs/DATASETS.md says where each file belongs')
    try:
        image = Image.open(path)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        with _one_large if image.width * image.height > LARGE else nullcontext():
            image.load()
            return _rgb(ImageOps.exif_transpose(image) if exif_transpose else image)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(f'Cannot read the image "{path}" ({reason}); copy or download it again') from error


def _rgb(image):
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # convert would copy
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _eight_bits(gray):
    """16 bits, or floats from 0 to 1, (H, W) -> uint8; ValueError for numbers whose range nobody can know."""
    top = 1.0 if gray.dtype.kind == "f" else 65535.0
    if not (gray.min() >= 0 and gray.max() <= top):  # NaN fits no range either
        raise ValueError(f"values from {gray.min()} to {gray.max()}; save it with 8 or 16 bits a channel")
    return np.round(gray * (255.0 / top)).astype(np.uint8)
