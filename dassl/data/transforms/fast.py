"""The steps that every CoOp configuration takes, as torchvision's but faster.

PyTorch's vector code resizes instead of Pillow's plain loops: the same antialiasing filters, width before height, with
weights of 16 bits where Pillow has 22, so some pixel values are an 8-bit step off and a few in a million are two. From
there on an image is a uint8 tensor (3, H, W), which is cheaper to cut, flip and scale than a PIL image. Parameters and
random stream are torchvision's. (Pillow 13 takes height first where that is less work, and so clips other values.)

JPEGs are decoded in full: half the size from the decoder (Image.draft) is off by many steps at sharp edges; see
`python -m benchmarks.data`.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

ANTIALIASED = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)


def begins(transform):
    """Whether `transform` begins with a step of this module, which takes pixels as well as PIL images."""
    steps = transform.transforms if isinstance(transform, T.Compose) else []
    return isinstance(next(iter(steps), None), Resize | RandomResizedCrop)


def resize(image, size, interpolation):
    """PIL image in RGB, or its pixels as uint8 tensor (3, H, W), channels last in memory -> uint8 tensor (3, *size).

    For other modes, filters and CPUs torchvision's PIL image.
    """
    pixels = image if isinstance(image, torch.Tensor) else None
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if interpolation not in ANTIALIASED or not vectorised or (pixels is None and image.mode != "RGB"):
        if pixels is not None:
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return F.resize(image, size, interpolation)
    if pixels is None:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    return interpolate(pixels[None], tuple(size), mode=interpolation.value, antialias=True)[0]


class Resize(T.Resize):
    """torchvision's: a size of one number is that of the smaller edge."""

    def forward(self, image):
        return resize(image, self._size_of(image), self.interpolation)

    def _size_of(self, image):
        if not isinstance(self.size, int):
            return self.size
        width, height = F.get_image_size(image)
        long = int(self.size * max(width, height) / min(width, height))
        return (self.size, long) if width > height else (long, self.size)


class RandomResizedCrop(T.RandomResizedCrop):
    """torchvision's: its random crop, resized."""

    def forward(self, image):
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        return resize(F.crop(image, top, left, height, width), self.size, self.interpolation)


class ToTensor(T.ToTensor):
    """torchvision's, also of the uint8 tensors above."""

    def __call__(self, image):
        if isinstance(image, Image.Image):
            return super().__call__(image)
        return image.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
