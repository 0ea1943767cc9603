"""The fast steps against torchvision's own on PIL images, for every kind of picture a folder may hold."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dassl.config import get_cfg_default
from dassl.data.transforms import INTERPOLATION_MODES, build_transform, fast
from dassl.utils import read_image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # the default options'
SIZES = [(64, 64), (61, 40), (40, 61), (400, 300), (7, 300), (300, 7), (1, 50), (50, 1), (1, 1), (32, 32), (31, 33)]


def noise(size, low=0, high=256):
    """An RGB picture of (width, height) random pixels, which shows every difference between two filters."""
    return Image.fromarray(np.random.randint(low, high, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def vectorised(monkeypatch):
    """PyTorch's code is compared, also where no vector instructions would make it the faster one."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.fixture
def options():
    """The default options for 32 px pictures with CoOp's augmentation."""
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.SIZE", (32, 32), "INPUT.INTERPOLATION", "bicubic"])
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    return cfg


def plain(train, interpolation=InterpolationMode.BICUBIC, extra=()):
    """CoOp's transform, by torchvision alone."""
    steps = [T.Resize(32, interpolation), T.CenterCrop(32)]
    if train:
        steps = [T.RandomResizedCrop(32, interpolation=interpolation), T.RandomHorizontalFlip(), *extra]
    return T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)])


def steps_apart(one, other):
    """The largest distance of two normalised images, in steps of an 8-bit pixel."""
    assert one.shape == other.shape and one.dtype == other.dtype == torch.float32 and one.is_contiguous()
    return ((one - other).abs() * 255 * torch.tensor(STD).view(3, 1, 1)).max().item()


@pytest.mark.parametrize("interpolation", fast.ANTIALIASED)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_pillows_width_first_up_to_two_steps(size, interpolation):
    image = noise(size)
    for height, width in ((32, 32), (50, 20), (20, 50), (1, 3)):
        wide = F.resize(image, [image.height, width], interpolation)
        reference = np.asarray(F.resize(wide, [height, width], interpolation)).astype(int)
        apart = np.abs(fast.resize(image, (height, width), interpolation).permute(1, 2, 0).numpy() - reference)
        assert apart.max() <= 2 and apart.mean() < 0.05


@pytest.mark.parametrize("size", SIZES)
def test_the_smaller_edge_becomes_what_torchvision_makes_of_it(size):
    for edge in (1, 17, 32, (8, 9)):
        expected = T.Resize(edge)(noise(size))
        assert fast.Resize(edge)(noise(size)).shape == (3, expected.height, expected.width)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_transforms_are_torchvisions_up_to_two_steps_with_the_same_random_stream(options, size, train):
    image = noise(size, 96, 160)  # nothing overshoots: newer Pillows may take height first and clip otherwise
    for seed in range(8):
        made, left = [], []
        for transform in (build_transform(options, is_train=train), plain(train)):
            torch.manual_seed(seed)
            made.append(transform(image))
            left.append(torch.get_rng_state())
        assert steps_apart(*made) < 2.01
        assert torch.equal(*left)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", ["L", "LA", "1", "P", "RGBA", "CMYK", "I;16", "rotated", "transparent"])
def test_files_of_every_mode_come_out_as_from_pillow(options, tmp_path, kind, train):
    image, path, extra = noise((60, 45), 96, 160), tmp_path / "image.png", {}
    if kind == "I;16":
        image = Image.fromarray(np.random.randint(0, 2**16, (45, 60), dtype=np.uint16))
    elif kind == "transparent":
        image, extra = image.convert("P"), {"transparency": 3}
    elif kind == "rotated":
        path, extra = tmp_path / "image.jpg", {"exif": Image.Exif()}
        extra["exif"][0x0112] = 6  # the orientation, which upstream ignores
    else:
        image = image.convert(kind)
        path = tmp_path / ("image.jpg" if kind == "CMYK" else "image.png")
    image.save(path, **extra)

    expected = Image.open(path).convert("RGB")
    if kind == "I;16":  # Pillow clips to white what is above 255
        eight = np.round(np.asarray(image) / 257).astype(np.uint8)
        expected = Image.fromarray(eight).convert("RGB")
    assert np.array_equal(read_image(path), expected) and read_image(path).size == (60, 45)
    made = []
    for transform in (build_transform(options, is_train=train), plain(train)):
        torch.manual_seed(3)
        made.append(transform(read_image(path)))
    assert steps_apart(*made) < (30 if kind in ("1", "I;16") else 2.01)  # pure black and white: see above


def test_lists_with_other_steps_are_torchvisions_bit_for_bit(options):
    image = noise((60, 45))
    options.INPUT.TRANSFORMS += ("colorjitter", "gaussian_blur")
    extra = [T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.RandomApply([T.GaussianBlur(21)], 0.5)]
    made = []
    for transform in (build_transform(options), plain(True, extra=extra)):
        torch.manual_seed(0)
        made.append(torch.stack([transform(image) for _ in range(6)]))
    assert torch.equal(*made)


def test_random_translation_is_torchvisions_bit_for_bit(options):
    image = noise((60, 45))
    options.INPUT.TRANSFORMS = ("random_translation",)
    random.seed(4)
    made = build_transform(options)(image)
    random.seed(4)
    assert random.uniform(0, 1) <= 0.5  # it takes place
    bicubic = InterpolationMode.BICUBIC
    large = F.resize(F.resize(image, [32, 32], bicubic), [36, 36], bicubic)
    left, top = round(random.uniform(0, 4)), round(random.uniform(0, 4))
    assert torch.equal(made, F.to_tensor(F.crop(large, top, left, 32, 32)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("interpolation, cpu", [("nearest", "AVX2"), ("bicubic", "DEFAULT"), ("bilinear", "NEON")])
def test_without_vector_code_for_it_torchvision_resizes(options, monkeypatch, train, interpolation, cpu):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    options.INPUT.INTERPOLATION = interpolation
    image, made = noise((60, 45)), []
    for transform in (build_transform(options, is_train=train), plain(train, INTERPOLATION_MODES[interpolation])):
        torch.manual_seed(1)
        made.append(transform(image))
    assert torch.equal(*made)


def test_an_image_that_is_not_rgb_stays_torchvisions(options):
    grey = noise((60, 45)).convert("L")
    options.INPUT.TRANSFORMS = ()
    expected = T.Compose([T.Resize(32, InterpolationMode.BICUBIC), T.CenterCrop(32), T.ToTensor()])(grey)
    assert torch.equal(build_transform(options, is_train=False)(grey), expected)


def test_a_picture_of_the_right_size_is_not_touched(options):
    image = noise((32, 32))
    made = build_transform(options, is_train=False)(image)
    assert torch.equal(made, T.Normalize(MEAN, STD)(F.to_tensor(image))) and made.is_contiguous()


def test_a_model_that_wants_squashed_images_gets_the_whole_of_them(options):
    options.INPUT.RESIZE = "squash"
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (0, 0, 15, 30))  # a centre crop would lose it
    height, width = options.INPUT.SIZE
    found = build_transform(options, is_train=False)(image)
    assert found.shape == (3, height, width) and found[2, :, 0].min() > found[2, :, -1].max()
