from ..utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg, name=None, data=None):
    """The trainer called `name`, by default `cfg.TRAINER.NAME`; UnknownName if it is not registered.

    data: what the trainer uses instead of opening the dataset, such as `dassl.data.ClassNames(names)`.
    """
    name = name or cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name)
    if cfg.VERBOSE:
        print(f"Loading trainer: {name}")
    return trainer(cfg) if data is None else trainer(cfg, data=data)  # a fork's __init__ may take cfg only
