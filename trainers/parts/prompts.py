"""Learned vectors among the tokens of either tower.

They come as {block: vectors}: just before that block (from 0) they take the place of some tokens. That is CoOp's
context (block 0 only), the deep prompts of MaPLe and PromptSRC (the first J blocks) and TCP's class-aware ones. Nothing
that holds no learned vector keeps a graph.

Notation: B images, C classes, L tokens, n learned vectors, D width of a tower, E joint width.
"""

import torch
from torch import Tensor, nn

from clip import clip
from dassl.utils import UserError

from .compat import tokenize
from .towers import (
    ClassTexts,
    embed_images,
    embed_texts,
    pool_images,
    pool_texts,
    run_images,
    run_texts,
)


def embed(clip_model: nn.Module, texts: list[str]) -> ClassTexts:
    """C texts -> ClassTexts in front of block 0; no graph. Errors: UserError for one of more than 77 tokens."""
    return embed_texts(clip_model, tokenize(texts))


# ---- learned vectors in the towers ---------------------------------------------------------------------------


def insert(texts: ClassTexts, vectors: Tensor, positions: Tensor) -> ClassTexts:
    """`texts` with `vectors` (n, D), or (C, n, D), in place of the tokens at `positions` (n,), or (C, n).

    One set of vectors at the same positions of all texts must lie in the beginning that they share.
    """
    prefix, own, end = texts
    vectors = vectors.to(own)
    if vectors.dim() == 2 and positions.dim() == 1:
        return texts._replace(prefix=prefix.index_copy(0, positions, vectors))
    num_classes, width = len(own), own.shape[-1]
    own = torch.cat([prefix[1:].expand(num_classes, -1, -1), own], dim=1)  # now only the start token is shared
    rows = (positions - 1).expand(num_classes, -1)[..., None].expand(-1, -1, width)  # (C, n, D)
    own = own.scatter(1, rows, vectors.expand(rows.shape))
    return ClassTexts(prefix[:1], own, end + len(prefix) - 1)


def encode_text(
    clip_model: nn.Module, texts: ClassTexts, prompts: dict[int, Tensor], positions: Tensor | None = None
) -> Tensor:
    """ClassTexts in front of block 0 -> (C, E), not normalised, with `prompts` {block: vectors} at `positions`."""
    blocks = clip_model.transformer.resblocks
    for i, block in enumerate(blocks):
        if i in prompts:
            vectors = prompts[i]
            if i == 0:
                vectors = vectors + clip_model.positional_embedding[positions]
            texts = insert(texts, vectors, positions)
        texts = run_texts([block], texts, pool=i + 1 == len(blocks))
    return pool_texts(clip_model, texts)


def encode_image(visual: nn.Module, image: Tensor, prompts: dict[int, Tensor]) -> Tensor:
    """image (B, 3, H, W) -> (B, E), not normalised; `prompts` {block: vectors (n, D)}.

    Those of block 0 are appended to the patches, without positions and in front of ln_pre; later ones replace them.
    """
    with torch.no_grad():
        x = embed_images(visual, image)  # (B, L, D)
    blocks = visual.transformer.resblocks
    for i, block in enumerate(blocks):
        if i in prompts:
            vectors = visual.ln_pre(prompts[i]) if i == 0 else prompts[i]
            kept = x if i == 0 else x[:, : -len(vectors)]
            x = torch.cat([kept, vectors.to(x).expand(len(x), -1, -1)], dim=1)
        x = run_images([block], x, pool=i + 1 == len(blocks))
    return pool_images(visual, x)


# ---- context vectors -----------------------------------------------------------------------------------------


def word_vectors(clip_model: nn.Module, words: str) -> Tensor:
    """Token embeddings of `words`: (n, D), fp32."""
    tokens = tokenize(words)[0]
    tokens = tokens[1 : tokens.argmax()].to(clip_model.positional_embedding.device)
    return clip_model.token_embedding(tokens).detach().float()


def random_vectors(*shape: int) -> Tensor:
    """Learned vectors as all methods begin them: N(0, 0.02^2), drawn on the CPU."""
    return 0.02 * torch.randn(shape)


class Context(nn.Module):
    """Learned vectors among the words of every class's prompt (CoOp, IJCV 2022, Sec. 3.2).

    `ctx`, the only thing learned and saved, is (n, D), or (C, n, D) with vectors for each class. The prompts are
    "<ctx> name." for position "end", "name <ctx>." for "front", and "<ctx> name <ctx>." for "middle".
    """

    def __init__(self, clip_model: nn.Module, names: list[str], vectors: Tensor, position: str = "end"):
        super().__init__()
        self.ctx = nn.Parameter(vectors.clone())
        n = vectors.shape[-2]
        before = {"end": n, "middle": n // 2, "front": 0}[position]
        words = ["X"] * n
        texts = [" ".join([*words[:before], name, *words[before:]]) + "." for name in names]
        device = clip_model.positional_embedding.device
        self.texts = embed(clip_model, texts)
        self.positions = torch.arange(1, n + 1, device=device)  # (n,)
        if before < n:
            length = clip.tokenize(names).argmax(dim=-1).to(device) - 1  # (C,), tokens of each name
            self.positions = self.positions + length[:, None] * (self.positions > before)  # (C, n)

    def prompts(self, vectors=None):
        """What encode_text takes, with the context itself or other `vectors` in its place."""
        return self.texts, {0: self.ctx if vectors is None else vectors}, self.positions


def opening(clip_model: nn.Module, names: list[str], words: str, n: int) -> Context:
    """A Context of n vectors that start as the first n of `words`; the other words stay, in front of each name."""
    words = words.split()
    if len(words) < n:  # as in the released code
        return Context(clip_model, names, random_vectors(n, clip_model.transformer.width))
    kept = [" ".join([*words[n:], name]) for name in names]
    return Context(clip_model, kept, word_vectors(clip_model, " ".join(words[:n])))


class DeepContext(nn.Module):
    """Learned vectors in front of each of the first `depth` text blocks; UserError if there are not that many."""

    def __init__(self, clip_model: nn.Module, names: list[str], words: str, n: int, depth: int):
        super().__init__()
        check_depth(clip_model.transformer, depth)
        self.context = opening(clip_model, names, words, n)
        self.deeper = nn.ParameterList(random_vectors(*self.context.ctx.shape) for _ in range(1, depth))

    def vectors(self):
        """depth times (n, D)."""
        return [self.context.ctx, *self.deeper]

    def prompts(self):
        """What encode_text takes."""
        texts, _, positions = self.context.prompts()
        return texts, dict(enumerate(self.vectors())), positions


def check_depth(tower: nn.Module, depth: int) -> None:
    """UserError unless the tower has blocks for prompts in front of the first `depth`."""
    blocks = len(tower.resblocks)
    if not 1 <= depth <= blocks:
        raise UserError(f"No prompts of depth {depth} in a tower of {blocks} blocks: choose a depth of 1 to {blocks}")
