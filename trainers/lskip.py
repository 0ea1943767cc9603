"""Layer-wise skipping (LSkip) of Skip Tuning, CVPR 2025, Eq. 5 and 6.

The first omega blocks of both towers are frozen, so their outputs are constants: t^omega of the classes is computed
once, v^omega of the images once per augmented view. Training starts at block omega + 1.

Savings that change nothing but the cost: texts end with their end-of-text token, and the tokens with which all of them
begin ("a photo of a") are computed once, both because the tower is causal; the last block computes keys and values for
all tokens but everything else only for the pooled one; the shallow half keeps no graph.

Notation: N images, C classes, L tokens, D width of a tower, E joint width; T rows are the tokens of all sequences, one
under the other. Only OpenAI's module names are used, so this file works on the `clip/` of any CoOp fork.
"""

import mmap
import os
import random
import tempfile
import time
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .family import UserError

EXTRACTION_BATCH = 64  # images that the loader hands to the frozen half at a time
CHUNK = 8  # of them run at a time on a CPU, whose caches then hold the activations


# ---- blocks ------------------------------------------------------------------------------------------------


def norm(layer, x):
    """`layer`(x). A CPU normalises half precision in fp32 by itself, so it is spared the casts of CLIP's LayerNorm."""
    if x.is_cuda:
        return layer(x)
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def attention(q, k, v, heads, hidden=None):
    """Multi-head attention: q (N, Q, D), k and v (N, L, D) -> (N, Q, D).

    `hidden`, bool, broadcasts to (N, heads, Q, L): where a query must not look.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, heads, L, D / heads)
    if q.is_cuda:
        x = F.scaled_dot_product_attention(q, k, v, None if hidden is None else ~hidden)
    else:  # written out: on a CPU the backward pass of the fused kernel takes several times as long
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        x = scores.softmax(dim=-1) @ v
    return x.transpose(1, 2).flatten(2)


def run_block(block, x, attend):
    """One residual attention block: rows x (T, D) -> (T, D). `attend(q, k, v, heads)` knows how rows form sequences."""
    attn = block.attn
    q, k, v = F.linear(norm(block.ln_1, x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    x = x + attn.out_proj(attend(q, k, v, attn.num_heads))
    return x + block.mlp(norm(block.ln_2, x))


def run_last_block(block, x, pooled, attend):
    """What the block gives for the `pooled` rows (N,) alone: rows x (T, D) -> (N, D)."""
    attn, width = block.attn, x.shape[-1]
    y = norm(block.ln_1, x)
    q = F.linear(y[pooled], attn.in_proj_weight[:width], attn.in_proj_bias[:width])
    k, v = F.linear(y, attn.in_proj_weight[width:], attn.in_proj_bias[width:]).chunk(2, dim=-1)
    x = x[pooled] + attn.out_proj(attend(q, k, v, attn.num_heads))
    return x + block.mlp(norm(block.ln_2, x))


# ---- images ------------------------------------------------------------------------------------------------


def run_images(blocks, x, pool):
    """x (N, L, D) through `blocks` -> (N, L, D), or with `pool` the class token's (N, 1, D)."""
    shape, number = x.shape, len(x)

    def attend(q, k, v, heads):
        q, k, v = (part.unflatten(0, (number, -1)) for part in (q, k, v))
        return attention(q, k, v, heads).flatten(0, 1)

    first = torch.arange(number, device=x.device) * shape[1]  # rows of the class tokens
    x = x.flatten(0, 1)  # (T, D)
    for block in blocks[:-1] if pool else blocks:
        x = run_block(block, x, attend)
    if pool:
        x = run_last_block(blocks[-1], x, first, attend)
    return x.unflatten(0, (number, -1))


def in_chunks(function, images):
    """function(images) (N, ...), on a CPU CHUNK images at a time; for passes that keep no graph."""
    if images.is_cuda:
        return function(images)
    return torch.cat([function(part) for part in images.split(CHUNK)])


@torch.no_grad()
def shallow_image(visual, image, omega):
    """v^omega = E_V[1:omega](x), Eq. 5: image (N, 3, H, W) -> (N, L, D); (N, 1, D) if no block is left behind it."""
    patches = visual.conv1(image.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (N, L - 1, D)
    first = visual.class_embedding.to(patches).expand(len(patches), 1, -1)
    x = norm(visual.ln_pre, torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches))
    blocks = visual.transformer.resblocks
    return run_images(blocks[:omega], x, pool=0 < omega == len(blocks))


class DeepImage(nn.Module):
    """E_V[omega+1:N] with the final norm and projection, Eq. 6. Its keys keep the block numbers of the whole tower."""

    def __init__(self, visual, omega):
        super().__init__()
        self.resblocks = visual.transformer.resblocks[omega:]
        self.ln_post = visual.ln_post
        self.proj = visual.proj

    def forward(self, v):
        """v^omega (N, L, D) -> image features (N, E), not normalised."""
        if len(self.resblocks):
            v = run_images(self.resblocks, v, pool=True)
        return self.ln_post(v[:, 0]) @ self.proj


# ---- texts -------------------------------------------------------------------------------------------------


class ClassTexts(NamedTuple):
    """The class texts in front of some block, each of their tokens once."""

    prefix: torch.Tensor  # (P, D), the beginning that all texts share
    own: torch.Tensor  # (C, S, D), what follows it, up to the longest text's end
    end: torch.Tensor  # (C,), the end-of-text token's position in `own`

    def select(self, classes):
        """The texts of `classes` (K,)."""
        return self._replace(own=self.own[classes], end=self.end[classes])


def run_texts(blocks, texts, pool):
    """`texts` through `blocks` -> ClassTexts, of which with `pool` only the end-of-text tokens are left, (C, 1, D)."""
    prefix, own, end = texts
    shared, (number, length) = len(prefix), own.shape[:2]
    position = torch.arange(shared + length, device=own.device)
    causal = position > position[:, None]  # (P + S, P + S), True where a token must not look

    def attend(q, k, v, heads):
        """Full rows: q (P + C S, D). Pooled ones: q (C, D)."""
        k, v = (torch.cat([x[:shared].expand(number, -1, -1), x[shared:].view(own.shape)], dim=1) for x in (k, v))
        if len(q) == number:
            hidden = (position > end[:, None] + shared)[:, None, None]  # (C, 1, 1, P + S)
            return attention(q[:, None], k, v, heads, hidden)[:, 0]
        first = attention(q[None, :shared], k[:1, :shared], v[:1, :shared], heads, causal[:shared, :shared])[0]
        rest = attention(q[shared:].view(own.shape), k, v, heads, causal[shared:])
        return torch.cat([first, rest.flatten(0, 1)])

    x = torch.cat([prefix, own.flatten(0, 1)])  # (T, D), T = P + C S
    for block in blocks[:-1] if pool else blocks:
        x = run_block(block, x, attend)
    if pool:
        rows = shared + torch.arange(number, device=x.device) * length + end
        x = run_last_block(blocks[-1], x, rows, attend)
        return ClassTexts(x[:0], x[:, None], torch.zeros_like(end))
    return ClassTexts(x[:shared], x[shared:].view(own.shape), end)


@torch.no_grad()
def shallow_text(clip_model, tokens, omega):
    """t^omega = E_T[1:omega](c), Eq. 5: tokens (C, 77) -> ClassTexts."""
    end = tokens.argmax(dim=-1)  # (C,), end-of-text has the largest id
    same = (tokens == tokens[0]).all(dim=0).long().cumprod(dim=0).sum()
    shared = int(torch.minimum(same, end.min()))  # every text keeps at least its end-of-text token
    x = clip_model.token_embedding(tokens[:, : int(end.max()) + 1].long()).to(clip_model.dtype)  # (C, L, D)
    x = x + clip_model.positional_embedding[: x.shape[1]].to(x)
    blocks = clip_model.transformer.resblocks
    texts = ClassTexts(x[0, :shared], x[:, shared:], end - shared)
    return run_texts(blocks[:omega], texts, pool=0 < omega == len(blocks))


class DeepText(nn.Module):
    """E_T[omega+1:N] with the final norm and projection, Eq. 6."""

    def __init__(self, clip_model, omega):
        super().__init__()
        self.resblocks = clip_model.transformer.resblocks[omega:]
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, texts):
        """t^omega -> class features (C, E), not normalised."""
        if len(self.resblocks):
            texts = run_texts(self.resblocks, texts, pool=True)
        pooled = texts.own[torch.arange(len(texts.end), device=texts.end.device), texts.end]
        return self.ln_final(pooled) @ self.text_projection


# ---- memory ------------------------------------------------------------------------------------------------


def mapped(shape, dtype, folder):
    """An empty tensor in an unnamed file of `folder`, which takes memory only as far as it is in use.

    Errors: UserError where the disk has no room for it.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash at a write
        except OSError as error:
            raise UserError(
                f"No room for {size / 1e9:.1f} GB in {folder} ({error.strerror}): free some there"
            ) from error
        file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)


class Shelf(AbstractContextManager):
    """Frozen parameters that leave the device's memory while nothing runs through them; back inside `with`.

    On a CPU they lie in a mapped file. Can be entered again inside itself.
    """

    def __init__(self, parameters, folder):
        self.places = []
        for p in parameters:
            kept = mapped(p.shape, p.dtype, folder).copy_(p.detach())
            self.places.append((p, p.device, kept))
        self.entered = 1
        self.__exit__()

    def __enter__(self):
        if not self.entered:
            for p, device, kept in self.places:
                p.data = kept.to(device)  # on a CPU `kept` itself
        self.entered += 1
        return self

    def __exit__(self, *error):
        self.entered -= 1
        if not self.entered:
            for p, _, _ in self.places:
                p.data = p.data.new_empty(0)


# ---- the cache ---------------------------------------------------------------------------------------------


class LayerCache:
    """A training loader that yields cached v^omega instead of pixels: {"img": (B, L, D), "label": (B,)}.

    Args:
        loader: the trainer's own loader of augmented images; its data set, batch size and workers are used. How many
            workers there are decides, as everywhere in PyTorch, which random numbers a view is made of.
        encode: images (N, 3, H, W) -> v^omega (N, L, D), on any device; stored on the CPU in the dtype it returns.
        views: how many augmented views of each image are cached; 0 makes a fresh one in every epoch.
        seed: view number k of an image depends on (seed, k) alone, the batches of epoch n on (seed, n): a resumed run
            sees the same, and so does a run on another Dassl.
        single_class: every batch holds images of one class, as in the released code; like there, batches are mixed
            where no class has images enough.
        limit: a view of more bytes is kept in a mapped file in `folder` instead of in memory.
    """

    def __init__(self, loader, encode, views, seed, single_class=False, limit=float("inf"), folder=None):
        options = {name: getattr(loader, name) for name in ("num_workers", "worker_init_fn", "persistent_workers")}
        self.images = type(loader)(loader.dataset, EXTRACTION_BATCH, **options)
        self.encode = encode
        self.views = views
        self.seed = seed
        self.limit = limit
        self.folder = folder
        self.batch_size = loader.batch_size
        self.dataset = loader.dataset
        self.labels = torch.tensor([item.label for item in loader.dataset.data_source])  # (N,)
        self.single_class = single_class and int(self.labels.bincount().max()) >= self.batch_size
        self.cached = {}  # view number -> v^omega (N, L, D)
        self.features = None  # the current epoch's
        self.generator = None  # of the current epoch's batches
        self.upcoming = None  # (view, batches of its images, which the loader's workers prepare meanwhile)

    def start_epoch(self, epoch, last=False):
        """Make the epoch's view ready and have the workers begin the next one's; -> seconds spent on extraction."""
        began = time.time()
        self.generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        view = epoch % self.views if self.views else epoch
        if view not in self.cached:
            if not self.views:
                self.cached.clear()
                self.features = None  # the old view is freed before the new one is made
            self.cached[view] = self.extract(view)
            if not last and (not self.views or view + 1 < self.views):
                self.prepare(view + 1)
        self.features = self.cached[view]
        return time.time() - began

    @contextmanager
    def seeded(self, view):
        """Random numbers of this view's own; the global generators are as before when it is left."""
        seed, before = self.seed * 100_003 + view, random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)  # Dassl's random_translation draws from Python's
            try:
                yield
            finally:
                random.setstate(before)

    def prepare(self, view):
        """Let the workers decode and augment the view's first images while training runs."""
        if self.images.num_workers:
            with self.seeded(view):
                self.upcoming = view, iter(self.images)  # workers take their seeds now

    def extract(self, view):
        """v^omega of one view of every image, in the data set's order: (N, L, D)."""
        prepared, self.upcoming = self.upcoming, None
        features, done = None, 0
        with self.seeded(view):
            batches = prepared[1] if prepared and prepared[0] == view else self.images
            for batch in tqdm(batches, desc=f"extract view {view}", total=len(self.images), leave=False):
                v = self.encode(batch["img"])
                if features is None:
                    features = self.room(v)
                features[done : done + len(v)] = v
                done += len(v)
        return features

    def room(self, v):
        """An empty (N, L, D) for the features of all images, given those of the first ones."""
        shape = len(self.labels), *v.shape[1:]
        if torch.Size(shape).numel() * v.dtype.itemsize > self.limit:
            return mapped(shape, v.dtype, self.folder)
        return torch.empty(shape, dtype=v.dtype)

    def batches(self):
        """Index tensors (B,) of one epoch, in random order; what doesn't fill a batch is left out, as by Dassl."""
        groups = [torch.arange(len(self.labels))]
        shuffle = partial(torch.randperm, generator=self.generator)
        if self.single_class:
            groups = [torch.where(self.labels == label)[0] for label in self.labels.unique()]
        size = min(self.batch_size, len(self.labels))
        batches = [part for group in groups for part in group[shuffle(len(group))].split(size) if len(part) == size]
        return [batches[i] for i in shuffle(len(batches))] if self.single_class else batches

    def __len__(self):
        if self.single_class:
            return int((self.labels.bincount() // self.batch_size).sum())
        return max(1, len(self.labels) // self.batch_size)

    def __iter__(self):
        for index in self.batches():
            yield {"img": self.features[index], "label": self.labels[index]}
