"""CLIP run block by block: the one forward pass that all methods share.

Three savings change nothing but the cost: the tokens with which all texts begin ("a photo of a") run once, because the
text tower is causal; texts end at their end-of-text token, for the same reason; and a tower's last block computes keys
and values for all tokens but everything else only for the pooled token.

Notation: N images, C classes, L tokens, D width of a tower, E joint width. T rows are the tokens of all sequences, one
under the other. Only OpenAI's module names are used, so this file works on the `clip/` of any CoOp fork.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MICROBATCH = 8  # images at a time on a CPU, whose caches then hold the activations
QKV, Q, KV = slice(0, 3), slice(0, 1), slice(1, 3)  # parts of an attention layer's packed projection

# Adds to a block's packed projection: rows (T, D) and one of the slices above -> (T, n D) for its n parts.
Extra = Callable[[Tensor, slice], Tensor]


# ---- one block -----------------------------------------------------------------------------------------------


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """`layer`(x). A CPU normalises half precision in fp32 by itself, so it skips the casts of CLIP's LayerNorm.

    On a CPU forward hooks of the layer are not called.
    """
    if x.device.type != "cpu":
        return layer(x)
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Multi-head attention: q (N, Q, D), k and v (N, L, D) -> (N, Q, D).

    `hidden`, bool, broadcasts to (N, heads, Q, L): where a query must not look.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, heads, L, D / heads)
    if q.device.type != "cpu" or not (q.requires_grad or k.requires_grad or v.requires_grad):
        x = F.scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden)
    else:  # written out: on a CPU the backward pass of the fused kernel takes several times as long, its forward less
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        x = scores.softmax(dim=-1) @ v
    return x.transpose(1, 2).flatten(2)


def project(weight: Tensor, bias: Tensor, y: Tensor, parts: slice, extra: Extra | None) -> Tensor:
    """`parts` of the packed projection, which are `weight` (n D, D) and `bias` (n D,): rows y (T, D) -> (T, n D)."""
    projected = F.linear(y, weight, bias)
    return projected if extra is None else projected + extra(y, parts)


def run_block(block: nn.Module, x: Tensor, attend: Callable, extra: Extra | None = None) -> Tensor:
    """One residual attention block: rows x (T, D) -> (T, D). `attend(q, k, v, heads)` knows how rows form sequences."""
    attn = block.attn
    q, k, v = project(attn.in_proj_weight, attn.in_proj_bias, norm(block.ln_1, x), QKV, extra).chunk(3, dim=-1)
    x = x + attn.out_proj(attend(q, k, v, attn.num_heads))
    return x + block.mlp(norm(block.ln_2, x))


def run_last_block(block: nn.Module, x: Tensor, pooled: Tensor, attend: Callable, extra: Extra | None = None) -> Tensor:
    """The block's output for the rows `pooled` (N,) alone: rows x (T, D) -> (N, D)."""
    attn = block.attn
    y = norm(block.ln_1, x)
    # One split: the gradients of slices would each be a whole weight of zeros first, and then be added.
    sizes = (y.shape[-1], 2 * y.shape[-1])
    (q_weight, kv_weight), (q_bias, kv_bias) = attn.in_proj_weight.split(sizes), attn.in_proj_bias.split(sizes)
    q = project(q_weight, q_bias, y[pooled], Q, extra)
    k, v = project(kv_weight, kv_bias, y, KV, extra).chunk(2, dim=-1)
    x = x[pooled] + attn.out_proj(attend(q, k, v, attn.num_heads))
    return x + block.mlp(norm(block.ln_2, x))


def with_extras(blocks: Sequence[nn.Module], extras: Sequence[Extra] | None) -> list[tuple]:
    """[(block, its extra or None)]."""
    return list(zip(blocks, extras or [None] * len(blocks), strict=True))


# ---- images --------------------------------------------------------------------------------------------------


def embed_images(visual: nn.Module, image: Tensor) -> Tensor:
    """image (N, 3, H, W) -> tokens in front of block 0, (N, L, D): class token, patches, positions, first norm."""
    patches = visual.conv1(image.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (N, L - 1, D)
    first = visual.class_embedding.to(patches).expand(len(patches), 1, -1)
    return norm(visual.ln_pre, torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches))


def run_images(blocks: Sequence[nn.Module], x: Tensor, pool: int, extras: Sequence[Extra] | None = None) -> Tensor:
    """x (N, L, D) through `blocks` -> (N, L, D), or with `pool` only its first tokens, (N, pool, D): True, which is 1,
    for the class token alone."""
    number, length = x.shape[:2]

    def attend(q, k, v, heads):
        q, k, v = (part.unflatten(0, (number, -1)) for part in (q, k, v))
        return attention(q, k, v, heads).flatten(0, 1)

    first = torch.arange(number, device=x.device)[:, None] * length + torch.arange(int(pool), device=x.device)
    x = x.flatten(0, 1)  # (T, D)
    pairs = with_extras(blocks, extras)
    for block, extra in pairs[:-1] if pool else pairs:
        x = run_block(block, x, attend, extra)
    if pool:
        block, extra = pairs[-1]
        x = run_last_block(block, x, first.flatten(), attend, extra)
    return x.unflatten(0, (number, -1))


def pool_images(visual: nn.Module, x: Tensor) -> Tensor:
    """x (N, L, D) behind the last block -> image features (N, E), not normalised."""
    return visual.ln_post(x[:, 0]) @ visual.proj


def in_microbatches(function: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """function(image) (N, ...), on a CPU MICROBATCH images at a time; for passes that keep no graph."""
    if image.device.type != "cpu":
        return function(image)
    return torch.cat([function(part) for part in image.split(MICROBATCH)])


# ---- texts ---------------------------------------------------------------------------------------------------


class ClassTexts(NamedTuple):
    """The class texts in front of some block, each of their tokens once.

        prefix (P, D)        own (C, S, D)
    a photo of a        |   cat . <end>
                        |   guinea pig . <end>
                        |   ox . <end>
    """

    prefix: Tensor  # (P, D), the beginning that all texts share
    own: Tensor  # (C, S, D), what follows it, up to the longest text's end
    end: Tensor  # (C,), the end-of-text token's position in `own`

    def select(self, kept: Tensor) -> "ClassTexts":
        """The texts of the classes `kept` (K,)."""
        return self._replace(own=self.own[kept], end=self.end[kept])


@torch.no_grad()
def embed_texts(clip_model: nn.Module, tokens: Tensor) -> ClassTexts:
    """tokens (C, 77) -> ClassTexts in front of block 0, on the model's device, with positions; no graph.

    Tokens that are still on the CPU spare it the wait for the two lengths that it has to know.
    """
    end = tokens.argmax(dim=-1)  # (C,), end-of-text has the largest id
    same = (tokens == tokens[0]).all(dim=0).long().cumprod(dim=0).sum()
    shared = int(torch.minimum(same, end.min()))  # every text keeps at least its end-of-text token
    device = clip_model.positional_embedding.device
    needed = tokens[:, : int(end.max()) + 1].long().to(device)  # (C, L)
    x = clip_model.token_embedding(needed).to(clip_model.dtype)  # (C, L, D)
    x = x + clip_model.positional_embedding[: x.shape[1]].to(x)
    return ClassTexts(x[0, :shared], x[:, shared:], (end - shared).to(device))


def run_texts(
    blocks: Sequence[nn.Module], texts: ClassTexts, pool: bool, extras: Sequence[Extra] | None = None
) -> ClassTexts:
    """`texts` through `blocks` -> ClassTexts, of which with `pool` only the end-of-text tokens are left, (C, 1, D)."""
    prefix, own, end = texts
    shared, (number, length) = len(prefix), own.shape[:2]
    position = torch.arange(shared + length, device=own.device)
    causal = position > position[:, None]  # (P + S, P + S), True where a token must not look

    def whole(x):
        """Rows (P + C S, D) -> every text with the shared beginning, (C, P + S, D)."""
        return torch.cat([x[:shared].expand(number, -1, -1), x[shared:].view(own.shape)], dim=1)

    def attend(q, k, v, heads):
        """q (P + C S, D): the prefix looks at itself once, each text's own tokens at the prefix and at themselves."""
        k, v = whole(k), whole(v)
        first = attention(q[None, :shared], k[:1, :shared], v[:1, :shared], heads, causal[:shared, :shared])[0]
        rest = attention(q[shared:].view(own.shape), k, v, heads, causal[shared:])
        return torch.cat([first, rest.flatten(0, 1)])

    def attend_pooled(q, k, v, heads):
        """q (C, D): each end-of-text token looks at its own text up to itself."""
        hidden = (position > end[:, None] + shared)[:, None, None]  # (C, 1, 1, P + S)
        return attention(q[:, None], whole(k), whole(v), heads, hidden)[:, 0]

    x = torch.cat([prefix, own.flatten(0, 1)])  # (T, D), T = P + C S
    pairs = with_extras(blocks, extras)
    for block, extra in pairs[:-1] if pool else pairs:
        x = run_block(block, x, attend, extra)
    if pool:
        block, extra = pairs[-1]
        ends = shared + torch.arange(number, device=x.device) * length + end
        x = run_last_block(block, x, ends, attend_pooled, extra)
        return ClassTexts(x[:0], x[:, None], torch.zeros_like(end))
    return ClassTexts(x[:shared], x[shared:].view(own.shape), end)


def pool_texts(clip_model: nn.Module, texts: ClassTexts) -> Tensor:
    """`texts` behind the last block -> class features (C, E), not normalised."""
    pooled = texts.own[torch.arange(len(texts.end), device=texts.end.device), texts.end]
    return clip_model.ln_final(pooled) @ clip_model.text_projection
