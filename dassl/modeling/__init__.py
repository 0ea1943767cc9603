"""Upstream's networks are not included: the names import, calling one says where backbones come from."""

from torch import nn

from ..utils import Registry, UserError

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "HEAD_REGISTRY",
    "NETWORK_REGISTRY",
    "build_backbone",
    "build_head",
    "build_network",
]

BACKBONE_REGISTRY = Registry("BACKBONE")
HEAD_REGISTRY = Registry("HEAD")
NETWORK_REGISTRY = Registry("NETWORK")


class Backbone(nn.Module):
    """Base class of backbones; `out_features` is the width of what forward() returns."""

    @property
    def out_features(self):
        return self._out_features


def build_backbone(name, **kwargs):
    raise UserError(f'Dassl\'s backbone "{name}" is not included; load CLIP with clip.load() in build_model()')


def build_head(name, **kwargs):
    raise UserError(f"Dassl's head \"{name}\" is not included; write the layers in your trainer's build_model()")


def build_network(name, **kwargs):
    raise UserError(f"Dassl's network \"{name}\" is not included; write the layers in your trainer's build_model()")
