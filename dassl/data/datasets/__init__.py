from .base_dataset import DatasetBase, Datum, tests_on_validation
from .build import DATASET_REGISTRY, build_dataset

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset", "tests_on_validation"]
