from ..utils import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg, name=None):
    """The trainer called `name`, by default `cfg.TRAINER.NAME`; UnknownName if it is not registered."""
    name = name or cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name)
    if cfg.VERBOSE:
        print(f"Loading trainer: {name}")
    return trainer(cfg)
