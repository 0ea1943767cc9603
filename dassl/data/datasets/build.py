from ...utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """The dataset that `cfg.DATASET.NAME` names."""
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)
