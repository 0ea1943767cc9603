"""ImageNetV2, matched frequency: a second test set of the 1000 ImageNet classes, 10 images each."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant
from .published import Published


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    published = Published(classes=1000, images=dict(test=10000), per_class=10)

    @classmethod
    def classes(cls, folders, root):
        """A folder is named by its ImageNet label, or in one re-release by its WordNet id."""
        classes = {}
        for label, (wnid, name) in enumerate(cls.names(root).items()):
            classes[wnid] = classes[str(label)] = (label, name)
        return classes
