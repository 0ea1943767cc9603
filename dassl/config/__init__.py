from .config import Config, ConfigError, config_diff, flatten, resolve
from .defaults import _C
from .ranges import check_ranges

__all__ = ["Config", "ConfigError", "check_ranges", "clean_cfg", "config_diff", "flatten", "get_cfg_default", "resolve"]


def get_cfg_default():
    """A copy of the default options, open for changes."""
    return _C.clone()


def clean_cfg(cfg, trainer):
    """Drop the TRAINER nodes of other methods: keep NAME and the one called like `trainer` in upper case."""
    for name in list(cfg.TRAINER):
        if name not in ("NAME", trainer.upper()):
            del cfg.TRAINER[name]
