"""Upstream's path of the registry of evaluators, to which some forks add their own."""

from .evaluator import EVALUATOR_REGISTRY, build_evaluator

__all__ = ["EVALUATOR_REGISTRY", "build_evaluator"]
