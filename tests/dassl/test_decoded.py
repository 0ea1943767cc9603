"""Images are decoded once: the same tensors to the last bit, for all workers, and nothing is left behind."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dassl.data import DataManager, data_manager, decoded
from dassl.data.decoded import DecodedImages, decoded_images
from dassl.data.transforms import fast
from dassl.utils import set_random_seed


def epochs(cfg, number=3):
    """Images and indices of a few epochs, by the image."""
    set_random_seed(3)
    loader = DataManager(cfg).train_loader_x
    for _ in range(number):
        set_random_seed(4)  # the same order and augmentations in each
        batches = list(loader)
        yield torch.cat([batch["index"] for batch in batches]), torch.cat([batch["img"] for batch in batches])


@pytest.fixture
def reads(monkeypatch):
    """The paths that this process decodes."""
    seen = []
    read = data_manager.read_image
    monkeypatch.setattr(data_manager, "read_image", lambda path, *rest: seen.append(path) or read(path, *rest))
    return seen


@pytest.mark.parametrize(
    "transforms",
    [
        ["random_resized_crop", "random_flip", "normalize"],
        ["normalize"],
        ["random_resized_crop", "colorjitter"],  # on PIL images
        ["random_resized_crop", "randaugment", "normalize"],
    ],
)
def test_later_epochs_have_the_bits_of_the_first_and_read_nothing(cfg, reads, transforms):
    cfg.INPUT.TRANSFORMS = transforms
    (first, *later), plain = epochs(cfg), []
    images = len(reads)
    assert images == len(set(reads)) > 0
    cfg.DATALOADER.DECODED_MB = 0
    plain = list(epochs(cfg))
    for found, expected in zip([first, *later], plain, strict=True):
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert len(reads) == images + 3 * images


def test_an_interpolation_without_vector_code_gets_pil_images(cfg, reads):
    cfg.INPUT.INTERPOLATION = "nearest"
    first, second = epochs(cfg, 2)
    assert torch.equal(first[1], second[1]) and len(reads) == len(set(reads))


def test_the_plain_image_and_several_views_come_from_the_same_pixels(cfg):
    cfg.merge_from_list(["DATALOADER.K_TRANSFORMS", 2, "DATALOADER.RETURN_IMG0", True])
    dataset = DataManager(cfg).train_loader_x.dataset
    items = []
    for _ in range(2):
        set_random_seed(1)
        items.append(dataset[0])
    first, second = items
    assert torch.equal(first["img0"], second["img0"])
    assert all(torch.equal(a, b) for a, b in zip(first["img"], second["img"], strict=True))


def test_without_a_transform_it_is_a_pil_image_again(cfg):
    cfg.INPUT.NO_TRANSFORM = True
    dataset = DataManager(cfg).train_loader_x.dataset
    first, second = dataset[0]["img"], dataset[0]["img"]
    assert isinstance(second, Image.Image) and np.array_equal(np.array(first), np.array(second))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_what_a_worker_decoded_is_there_for_all(cfg, start, monkeypatch):
    """Files that are gone after the first epoch are not missed."""
    monkeypatch.setattr(decoded.multiprocessing, "Lock", multiprocessing.get_context(start).Lock)
    cfg.INPUT.TRANSFORMS = ["normalize"]  # nothing random
    dataset = DataManager(cfg).train_loader_x.dataset
    epochs = []
    for options in ({"num_workers": 2}, {"num_workers": 1, "multiprocessing_context": start}, {}):
        epochs.append(torch.cat([batch["img"] for batch in DataLoader(dataset, batch_size=4, **options)]))
        for item in dataset.data_source:
            Path(item.impath).unlink(missing_ok=True)
    assert all(torch.equal(epoch, epochs[0]) for epoch in epochs)


def test_images_that_do_not_fit_are_read_again(cfg, reads):
    size = 3 * 20 * 20
    cfg.DATALOADER.DECODED_MB = 2.5 * size / 1e6
    first, second = epochs(cfg, 2)
    images = len(set(reads))
    assert torch.equal(first[1], second[1]) and len(reads) == images + images - 2


def test_room_is_bounded_by_half_of_the_free_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(decoded, "LIMITS", (tmp_path / "memory.max",))
    assert decoded_images(5, 0.001).room == 1000
    for free, room in ((3, 1536), (1000, 5000)):
        (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {free} kB\n")
        assert decoded_images(5, 0.005).room == room
    assert decoded_images(5, 0) is None and decoded_images(0, 1) is None
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\n")  # as old kernels have it
    assert decoded_images(5, 0.005).room == 5000
    for limit, room in (("max", 5000), ("4000", 1000)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert decoded_images(5, 0.005).room == room


def test_an_image_without_room_is_not_even_copied():
    class Image:
        size = (100, 100)

        def __array__(self, *args, **kwargs):
            raise AssertionError("copied")

    kept = DecodedImages(2, 1000)
    kept.put(0, Image())
    assert kept.get(0) is None and kept.used == 0


def test_nothing_is_held_of_what_nobody_uses():
    held = len(os.listdir("/proc/self/fd"))
    kept = DecodedImages(2, 10**12)  # more than there is, of which nothing is used
    assert len(os.listdir("/proc/self/fd")) > held
    del kept
    assert len(os.listdir("/proc/self/fd")) == held


def test_pixels_are_those_that_were_put_and_the_first_stay():
    kept = DecodedImages(2, 1000)
    image = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3))
    assert kept.get(1) is None
    kept.put(1, image)
    kept.put(1, image.transpose(Image.Transpose.ROTATE_180))
    assert torch.equal(kept.get(1), torch.from_numpy(np.array(image)).permute(2, 0, 1)) and kept.used == 105


def test_crops_of_pixels_are_those_of_pil_images():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for step in (fast.RandomResizedCrop((32, 32)), fast.Resize(32), fast.Resize((20, 40)), fast.Resize((50, 70))):
        torch.manual_seed(2)
        expected = step(image)
        torch.manual_seed(2)
        assert torch.equal(step(pixels), expected)
