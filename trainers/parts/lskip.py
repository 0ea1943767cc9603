"""Layer-wise skipping (LSkip) of Skip Tuning, CVPR 2025, Eq. 5 and 6.

The first omega blocks of both towers E_V and E_T are frozen, so their outputs are constants:

    v^omega = E_V[1:omega](x),  t^omega = E_T[1:omega](c)          Eq. 5, the shallow half, run once
    f = E_V[omega+1:N](v^omega),  g = E_T[omega+1:N](t^omega)      Eq. 6, the deep half, trained

t^omega of the classes is computed once, v^omega of the images once per augmented view (cache.py). Training starts at
block omega + 1.

Notation: N images, C classes, L tokens, D width of a tower, E joint width.
"""

import torch
from torch import Tensor, nn

from .towers import ClassTexts, embed_images, embed_texts, pool_images, pool_texts, run_images, run_texts


@torch.no_grad()
def shallow_image(visual: nn.Module, image: Tensor, omega: int) -> Tensor:
    """v^omega, Eq. 5: image (N, 3, H, W) -> (N, L, D); only the class token, (N, 1, D), if omega is the full depth."""
    blocks = visual.transformer.resblocks
    nothing_deep = omega == len(blocks) > 0
    return run_images(blocks[:omega], embed_images(visual, image), pool=nothing_deep)


@torch.no_grad()
def shallow_text(clip_model: nn.Module, tokens: Tensor, omega: int) -> ClassTexts:
    """t^omega, Eq. 5: tokens (C, 77) -> ClassTexts; only the end-of-text tokens if omega is the full depth."""
    blocks = clip_model.transformer.resblocks
    nothing_deep = omega == len(blocks) > 0
    return run_texts(blocks[:omega], embed_texts(clip_model, tokens), pool=nothing_deep)


class DeepImage(nn.Module):
    """E_V[omega+1:N] with the final norm and projection, Eq. 6. Its keys keep the block numbers of the whole tower."""

    def __init__(self, visual: nn.Module, omega: int):
        super().__init__()
        self.resblocks = visual.transformer.resblocks[omega:]
        self.ln_post = visual.ln_post
        self.proj = visual.proj

    def forward(self, v: Tensor) -> Tensor:
        """v^omega (N, L, D) -> image features (N, E), not normalised."""
        if len(self.resblocks):
            v = run_images(self.resblocks, v, pool=True)
        return pool_images(self, v)


class DeepText(nn.Module):
    """E_T[omega+1:N] with the final norm and projection, Eq. 6."""

    def __init__(self, clip_model: nn.Module, omega: int):
        super().__init__()
        self.resblocks = clip_model.transformer.resblocks[omega:]
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, t: ClassTexts) -> Tensor:
        """t^omega -> class features (C, E), not normalised."""
        if len(self.resblocks):
            t = run_texts(self.resblocks, t, pool=True)
        return pool_texts(self, t)


def cut(clip_model: nn.Module, omega: int) -> nn.ModuleDict:
    """The deep halves of both towers, which share their weights with `clip_model`.

    Errors: ValueError if the towers don't have omega blocks.
    """
    depth = min(len(clip_model.transformer.resblocks), len(clip_model.visual.transformer.resblocks))
    if not 0 <= omega <= depth:
        raise ValueError(f"this backbone's towers can skip 0 to {depth}")
    return nn.ModuleDict(
        {"text_encoder": DeepText(clip_model, omega), "image_encoder": DeepImage(clip_model.visual, omega)}
    )
