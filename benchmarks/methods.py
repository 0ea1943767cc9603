"""What training costs with every method that trains, each by its official recipe, against Skip Tuning.

ViT-B/16 with random weights and made-up images and class names; nothing is downloaded. Everything is measured in one
run on the CPU, the methods taking turns, each with the savings that change no number on (trainers/parts/trainer.py) and
in the same precision. The paper's ratios stand beside ours: its times are of its own code on a GPU, its memory is an
estimate.
"""

import sys
from functools import partial
from typing import NamedTuple

import torch

from dassl.engine.result import learned_parameters
from results.costs import OURS, method_tables
from trainers.lp_pp import LPpp
from trainers.parts.cache import FeatureCache
from trainers.parts.cskip import mean_kept
from trainers.tip_adapter import TipAdapterF
from trainers.two_sfs import TwoSFS

from .measure import STEADY, interleaved, machine, parser, report, show
from .model import IMAGES, SHAPE, Bench, prepare, quiet
from .paper_memory import estimate, prompt_layer, teacher


class Method(NamedTuple):
    trainer: str
    preset: str = ""  # beside the official recipe
    memory: object = None  # (images, classes) -> the paper's estimate; None: not known how it came about


def prompted(images, classes):
    """Both towers, their texts from embedded prompts."""
    return estimate(images, classes, tokens=False)


def with_layer(images, classes):
    return prompted(images, classes) + prompt_layer(classes)


def with_teacher(images, classes):
    return prompted(images, classes) + teacher(images)


def skipping(omega):
    """Skip Tuning on the classes that it keeps on average."""

    def memory(images, classes):
        return estimate(images, mean_kept(classes, 0.5), 12 - omega, pixels=False)

    return memory


METHODS = {
    "CoOp": Method("CoOp", memory=with_layer),
    "CoCoOp": Method("CoCoOp", memory=prompted),
    "ProGrad": Method("ProGrad", memory=with_layer),
    "KgCoOp": Method("KgCoOp", memory=prompted),
    "MaPLe": Method("MaPLe", memory=with_layer),
    "IVLP": Method("IVLP", memory=prompted),
    "PromptSRC": Method("PromptSRC", memory=with_teacher),
    "TCP": Method("TCP", memory=prompted),
    "DePT": Method("DePT", memory=prompted),
    "CoPrompt": Method("CoPrompt", memory=with_teacher),
    "FinetuneCLIP": Method("FinetuneCLIP", memory=estimate),
    "MMRL": Method("MMRL"),
    "MMRLpp": Method("MMRLpp"),
    "CLIPAdapter": Method("CLIPAdapter"),
    "CLIPLoRA": Method("CLIPLoRA"),
    "TipAdapterF": Method("TipAdapterF"),
    "TwoSFS": Method("TwoSFS"),
    "CLIPSVD": Method("CLIPSVD"),
    "ProLIP": Method("ProLIP"),
    "LPpp": Method("LPpp"),
    OURS: Method(OURS, memory=skipping(6)),
    "CLIPAdapter†": Method("CLIPAdapter", "cached"),
    "SkipTuning†": Method(OURS, "cached", skipping(11)),
}


def ready(bench, method, classes, precision):
    """The trainer before its first step, all it encodes once encoded but training images (see `images_encoded`)."""
    trainer = bench.trainer(method.trainer, method.preset, classes, precision)
    for kind, name in ((TipAdapterF, "fill"), (LPpp, "start")):
        if isinstance(trainer, kind):
            setattr(trainer, name, lambda: None)
    with quiet():
        trainer.before_train()
    return trainer


def step(bench, trainer, classes):
    """A function that makes one training step: from features where the trainer caches them, else from pixels."""
    loader = trainer.train_loader_x
    pixels, images = bench.pixels, loader.batch_size
    one = loader.encode(pixels[:1]) if isinstance(loader, FeatureCache) else pixels[:1]
    batch = torch.randn(images, *one.shape[1:], dtype=one.dtype)
    views = loader.dataset.k_tfm
    image = batch if views == 1 else [batch] * views
    key = "features" if isinstance(loader, FeatureCache) else "img"
    return lambda: trainer.forward_backward({key: image, "label": torch.randint(classes, (images,))})


def cache_of(trainer):
    """The loader with cached features, of 2SFS that of stage 2; None if the method has none."""
    loader = trainer.second_loader if isinstance(trainer, TwoSFS) else trainer.train_loader_x
    return loader if isinstance(loader, FeatureCache) else None


def epochs_of(trainer):
    """(epochs whose steps are measured, epochs that take cached features)."""
    if isinstance(trainer, TwoSFS):
        return trainer.first_epochs, trainer.max_epoch - trainer.first_epochs
    return trainer.max_epoch, trainer.max_epoch


def images_encoded(trainer):
    """How many images a run encodes beside its steps: some views of each, or fresh ones in every epoch."""
    loader = cache_of(trainer)
    if loader is None:
        return 0
    views = (loader.views or epochs_of(trainer)[1]) + trainer.options.get("KEY_VIEWS", 0)
    return views * len(loader.labels)


def measure(bench, classes, methods, precision, rounds, progress):
    """{method: its row} with `classes` base classes."""
    trainers, runs, rows, extract = {}, {}, {}, {}
    for name in methods:
        progress(f"{classes} base classes: {name}")
        method = METHODS[name]

        def make(name=name, method=method):
            trainers[name] = ready(bench, method, classes, precision)
            return step(bench, trainers[name], classes)

        runs[name], _, peak = prepare(make)
        trainer = trainers[name]
        images = trainer.train_loader_x.batch_size
        rows[name] = {
            "images": images,
            "epochs": trainer.max_epoch,
            "steps": epochs_of(trainer)[0] * len(trainer.train_loader_x),
            "peak_mb": peak,
            "paper_mb": method.memory and method.memory(images, classes),
            "learned": learned_parameters(trainer),
        }
        if loader := cache_of(trainer):
            extract[name] = lambda loader=loader: loader.encode(bench.pixels)
    progress(f"{classes} base classes: the methods take turns")
    for name, taken in interleaved(runs, rounds, *STEADY).items():
        rows[name]["ms"] = taken * 1e3
    for name, taken in interleaved(extract, rounds).items():
        rows[name]["images_per_second"] = IMAGES / taken
    for name, row in rows.items():
        encoded = images_encoded(trainers[name])
        encoding = encoded / row["images_per_second"] if encoded else 0
        row["once_s"] = trainers[name].extract_seconds  # what is encoded once, before the first step
        row["run_s"] = row["once_s"] + row["steps"] * row["ms"] / 1e3 + encoding
    return rows


def run(shape, methods, precision, folder, numbers, rounds, progress=lambda text: None):
    """All measurements as one dictionary, what `--json` writes: {M: {method: row}}."""
    bench = Bench(folder, shape)
    rows = {number: measure(bench, number, methods, precision, rounds, progress) for number in numbers}
    return {"machine": machine(), "precision": precision, "rows": rows}


def table(result):
    """The result as text."""
    return show(result["machine"], *method_tables(result))


def main(argv=None):
    options = parser("methods", __doc__, [50, 500])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="NAME", help="some of them")
    options.add_argument("--prec", choices=("fp32", "bf16"), default="fp32", help="of every method (default: fp32)")
    args = options.parse_args(argv)
    methods = [name for name in METHODS if name in {*args.methods, OURS}]
    return report(args, partial(run, SHAPE, methods, args.prec), table)


if __name__ == "__main__":
    sys.exit(main())
