"""Pre-train the embedded model: CLIP's contrastive loss on icons and their names.

    python scripts/embedded/icons.py icons/
    python scripts/embedded/emoji.py icons/
    python scripts/embedded/pretrain.py icons/ --stage first --steps 3000 --out first.safetensors
    python scripts/embedded/pretrain.py icons/ --stage second --steps 3000 --from icons/first.pt --out b.safetensors
    python scripts/embedded/pretrain.py icons/ --stage fall --fall --steps 1500 --from icons/second.pt

The training is a chain of stages. A stage starts from weights (`--from x.safetensors`: a new optimizer, which needs
about 100 steps to catch up) or from another stage's checkpoint (`--from x.pt`), keeps its own checkpoint in
icons/<stage>.pt and, called again, goes on there; with more `--steps` it is prolonged, with the steps it has it only
writes the weights. The learning rate is constant, and falls linearly to zero in a stage with `--fall`: the last one,
or one that is tried in between. The log of the shipped weights is scripts/embedded/pretrain.log.

What the model has seen: icon sets and Emoji One's emoji of all things, the classes of the embedded dataset among them;
of every company whose images are in that dataset (Twitter, OpenMoji, Google, Mozilla, Streamline, Microsoft) only
emoji of other things. So it knows each company's style, and each thing, but no image of the dataset or one much like
it. (CLIP has seen nearly everything that it is tuned on, too.) Hence zero-shot accuracy says nothing about new styles.

What differs from CLIP's recipe, and why: equal captions in a batch are positives, not negatives (one name occurs in
dozens of sets); matrices inside the blocks are trained by Muon, the rest by AdamW (several times fewer steps to the
same loss); bf16 with plain softmax attention and compiled image blocks where the CPU has bf16, else fp32.
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
from icons import KINDS, ROOT  # icons puts ROOT on the path, where clip and dassl lie
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clip import clip
from clip.model import CLIP
from clip.weights import EMBEDDED, VOCABULARY, pack_embedded, read_state_dict
from dassl.utils import write_atomic

BATCH = 512
MUON_LR, ADAMW_LR, WEIGHT_DECAY = 2e-3, 1e-3, 0.1
WARMUP = 100  # steps from weights without an optimizer
CHECKPOINT = 25  # steps between checkpoints
CAPTION_TOKENS = 16
MIN_SETS = {True: 2, False: 4}  # sets a name must occur in: coloured icons, monochrome ones
WEIGHT_COLOUR = 5.0  # sampling weight of coloured icons
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
BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)  # other CPUs emulate it, fifty times as slowly
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class Icons:
    """Batches of (image (B, 3, 64, 64), caption tokens (B, L), name ids (B,)), drawn with the recipe's weights."""

    def __init__(self, folder, wanted):
        every = json.loads((folder / "icons.json").read_text())
        records = [every[i] for i in json.loads((folder / "seen.json").read_text())]
        sets = collections.defaultdict(set)
        for record in records:
            sets[record["name"]].add(record["set"])
        self.records = [r for r in records if len(sets[r["name"]]) >= MIN_SETS[r["colour"]] or r["name"] in wanted]
        self.pixels = {colour: np.load(folder / f"{kind}.npy", mmap_mode="r") for colour, kind in KINDS.items()}
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
        self.lookup = torch.zeros(VOCABULARY, dtype=torch.long)
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
        """-> (uint8 (64, 64, 3), caption): the icon in colour on a background."""
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
        image = np.float32(ink) * alpha + np.float32(paper) * (1 - alpha)
        return image.astype(np.uint8), random.choice(TEMPLATES).format(name)


def jitter(images):
    """Random scale, rotation, shift and mirror of (B, 3, H, W) in [0, 1]; the border's colour goes on outside."""
    size = len(images)
    scale = torch.empty(size).uniform_(0.95, 1.6)  # of the sampling grid: the inverse of the icon's scale
    angle = torch.empty(size).uniform_(-14, 14).deg2rad()
    mirror = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = torch.empty(size, 2).uniform_(-0.3, 0.3)
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1).view(size, 2, 3)
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def encode_captions(model, tokens):
    """tokens (B, L) -> features (B, E): the shorter and the longer half apart, each cut at its own longest caption."""
    order = tokens.argmax(dim=1).argsort()
    features = torch.cat([model.encode_text(tokens[half]) for half in order.chunk(2)])
    return features[order.argsort()]


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


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024), a group for each shape: torch.optim.Muon takes the matrices one by one, in bf16 even
    where a CPU only emulates it; together they take half the time."""

    def __init__(self, params, lr, weight_decay, momentum=0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            nesterov = []
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                nesterov.append(p.grad.lerp(momentum, group["momentum"]))
            for p, update in zip(group["params"], orthogonal(torch.stack(nesterov)), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)  # AdamW's usual size of a step


def orthogonal(matrices):
    """(N, A, B) -> (N, A, B), fp32: for each the nearest matrix with singular values of about 1, by the Newton-Schulz
    iteration with Muon's constants, in bf16 where the CPU has it."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = (x.mT if tall else x).to(torch.bfloat16 if BF16 else torch.float32)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return (x.mT if tall else x).float()


def optimizers(model):
    """Muon for the matrices inside the blocks, AdamW for everything else (weight decay on matrices only)."""
    inside = collections.defaultdict(list)  # {shape: matrices}
    for name, p in model.named_parameters():
        if "resblocks" in name and p.ndim == 2:
            inside[p.shape].append(p)
    taken = {id(p) for group in inside.values() for p in group}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    muon = Muon([{"params": group} for group in inside.values()], lr=MUON_LR, weight_decay=WEIGHT_DECAY)
    return muon, torch.optim.AdamW(groups, lr=ADAMW_LR, betas=(0.9, 0.98), fused=True)


def learning_rate(step, steps, warmup, fall):
    """Share of the peak at a stage's step: a linear warm-up, then constant, or linear to zero over the stage."""
    return min((step + 1) / warmup if warmup else 1.0, 1 - step / steps if fall else 1.0)


@torch.no_grad()
def zero_shot(model, icons):
    """Accuracy (percent) over all classes of the embedded dataset, on the validation images."""
    folder = ROOT / "datasets" / "emoji_data"
    rows = json.loads((folder / "split_emoji.json").read_text())["val"]
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


class Stage:
    """Model, optimizers and what was done so far: `step` of this stage, `samples` of the whole training."""

    def __init__(self, used):
        self.used = used
        self.model = tiny_clip(len(used))
        self.optims = optimizers(self.model)
        self.peaks = [[group["lr"] for group in optim.param_groups] for optim in self.optims]
        self.step = self.samples = self.warmup = 0

    def load_weights(self, path):
        """From the packed weights; a token they lack starts as the mean of the others."""
        weights = read_state_dict(path)
        weights["token_embedding.weight"] = weights["token_embedding.weight"][self.used]
        self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        self.warmup = WARMUP

    def load(self, path, same_stage):
        state = torch.load(path, weights_only=True)
        if not torch.equal(state["used"], self.used):
            sys.exit(f"{path} has other tokens: write its weights with --out and start from them")
        self.model.load_state_dict(state["model"])
        for optim, saved in zip(self.optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        self.samples = state["samples"]
        if same_stage:
            self.step, self.warmup = state["step"], state["warmup"]

    def save(self, path):
        state = {name: getattr(self, name) for name in ("used", "step", "samples", "warmup")}
        state |= {"model": self.model.state_dict(), "optims": [optim.state_dict() for optim in self.optims]}
        write_atomic(path, lambda file: torch.save(state, file))

    def save_weights(self, path):
        weights = self.model.state_dict()
        full = torch.zeros(VOCABULARY, weights["token_embedding.weight"].shape[1])
        full[self.used] = weights["token_embedding.weight"]
        weights["token_embedding.weight"] = full
        write_atomic(path, save(pack_embedded(weights, self.used)))

    def train_step(self, batch, share):
        """One step of all optimizers at a share of their peak learning rates; -> the loss, detached."""
        for optim, peak in zip(self.optims, self.peaks, strict=True):
            for group, lr in zip(optim.param_groups, peak, strict=True):
                group["lr"] = lr * share
        image, text, ids = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16), sdpa_kernel(SDPBackend.MATH):
            features = self.model.encode_image(image), encode_captions(self.model, text)
        image_features, text_features = (F.normalize(f.float(), dim=-1) for f in features)
        loss = contrastive_loss(image_features, text_features, self.model.logit_scale.exp(), ids)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optim in self.optims:
            optim.step()
            optim.zero_grad()
        self.model.logit_scale.data.clamp_(max=math.log(100))
        self.step += 1
        self.samples += len(ids)
        return loss.detach()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that icons.py and emoji.py filled")
    parser.add_argument("--stage", required=True, help="its name: the checkpoint is FOLDER/STAGE.pt")
    parser.add_argument("--steps", type=int, required=True, help=f"batches of {BATCH} of this stage")
    parser.add_argument("--from", dest="start", type=Path, help="weights (.safetensors) or another stage's .pt")
    parser.add_argument("--fall", action="store_true", help="lower the learning rate to zero")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="where the weights go (default: %(default)s)")
    return parser.parse_args()


def main():
    args = parse_args()
    split = json.loads((ROOT / "datasets" / "emoji_data" / "split_emoji.json").read_text())
    icons = Icons(args.folder, {name for _, _, name in split["train"]})
    print(f"{len(icons.records):,} icons, {len(icons.names):,} names, {len(icons.used):,} tokens", flush=True)
    torch.manual_seed(0)
    stage, state_file = Stage(icons.used), args.folder / f"{args.stage}.pt"
    if state_file.exists() or args.start:
        start = state_file if state_file.exists() else args.start
        if start.suffix == ".pt":
            stage.load(start, same_stage=start == state_file)
        else:
            stage.load_weights(start)
        print(f"{args.stage}: from {start.name}, step {stage.step}, {stage.samples:,} samples", flush=True)
    random.seed(stage.samples)
    torch.manual_seed(stage.samples)
    if BF16:
        for block in stage.model.visual.transformer.resblocks:
            block.compile()

    began, first, losses = time.time(), stage.step, []
    while stage.step < args.steps:
        share = learning_rate(stage.step, args.steps, stage.warmup, args.fall)
        losses.append(stage.train_step(icons.batch(BATCH), share))
        if stage.step % CHECKPOINT == 0 or stage.step == args.steps:
            stage.save(state_file)
            took = time.time() - began
            line = f"{args.stage} {stage.step}/{args.steps} loss {torch.stack(losses).mean():.4f}"
            line += f" scale {stage.model.logit_scale.exp():.1f} {(stage.step - first) * BATCH / took:.0f} images/s"
            line += f" {took:.0f} s {stage.samples:,} samples"
            if stage.step % (8 * CHECKPOINT) == 0 or stage.step == args.steps:
                line += f" zero-shot {zero_shot(stage.model, icons):.1f}%"
            losses = []
            print(line, flush=True)
    stage.save_weights(args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
