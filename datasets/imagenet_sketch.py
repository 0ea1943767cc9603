"""ImageNet-Sketch: black-and-white sketches of the 1000 ImageNet classes."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import IMAGENET_IDS, ImageNetVariant
from .published import Published


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    published = Published(
        classes=1000,
        images=dict(test=50889),
        ids=IMAGENET_IDS,
    )
