"""Pre-train the embedded model: CLIP's contrastive loss on icon drawings and their names.

    python scripts/embedded/icons.py icons/
    python scripts/embedded/pretrain.py icons/       # about an hour on 2 cores; resumes from icons/pretrain.pt

Writes `clip/embedded.safetensors` at the end. The log of the shipped weights is scripts/embedded/pretrain.log.

What differs from CLIP's recipe, and why: equal captions in a batch are positives, not negatives (one name occurs in
dozens of sets); matrices inside the blocks are trained by Muon, the rest by AdamW (several times fewer steps to the
same loss); plain softmax attention in bf16 and compiled image blocks (the fastest on a CPU).
"""

import argparse
import collections
import itertools
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clip import clip  # noqa: E402
from clip.model import CLIP  # noqa: E402
from clip.weights import EMBEDDED, pack_embedded  # noqa: E402

BATCH = 384
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 2e-3, 1e-3, 0.1
WARMUP = 200  # steps
DECAY = 0.4  # the last share of the steps, in which the learning rate falls linearly to zero
CAPTION_TOKENS = 24
MIN_SETS = {True: 2, False: 4}  # sets a name must occur in: coloured drawings, monochrome ones
WEIGHT_COLOUR = 5.0  # sampling weight of coloured drawings
WEIGHT_WANTED = 12.0  # and of names that the embedded dataset uses

TEMPLATES = (
    "a photo of a {}.",
    "an icon of a {}.",
    "an emoji of a {}.",
    "a drawing of a {}.",
    "a picture of the {}.",
    "a clip art of a {}.",
    "a good photo of the {}.",
    "{}.",
    "a {}.",
)
COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "gray": (128, 128, 128),
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 210, 50),
    "green": (50, 160, 70),
    "teal": (30, 160, 160),
    "blue": (50, 100, 220),
    "purple": (140, 70, 190),
    "pink": (240, 120, 170),
    "brown": (130, 85, 50),
}
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class Icons:
    """Batches of (image (B, 3, 64, 64), caption tokens (B, L), name ids (B,)), drawn with the recipe's weights."""

    def __init__(self, folder, wanted):
        records = json.loads((folder / "icons.json").read_text())
        sets = collections.defaultdict(set)
        for record in records:
            sets[record["name"]].add(record["set"])
        self.records = [r for r in records if len(sets[r["name"]]) >= MIN_SETS[r["colour"]] or r["name"] in wanted]
        self.pixels = {True: np.load(folder / "colour.npy"), False: np.load(folder / "mono.npy")}
        frequency = collections.Counter(record["name"] for record in self.records)
        self.names = {name: i for i, name in enumerate(sorted(frequency))}
        weights = [
            frequency[r["name"]] ** -0.5
            * (WEIGHT_COLOUR if r["colour"] else 1)
            * (WEIGHT_WANTED if r["name"] in wanted else 1)
            for r in self.records
        ]
        self.cumulative = list(itertools.accumulate(weights))
        captions = [t.format(n) for t in TEMPLATES for n in (*self.names, *COLOURS)]
        self.used = torch.unique(torch.cat([clip.tokenize(part) for part in batched(captions, 4096)]))  # (R,), sorted
        self.lookup = torch.zeros(49408, dtype=torch.long)
        self.lookup[self.used] = torch.arange(len(self.used))  # keeps the order, so end-of-text stays the largest

    def tokens(self, captions):
        """-> (B, CAPTION_TOKENS) rows of the compact vocabulary."""
        return self.lookup[clip.tokenize(captions, context_length=CAPTION_TOKENS, truncate=True)]

    def batch(self, size):
        chosen = random.choices(self.records, cum_weights=self.cumulative, k=size)
        images, captions = zip(*(self.draw(record) for record in chosen), strict=True)
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255  # (B, 3, 64, 64)
        ids = torch.tensor([self.names[record["name"]] for record in chosen])
        return (jitter(images) - MEAN) / STD, self.tokens(captions), ids

    def draw(self, record):
        """-> (uint8 (64, 64, 3), caption): the drawing in colour on a background."""
        pixels, name = self.pixels[record["colour"]][record["row"]], record["name"]
        if record["colour"]:
            ink, alpha = pixels[..., :3], pixels[..., 3:]
            paper = (255, 255, 255) if random.random() < 0.7 else random.choice(list(COLOURS.values()))
        else:
            # Dark on white is how most icons are shown; the other pairs teach shapes apart from colours.
            common = random.random() < 0.3
            (ink_name, ink), (_, paper) = random.sample(list(COLOURS.items()), 2)
            if common or sum(abs(a - b) for a, b in zip(ink, paper, strict=True)) < 150:
                ink_name, ink, paper = "black", (0, 0, 0), (255, 255, 255)
            elif random.random() < 0.5:
                paper = (255, 255, 255) if ink_name != "white" else (0, 0, 0)
            if random.random() < 0.3:
                name = f"{ink_name} {name}"
            alpha = pixels[..., None]
        alpha = alpha.astype(np.float32) / 255
        picture = np.float32(ink) * alpha + np.float32(paper) * (1 - alpha)
        return picture.astype(np.uint8), random.choice(TEMPLATES).format(name)


def jitter(images):
    """Random scale, rotation, shift and mirror of (B, 3, H, W) in [0, 1]; the border's colour goes on outside."""
    size = len(images)
    scale = torch.empty(size).uniform_(0.95, 1.6)  # of the sampling grid: the inverse of the drawing's scale
    angle = torch.empty(size).uniform_(-14, 14).deg2rad()
    mirror = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = torch.empty(size, 2).uniform_(-0.3, 0.3)
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1).view(size, 2, 3)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def contrastive_loss(image_features, text_features, scale, ids):
    """Symmetric cross-entropy over unit features (B, E); every pair of one name is a positive."""
    logits = scale * image_features @ text_features.t()  # (B, B)
    target = (ids[:, None] == ids[None]).float()
    target = target / target.sum(1, keepdim=True)  # symmetric before and after transposing
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def tiny_clip(vocabulary):
    model = CLIP(
        embed_dim=128,
        image_resolution=64,
        vision_layers=12,
        vision_width=192,
        vision_patch_size=16,
        context_length=77,
        vocab_size=vocabulary,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=12,
    )
    return model.train()


def optimizers(model):
    """Muon for the matrices inside the blocks, AdamW for everything else (weight decay on matrices only)."""
    inside = [p for n, p in model.named_parameters() if "resblocks" in n and p.ndim == 2]
    taken = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(inside, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(groups, lr=ADAMW_LR, betas=(0.9, 0.98), fused=True)


def learning_rate(step, steps):
    """Share of the peak: linear warm-up, then constant, then linear to zero."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


@torch.no_grad()
def zero_shot(model, icons, part="val"):
    """Accuracy (percent) over all classes of the embedded dataset, on the drawings of one part."""
    folder = ROOT / "datasets" / "emoji_data"
    rows = json.loads((folder / "split_emoji.json").read_text())[part]
    names = {label: name for _, label, name in rows}
    model.eval()
    text = F.normalize(model.encode_text(icons.tokens([f"an emoji of a {names[i]}." for i in sorted(names)])), dim=-1)
    labels = torch.tensor([sorted(names).index(label) for _, label, _ in rows])
    pixels = [np.array(Image.open(folder / "images" / path).convert("RGB")) for path, _, _ in rows]
    images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    features = torch.cat([model.encode_image(part) for part in images.split(256)])
    model.train()
    return 100 * ((features @ text.t()).argmax(1) == labels).float().mean().item()


def batched(items, size):
    for start in range(0, len(items), size):
        yield items[start : start + size]


def save_state(path, **state):
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that icons.py filled")
    parser.add_argument("--steps", type=int, default=3300, help=f"batches of {BATCH} (default: %(default)s)")
    args = parser.parse_args()

    random.seed(0)
    torch.manual_seed(0)
    split = json.loads((ROOT / "datasets" / "emoji_data" / "split_emoji.json").read_text())
    wanted = {name for _, _, name in split["train"]}
    icons = Icons(args.folder, wanted)
    model = tiny_clip(len(icons.used))
    optims = optimizers(model)
    peaks = [[group["lr"] for group in optim.param_groups] for optim in optims]
    print(f"{len(icons.records):,} drawings, {len(icons.names):,} names, {len(icons.used):,} tokens", flush=True)

    state_file, first = args.folder / "pretrain.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        first = state["step"]
        random.seed(first)
        torch.manual_seed(first)
        print(f"resumed at step {first}", flush=True)
    for block in model.visual.transformer.resblocks:
        block.compile()

    began, losses = time.time(), []
    for step in range(first, args.steps):
        for optim, peak in zip(optims, peaks, strict=True):
            for group, lr in zip(optim.param_groups, peak, strict=True):
                group["lr"] = lr * learning_rate(step, args.steps)
        image, text, ids = icons.batch(BATCH)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            features = model.encode_image(image), model.encode_text(text)
        image_features, text_features = (F.normalize(f.float(), dim=-1) for f in features)
        loss = contrastive_loss(image_features, text_features, model.logit_scale.exp(), ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        model.logit_scale.data.clamp_(max=math.log(100))
        losses.append(loss.detach())
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            speed = (step + 1 - first) * BATCH / (time.time() - began)
            line = f"step {step + 1}/{args.steps} loss {torch.stack(losses).mean():.4f}"
            line += f" scale {model.logit_scale.exp():.1f} {speed:.0f} images/s {time.time() - began:.0f} s"
            losses = []
            if (step + 1) % 250 == 0 or step + 1 == args.steps:
                line += f" zero-shot {zero_shot(model, icons):.1f}%"
                optim_states = [optim.state_dict() for optim in optims]
                save_state(state_file, model=model.state_dict(), optims=optim_states, step=step + 1)
            print(line, flush=True)

    weights = model.state_dict()
    full = torch.zeros(len(icons.lookup), weights["token_embedding.weight"].shape[1])
    full[icons.used] = weights["token_embedding.weight"]
    weights["token_embedding.weight"] = full
    beside = EMBEDDED.with_suffix(".part")
    save_file(pack_embedded(weights, icons.used), beside)
    beside.chmod(0o644)
    beside.replace(EMBEDDED)
    print(f"saved {EMBEDDED}")


if __name__ == "__main__":
    main()
