"""ImageNetV2, matched frequency: a second test set of the 1000 ImageNet classes, 10 images each."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def classes(self, folders):
        """A folder is named by its ImageNet label, or in one re-release by its WordNet id."""
        ranked = [(wnid, (label, name)) for label, (wnid, name) in enumerate(self.read_classnames().items())]
        return dict(ranked) | {str(entry[0]): entry for _, entry in ranked}
