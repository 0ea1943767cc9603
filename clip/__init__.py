"""CLIP in OpenAI's shape. Forks write `from clip import clip`, so the submodule keeps OpenAI's name."""

from .clip import available_models, load, tokenize

__all__ = ["available_models", "load", "tokenize"]
