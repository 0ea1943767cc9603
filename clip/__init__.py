"""CLIP in OpenAI's shape. Forks write `from clip import clip`, so the submodule keeps OpenAI's name."""

from .clip import available_models, facts, load, save, tokenize
from .origins import Facts, given_facts

__all__ = ["Facts", "available_models", "facts", "given_facts", "load", "save", "tokenize"]
