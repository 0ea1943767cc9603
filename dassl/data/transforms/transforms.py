"""Image transforms from the INPUT options. Their order is fixed; TRANSFORMS only says which take part."""

import random

from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import crop, resize

from ...utils import UnknownName, UserError, nearest
from . import fast

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}
AVAI_CHOICES = [
    "random_resized_crop",
    "random_flip",
    "normalize",
    "random_translation",
    "center_crop",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    "randaugment",
]
ON_PIL_IMAGES = {"random_translation", "colorjitter", "randomgrayscale", "gaussian_blur"}  # cannot follow a fast step


class Random2DTranslation:
    """With probability p: enlarge by an eighth, then cut (height, width) out at random. Else only resize."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        self.height, self.width, self.p, self.interpolation = height, width, p, interpolation

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        large = resize(img, [height, width], self.interpolation)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return crop(large, top, left, self.height, self.width)


def build_transform(cfg, is_train=True, choices=None):
    """A torchvision Compose from PIL image to tensor (3, H, W); None with INPUT.NO_TRANSFORM.

    UnknownName (also a ValueError) lists what is available for a TRANSFORMS or INTERPOLATION that is not.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        _check("transform", choice, AVAI_CHOICES)
    _check("interpolation", cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    if len(cfg.INPUT.SIZE) != 2:
        raise UserError(f"INPUT.SIZE must be (height, width), not {cfg.INPUT.SIZE}")
    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT)
    steps.append(("to torch tensor of range [0, 1]", fast.ToTensor()))
    if "normalize" in choices:
        mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
        steps.append((f"normalization (mean={mean}, std={std})", T.Normalize(mean, std, inplace=True)))
    for text, _ in steps:
        print(f"+ {text}")
    return T.Compose([step for _, step in steps])


def _check(kind, name, known):
    if name not in known:
        raise UnknownName(
            f"Unknown {kind} {name!r} (do you mean {nearest(name, known)}?); there are {', '.join(known)}"
        )


def _train_steps(options, choices):
    """[(log line, transform)]. center_crop is only for testing, as in upstream 0.6."""
    height, width = options.SIZE
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    made = T if ON_PIL_IMAGES & set(choices) else fast
    steps = []
    if "random_resized_crop" not in choices:
        steps.append((f"resize to {height}x{width}", made.Resize(options.SIZE, interpolation)))
    if "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(height, width, interpolation=interpolation)))
    if "random_resized_crop" in choices:
        scale = tuple(options.RRCROP_SCALE)
        transform = made.RandomResizedCrop(options.SIZE, scale=scale, interpolation=interpolation)
        steps.append((f"random resized crop (size={tuple(options.SIZE)}, scale={scale})", transform))
    if "random_flip" in choices:
        steps.append(("random flip", T.RandomHorizontalFlip()))
    if "colorjitter" in choices:
        strengths = [options[f"COLORJITTER_{letter}"] for letter in "BCSH"]
        steps.append(("color jitter", T.ColorJitter(*strengths)))
    if "randomgrayscale" in choices:
        steps.append(("random gray scale", T.RandomGrayscale(options.RGS_P)))
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(options.GB_K)], options.GB_P)
        steps.append((f"gaussian blur (kernel={options.GB_K})", blur))
    if "randaugment" in choices:
        number, strength = options.RANDAUGMENT_N, options.RANDAUGMENT_M
        steps.append((f"randaugment (n={number}, m={strength})", T.RandAugment(number, strength)))
    return steps


def _test_steps(options):
    height, width = options.SIZE
    interpolation = INTERPOLATION_MODES[options.INTERPOLATION]
    if options.get("RESIZE") == "squash":  # the options of a fork have no RESIZE
        return [(f"resize to {height}x{width}", fast.Resize(options.SIZE, interpolation))]
    smaller = max(height, width)
    resize_step = fast.Resize(smaller, interpolation)
    return [
        (f"resize the smaller edge to {smaller}", resize_step),
        (f"{height}x{width} center crop", T.CenterCrop(options.SIZE)),
    ]
