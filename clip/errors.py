"""What clip/ raises for weights that can't be had, read or trusted."""

from dassl.utils import UserError


class WeightsError(UserError, OSError, RuntimeError):
    """One line about a model that can't be loaded; a RuntimeError as OpenAI's, and an OSError."""


class UnknownModel(WeightsError, KeyError):
    """A name that is in no table of models; a KeyError too, as `_MODELS[name]` raises elsewhere."""
