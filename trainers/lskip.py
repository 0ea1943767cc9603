"""Layer-wise skipping (LSkip) of Skip Tuning, CVPR 2025, Eq. 5 and 6.

The first omega blocks of both towers are frozen, so their outputs are constants: t^omega of the classes is computed
once, v^omega of the images once per augmented view. Training starts at block omega + 1.

Three savings change nothing but the cost: texts are cut behind the last end-of-text token (the tower is causal); the
last block computes keys and values for all tokens but everything else only for the pooled one; the shallow half keeps
no graph.

Notation: N images, C classes, L tokens, D width of a tower, E joint width. Only OpenAI's module names are used, so this
file works on the `clip/` of any CoOp fork.
"""

import time

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

try:
    from dassl.utils import UserError
except ImportError:  # upstream's Dassl has no error of its own for bad input
    UserError = ValueError

EXTRACTION_BATCH = 128  # images per forward pass of the frozen half


def run_blocks(blocks, x, mask=None):
    """x (L, N, D) through residual attention blocks; mask (L, L) additive or None."""
    for block in blocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    return x


def run_last_block(block, x, position, causal=False):
    """What the block gives at one position of each sequence: x (L, N, D), position (N,) -> (N, D)."""
    length, number = x.shape[:2]
    pooled = position, torch.arange(number, device=x.device)
    y = block.ln_1(x)
    hidden = None  # (N, L), keys that the pooled position must not see
    if causal:
        hidden = torch.arange(length, device=x.device) > position[:, None]
    x = x[pooled] + block.attn(y[pooled][None], y, y, key_padding_mask=hidden, need_weights=False)[0][0]
    return x + block.mlp(block.ln_2(x))


@torch.no_grad()
def shallow_image(visual, image, omega):
    """v^omega = E_V[1:omega](x), Eq. 5: image (N, 3, H, W) -> (N, L, D)."""
    patches = visual.conv1(image.to(visual.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (N, L - 1, D)
    first = visual.class_embedding.to(patches).expand(len(patches), 1, -1)
    x = torch.cat([first, patches], dim=1) + visual.positional_embedding.to(patches)
    x = visual.ln_pre(x).transpose(0, 1)  # (L, N, D)
    return run_blocks(visual.transformer.resblocks[:omega], x).transpose(0, 1)


@torch.no_grad()
def shallow_text(clip_model, tokens, omega):
    """t^omega = E_T[1:omega](c), Eq. 5: tokens (C, 77) -> (C, L, D), L the longest class text."""
    length = int(tokens.argmax(-1).max()) + 1
    x = clip_model.token_embedding(tokens[:, :length].long()).to(clip_model.dtype)
    x = (x + clip_model.positional_embedding[:length].to(x)).transpose(0, 1)  # (L, C, D)
    return run_blocks(clip_model.transformer.resblocks[:omega], x, causal_mask(x)).transpose(0, 1)


def causal_mask(x):
    """(L, L) additive mask for x (L, ...): -inf above the diagonal."""
    return torch.full((len(x), len(x)), float("-inf"), dtype=x.dtype, device=x.device).triu(1)


class DeepImage(nn.Module):
    """E_V[omega+1:N] with the final norm and projection, Eq. 6. Its keys keep the block numbers of the whole tower."""

    def __init__(self, visual, omega):
        super().__init__()
        self.resblocks = visual.transformer.resblocks[omega:]
        self.ln_post = visual.ln_post
        self.proj = visual.proj

    def forward(self, v):
        """v^omega (N, L, D) -> image features (N, E), not normalised."""
        x = run_blocks(self.resblocks[:-1], v.transpose(0, 1))
        x = run_last_block(self.resblocks[-1], x, torch.zeros(len(v), dtype=torch.long, device=v.device))
        return self.ln_post(x) @ self.proj


class DeepText(nn.Module):
    """E_T[omega+1:N] with the final norm and projection, Eq. 6."""

    def __init__(self, clip_model, omega):
        super().__init__()
        self.resblocks = clip_model.transformer.resblocks[omega:]
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, t, end):
        """t^omega (C, L, D) and the end-of-text positions (C,) -> class features (C, E), not normalised."""
        x = t.transpose(0, 1)
        x = run_blocks(self.resblocks[:-1], x, causal_mask(x))
        x = run_last_block(self.resblocks[-1], x, end, causal=True)
        return self.ln_final(x) @ self.text_projection


class LayerCache:
    """A training loader that yields cached v^omega instead of pixels: {"img": (B, L, D), "label": (B,)}.

    Args:
        loader: the trainer's own loader of augmented images; its data set, batch size and workers are used.
        encode: images (N, 3, H, W) -> v^omega (N, L, D), on any device; stored on the CPU in the dtype it returns.
        views: how many augmented views of each image are cached; 0 makes a fresh one in every epoch.
        seed: view number k of an image depends on (seed, k) alone, so a resumed run sees the same views.
        single_class: every batch holds images of one class, as in the released code.
    """

    def __init__(self, loader, encode, views, seed, single_class=False):
        workers = loader.num_workers
        self.images = DataLoader(loader.dataset, EXTRACTION_BATCH, num_workers=workers)
        self.encode = encode
        self.views = views
        self.seed = seed
        self.single_class = single_class
        self.batch_size = loader.batch_size
        self.dataset = loader.dataset
        self.labels = torch.tensor([item.label for item in loader.dataset.data_source])  # (N,)
        self.cached = {}  # view number -> v^omega (N, L, D)
        self.features = None  # the current epoch's
        if single_class and self.labels.bincount().max() < self.batch_size:
            raise UserError(
                f"no class has {self.batch_size} images for a batch of its own: "
                "lower DATALOADER.TRAIN_X.BATCH_SIZE or set BATCHES to mixed"
            )

    def start_epoch(self, epoch):
        """Make the epoch's view ready; -> seconds spent on extraction."""
        began = time.time()
        view = epoch % self.views if self.views else epoch
        if view not in self.cached:
            if not self.views:
                self.cached.clear()
                self.features = None  # the old view is freed before the new one is made
            self.cached[view] = self.extract(view)
        self.features = self.cached[view]
        return time.time() - began

    def extract(self, view):
        """v^omega of one view of every image, in the data set's order: (N, L, D)."""
        features = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 100_003 + view)
            for i, batch in enumerate(tqdm(self.images, desc=f"extract view {view}", leave=False)):
                v = self.encode(batch["img"]).cpu()
                if features is None:
                    features = v.new_empty(len(self.labels), *v.shape[1:])
                features[i * EXTRACTION_BATCH :][: len(v)] = v
        return features

    def batches(self):
        """Index tensors (B,) of one epoch, in random order; what doesn't fill a batch is left out, as by Dassl."""
        groups = [torch.arange(len(self.labels))]
        if self.single_class:
            groups = [torch.where(self.labels == label)[0] for label in self.labels.unique()]
        size = min(self.batch_size, len(self.labels))
        batches = [
            part for group in groups for part in group[torch.randperm(len(group))].split(size) if len(part) == size
        ]
        return [batches[i] for i in torch.randperm(len(batches))] if self.single_class else batches

    def __len__(self):
        if self.single_class:
            return int((self.labels.bincount() // self.batch_size).sum())
        return max(1, len(self.labels) // self.batch_size)

    def __iter__(self):
        for index in self.batches():
            yield {"img": self.features[index], "label": self.labels[index]}
