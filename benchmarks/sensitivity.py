"""What the two skips rest on: Feature Sensitivity of layers, Gradient Dependence of classes (Skip Tuning, Sec. 2.2).

    python -m benchmarks.sensitivity                     the embedded model on the embedded dataset
    python -m benchmarks.sensitivity --json FILE --config-file configs/trainers/FinetuneCLIP/vit_b16.yaml \\
        --dataset-config-file configs/datasets/dtd.yaml --output-dir output/sensitivity/dtd DATASET.NUM_SHOTS 16
    python -m benchmarks.sensitivity --model-dir FOLDER  a finished FinetuneCLIP run; give the options it had

All flags but those below, and KEY VALUE pairs, are train.py's. Without --model-dir the model is fine-tuned first, a run
like any other in --output-dir (output/sensitivity): the same command resumes it, or finds it finished.

Feature Sensitivity (Eq. 3) of layer l for an image: the Euclidean distance between the features that block l gives
before and after full fine-tuning of the whole model. The feature is the block's output at the token that is pooled in
the end (class token of the image; end-of-text token of its class's prompt), as it stands in the residual stream, not
normalised. The table has the mean over the images, and that divided by the last layer's, as in Figure 2(b).

Gradient Dependence (Eq. 4) of class c for an image: the Euclidean distance between the gradients of its loss with and
without c in the denominator of Eq. 2, by the output of the last image block at the class token. The model is the one
before fine-tuning, by which CSkip ranks the classes. An image's own class, which is never skipped, is left out.

Suggested OMEGA: the most layers, counted from the first, whose sensitivity is below --threshold of the last layer's in
both towers.
"""

import argparse
import copy
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from tqdm import tqdm

import train
from clip import clip
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from dassl.utils import Parser, UserError, exit_code, set_random_seed, write_json
from results.plot import plot

DEFAULTS = {
    "--trainer": "FinetuneCLIP",
    "--config-file": "configs/trainers/FinetuneCLIP/embedded.yaml",
    "--dataset-config-file": "configs/datasets/emoji.yaml",
    "--output-dir": "output/sensitivity",
}
TEXTS_AT_A_TIME = 256
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)  # CSkip's R in Figure 4
QUANTILES = (0.5, 0.9, 0.99, 1.0)


# --- the two measures ---------------------------------------------------------------------------------


@torch.no_grad()
def pooled_outputs(blocks, position, encode):
    """Every block's output at `position` (N,) of each sequence, while `encode()` runs: (layers, N, D), fp32."""
    rows = position, torch.arange(len(position), device=position.device)
    outputs = []
    hooks = [b.register_forward_hook(lambda block, given, x: outputs.append(x[rows].float())) for b in blocks]
    try:
        encode()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(outputs)


def layer_features(model, images, tokens):
    """images (N, 3, H, W), tokens (N, 77) -> f_l of both towers, each (layers, N, D)."""
    first = torch.zeros(len(images), dtype=torch.long, device=images.device)
    return {
        "image": pooled_outputs(model.visual.transformer.resblocks, first, lambda: model.encode_image(images)),
        "text": pooled_outputs(model.transformer.resblocks, tokens.argmax(-1), lambda: model.encode_text(tokens)),
    }


def image_feature(visual, pooled):
    """What follows the last block: pooled (N, D) -> unit features (N, E)."""
    return F.normalize(visual.ln_post(pooled) @ visual.proj, dim=-1)


@torch.no_grad()
def class_features(model, tokens):
    """tokens (C, 77) -> unit features (C, E)."""
    return torch.cat([F.normalize(model.encode_text(part), dim=-1) for part in tokens.split(TEXTS_AT_A_TIME)])


def gradient_dependence(visual, pooled, texts, scale):
    """Eq. 4: pooled (N, D) of the last block, unit class features (C, E), 1 / tau -> (N, C).

    With probabilities p and unit image feature u, the gradient of the loss by u is scale (sum_j p_j t_j - t_y). Without
    class c it is scale (m_c - t_y), m_c the mean of the other classes' t by their own softmax. The two differ by
    scale p_c (t_c - m_c), for every y; what it becomes through normalisation, projection and norm is linear in it.
    """
    number = len(texts)
    if number < 2:
        raise UserError("Gradient Dependence compares classes: choose a dataset of two or more")
    itself = torch.eye(number, dtype=torch.bool, device=texts.device)
    rows = []
    for x in pooled:  # one by one: an image alone needs several (C, C) and (C, D)
        x = x.expand(number, -1).clone().requires_grad_()  # (C, D), a copy for each class that is left out
        u = image_feature(visual, x)  # (C, E)
        logits = scale * u[0].detach() @ texts.t()  # (C,)
        without = logits.expand(number, -1).masked_fill(itself, float("-inf")).softmax(dim=1)  # (C, C)
        change = scale * logits.softmax(dim=0)[:, None] * (texts - without @ texts)  # (C, E)
        rows.append(torch.autograd.grad(u, x, change)[0].norm(dim=1))
    return torch.stack(rows)


def measure(before, after, tokens, batches):
    """Both measures for all images of `batches`.

    Returns sensitivity {tower: (layers, N)}, dependence (N, C), similarity (N, C) before fine-tuning and labels (N,).
    """
    texts = class_features(before, tokens)  # (C, E)
    parts = []
    for batch in tqdm(batches, desc="measure", leave=False):
        images, labels = batch["img"].to(tokens.device), batch["label"].to(tokens.device)
        old, new = (layer_features(model, images, tokens[labels]) for model in (before, after))
        distance = {tower: (old[tower] - new[tower]).norm(dim=-1) for tower in old}
        pooled = old["image"][-1]
        dependence = gradient_dependence(before.visual, pooled, texts, before.logit_scale.exp())
        parts.append((distance, dependence, image_feature(before.visual, pooled) @ texts.t(), labels))
    distances, *rest = zip(*parts, strict=True)
    sensitivity = {tower: torch.cat([d[tower] for d in distances], dim=1).cpu() for tower in ("image", "text")}
    return sensitivity, *(torch.cat(part).cpu() for part in rest)


# --- what follows from them ---------------------------------------------------------------------------


def suggest_omega(scaled, threshold):
    """{tower: (layers,) sensitivity, the last 1} -> the most first layers that are below `threshold` in both towers."""
    quiet = [max(layer) < threshold for layer in zip(*scaled.values(), strict=False)]
    return (quiet[:-1] + [False]).index(False)


def kept_share(dependence, similarity, labels, ratio):
    """Mean share of an image's dependence in the classes that Eq. 7 keeps for sure: its own and the nearest."""
    own = labels[:, None]
    order = similarity.scatter(1, own, float("inf")).argsort(dim=1, descending=True)
    others = dependence.scatter(1, own, 0).gather(1, order)  # (N, C), by rank
    top = max(1, int(ratio * others.shape[1]))
    return (others[:, :top].sum(dim=1) / others.sum(dim=1)).mean().item()


def others_only(dependence, labels):
    """Dependence (N, C) with NaN in place of each image's own class."""
    return dependence.scatter(1, labels[:, None], float("nan"))


def summarise(sensitivity, dependence, similarity, labels, classnames, threshold):
    """Everything that is printed and written, in plain numbers."""
    raw = {tower: values.mean(dim=1) for tower, values in sensitivity.items()}
    if not all(values[-1] > 0 for values in raw.values()):
        raise UserError("Fine-tuning has changed nothing in one of the towers; train longer or raise OPTIM.LR")
    scaled = {tower: (values / values[-1]).tolist() for tower, values in raw.items()}
    others = others_only(dependence, labels)
    largest = others.nan_to_num().amax(dim=1, keepdim=True)
    means = zip(classnames, others.nanmean(dim=0).tolist(), strict=True)
    return {
        "images": len(labels),
        "sensitivity": {tower: values.tolist() for tower, values in raw.items()},
        "scaled_sensitivity": scaled,
        "threshold": threshold,
        "omega": suggest_omega(scaled, threshold),
        "dependence": {name: mean for name, mean in means if not math.isnan(mean)},  # NaN: shown by all images
        "dependence_quantiles": {q: others.nanquantile(q).item() for q in QUANTILES},
        "dependence_below_1_percent": ((others < 0.01 * largest).sum() / (~others.isnan()).sum()).item(),
        "dependence_kept": {ratio: kept_share(dependence, similarity, labels, ratio) for ratio in RATIOS},
    }


def show(found):
    layers = range(1, 1 + max(map(len, found["sensitivity"].values())))
    table = {"layer": layers} | found["sensitivity"]
    table |= {f"{tower} / last": values for tower, values in found["scaled_sensitivity"].items()}
    quantiles = [f"{q:.0%} at most {value:.3g}" for q, value in found["dependence_quantiles"].items()]
    kept = [f"{ratio}: {share:.1%}" for ratio, share in found["dependence_kept"].items()]
    ranked = [f"{name} {value:.3g}" for name, value in sorted(found["dependence"].items(), key=lambda item: -item[1])]
    print(f"\nFeature Sensitivity (Eq. 3), mean of {found['images']} training images\n")
    print(tabulate(table, headers="keys", floatfmt=".3f"))
    print(f"\nSuggested: TRAINER.SKIPTUNING.OMEGA {found['omega']}, ", end="")
    print(f"the first layers below {found['threshold']:g} of the last in both towers")
    print("\nGradient Dependence (Eq. 4) of the classes that an image doesn't show\n")
    print(", ".join(quantiles), f"{found['dependence_below_1_percent']:.0%} below 1% of the image's largest", sep="; ")
    print(f"Share of it in the classes that CSkip keeps for sure, by R: {', '.join(kept)}")
    print(f"Largest mean of a class: {', '.join(ranked[:3])}; smallest: {', '.join(ranked[-3:])}\n")


def paint(figure, found, values):
    """Figure 2(b) and (c); `values`: Gradient Dependence of every image and class."""
    layers, classes = figure.subplots(1, 2)
    for tower, scaled in found["scaled_sensitivity"].items():
        layers.plot(range(1, 1 + len(scaled)), scaled, marker="o", label=f"{tower} encoder")
    layers.set_ylim(bottom=0)
    layers.axhline(found["threshold"], color="grey", linestyle=":")
    layers.axvline(found["omega"] + 0.5, color="grey", linestyle="--", label=f"suggested: ω = {found['omega']}")
    layers.set(xlabel="layer", ylabel="Feature Sensitivity / last layer's")
    layers.legend()
    classes.hist(values, bins=50, log=True)
    classes.set(xlabel="Gradient Dependence", ylabel="images x classes")


# --- command line -------------------------------------------------------------------------------------


def parse(argv):
    """-> our flags, and train.py's words with the defaults in front."""
    parser = Parser(
        prog="python -m benchmarks.sensitivity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--images", type=int, default=100, help="random training images (default: 100)")
    parser.add_argument("--threshold", type=float, default=0.05, help="for OMEGA (default: 0.05)")
    parser.add_argument("--json", metavar="FILE", help="all that is printed, and the mean of every class")
    parser.add_argument("--png", metavar="FILE", help="plot (default: sensitivity.png in the run's folder)")
    own, rest = parser.parse_known_args(argv)
    if own.images < 1:
        raise UserError(f"--images is {own.images}; give 1 or more")
    return own, [word for pair in DEFAULTS.items() for word in pair] + rest


def sample(dataset, number, seed):
    """`number` random training images, or all if there are fewer."""
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:number]
    return [dataset[i] for i in chosen.tolist()]


def load(cfg, folder, number):
    """The model before and after fine-tuning in fp32, the prompts' tokens (C, 77), class names and image batches."""
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    before = copy.deepcopy(trainer.clip_model).float().eval()
    trainer.load_model(folder, epoch=cfg.EVAL.EPOCH)
    after = trainer.clip_model.float().eval()
    names = trainer.dm.dataset.classnames
    tokens = clip.tokenize([trainer.template().format(name.replace("_", " ")) for name in names])
    images = build_data_loader(
        cfg,
        data_source=sample(trainer.dm.dataset.train_x, number, cfg.SEED),
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        tfm=build_transform(cfg, is_train=False),
        is_train=False,
    )
    return before, after, tokens.to(trainer.device), names, images


def run(argv):
    own, words = parse(argv)
    args = train.parse(words)
    cfg, _ = train.configure(args)
    if cfg.TRAINER.NAME != "FinetuneCLIP":
        raise UserError(f"It is full fine-tuning that is measured, not {cfg.TRAINER.NAME}: leave out --trainer")
    train.check(args, cfg)
    if not cfg.EVAL.MODEL_DIR and (code := train.main(words)):
        return code
    folder = cfg.EVAL.MODEL_DIR or cfg.OUTPUT_DIR
    before, after, tokens, names, images = load(cfg, folder, own.images)
    sensitivity, dependence, similarity, labels = measure(before, after, tokens, images)
    found = summarise(sensitivity, dependence, similarity, labels, names, own.threshold)
    show(found)
    if own.json:
        about = {"model": folder, "backbone": cfg.MODEL.BACKBONE.NAME, "dataset": cfg.DATASET.NAME}
        write_json(about | found, own.json)
    values = others_only(dependence, labels)
    plot(own.png or Path(folder) / "sensitivity.png", lambda f: paint(f, found, values[~values.isnan()]), size=(10, 4))
    return 0


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(argv), "the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
