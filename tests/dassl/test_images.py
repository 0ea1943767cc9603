"""Images of every kind as RGB, and what cannot be one."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dassl.data import DataManager
from dassl.utils import MissingFile, UserError, images, read_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every gray there is


def saved(image, path):
    image.save(path)
    return np.asarray(read_image(path))


def test_a_broken_image_is_named(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff not a picture")
    with pytest.raises(UserError, match="broken.jpg"):
        read_image(path)
    with pytest.raises(MissingFile, match="nowhere.jpg.*DATASETS.md"):
        read_image(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    pixels = saved(Image.fromarray(RAMP.astype(np.uint16) * 257), tmp_path / name)
    assert np.array_equal(pixels, np.stack([RAMP] * 3, axis=-1))


def test_the_byte_order_of_sixteen_bits_does_not_matter(tmp_path):
    image = Image.frombytes("I;16B", (16, 16), (RAMP.astype(">u2") * 257).tobytes())
    assert np.array_equal(saved(image, tmp_path / "a.tif")[..., 0], RAMP)


def test_floats_are_shares_and_other_ranges_are_refused(tmp_path):
    share = Image.fromarray((RAMP / 255).astype(np.float32))
    assert np.array_equal(saved(share, tmp_path / "a.tif")[..., 0], RAMP)
    for number, dtype in ((70000, np.int32), (-1, np.int32), (1.5, np.float32), (np.nan, np.float32)):
        strange = np.zeros((4, 4), dtype)
        strange[0, 0] = number
        Image.fromarray(strange).save(tmp_path / "b.tif")
        with pytest.raises(UserError, match="b.tif.*8 or 16 bits"):
            read_image(tmp_path / "b.tif")


def test_what_is_transparent_lies_on_white(tmp_path):
    alpha = Image.fromarray(np.stack([np.zeros_like(RAMP), RAMP], axis=-1), "LA")  # black, ever less transparent
    expected = np.stack([255 - RAMP] * 3, axis=-1)
    for mode in ("LA", "RGBA"):
        pixels = saved(alpha.convert(mode), tmp_path / "a.png")
        assert np.abs(pixels.astype(int) - expected).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.save(tmp_path / "p.png", transparency=0)
    assert (np.asarray(read_image(tmp_path / "p.png")) == 255).all()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "c.png", transparency=(1, 2, 3))
    assert (np.asarray(read_image(tmp_path / "c.png")) == 255).all()


def test_full_opacity_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    opaque = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(saved(opaque, tmp_path / "a.png"), pixels)


def test_exif_orientation_is_followed_where_it_is_asked_for(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the right
    Image.fromarray(RAMP[:4]).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").size == (16, 4)
    turned = read_image(tmp_path / "a.png", exif_transpose=True)
    assert turned.size == (4, 16) and np.array_equal(np.asarray(turned)[..., 0], np.rot90(RAMP[:4], -1))
    dataset = DataManager(cfg).train_loader_x.dataset
    Image.fromarray(RAMP[:4]).save(dataset.data_source[0].impath, exif=exif)
    dataset.transform = None
    assert dataset[0]["img"].size == (16, 4)
    cfg.INPUT.EXIF_TRANSPOSE = True
    dataset = DataManager(cfg).train_loader_x.dataset
    dataset.transform = None
    assert dataset[0]["img"].size == (4, 16)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 255)
    with pytest.raises(UserError, match="a.png.*16 x 16 pixels, more than 255"):
        read_image(tmp_path / "a.png")


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(UserError, match="not a plain file"):
            read_image(path)


def test_large_images_are_decoded_one_after_the_other(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    at_work, most = [], []

    def load(image):
        at_work.append(image)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr(images, "_rgb", lambda image: image)
    for large, together in ((255, 1), (256, 4)):
        monkeypatch.setattr(images, "LARGE", large)
        most.clear()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read_image, [tmp_path / "a.png"] * 8))
        assert (max(most) == 1) == (together == 1)
