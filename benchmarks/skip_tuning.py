"""What a training step, an extraction, a test and a whole run of Skip Tuning cost, against full fine-tuning (FT).

ViT-B/16 with random weights and made-up images and class names; nothing is downloaded. Everything is measured in one
run on the CPU, the rows taking turns. "plain" is benchmarks/plain.py, the paper as it stands; "exact" is the trainer
with its savings that change nothing but the cost, preset `recommended`.
"""

import statistics
import sys
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from clip import clip
from results.costs import skip_tuning_tables
from trainers.parts.cskip import keep_probability, mean_kept
from trainers.parts.precision import cpu_precision

from .measure import STEADY, allocator, interleaved, machine, parser, report, show, turns
from .model import IMAGES, SHAPE, SHOTS, Bench, class_names, prepare, quiet
from .paper_memory import estimate
from .plain import PlainStep, deep_image, shallow_image

BATCH, EPOCHS = 4, 20  # of the whole run: the recommended preset, base-to-new
FT, BOTH = "FT plain", "both plain"
PLAIN = {FT: (0, 1.0), "LSkip only, plain": (6, 1.0), "CSkip only, plain": (0, 0.5), BOTH: (6, 0.5)}  # omega, r
EXACT = {"both exact": "fp32", "both exact, bf16": "bf16"}
MATRIX, LIMIT = 2048, "limit"  # rows and columns of the products that rates are compared with; their key
VIEWS = {"1 view": 1, "5 views": 5, "fresh in 20 epochs": 0}  # cached of each image; 0: a fresh one in every epoch
FITS = 100  # classes up to which rows that keep all of them are measured; beyond, their cost is a straight line


def exact_rows():
    """EXACT; on a CPU that only imitates products of bf16 without that row, a step of which would take minutes."""
    imitated = cpu_precision()[0] != "bf16"
    return {name: precision for name, precision in EXACT.items() if precision == "fp32" or not imitated}


def labels(classes):
    return torch.randint(classes, (BATCH,))


def plain_step(bench, classes, omega, ratio):
    """A function that makes one plain step."""
    model = bench.clip_model()
    tokens = clip.tokenize([f"a photo of a {name}." for name in class_names(classes)])
    width = model.transformer.width
    t = torch.randn(model.context_length, classes, width)  # what the features are doesn't change what they cost
    zero_shot = torch.nn.functional.normalize(torch.randn(classes, model.text_projection.shape[1]), dim=-1)
    probability = None if ratio == 1 else keep_probability(classes, ratio, 0.3, 50)
    step = PlainStep(model, tokens, omega, t, probability, zero_shot)
    cached = shallow_image(model.visual, bench.pixels[:BATCH], omega)  # (L, B, D)

    def run():
        v = cached if omega else shallow_image(model.visual, bench.pixels[:BATCH], 0)
        step(v, labels(classes))

    return run


def exact_step(bench, trainer, classes):
    """A function that makes one step of the trainer."""
    v = trainer.encode_shallow(bench.pixels[:BATCH])
    return lambda: trainer.forward_backward({"features": v, "label": labels(classes)})


def with_limits(rows):
    """Each of {row or (row, ...): function}, followed by (..., LIMIT): a large matrix product in the row's precision.

    The two take turns side by side, as a machine's speed may change within minutes.
    """
    found = {}
    for key, function in rows.items():
        name, *kind = key if isinstance(key, tuple) else (key,)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[EXACT.get(name, "fp32")]
        a = torch.randn(MATRIX, MATRIX, dtype=dtype)
        found |= {key: function, (name, *kind, LIMIT): partial(torch.matmul, a, a)}
    return found


def rate_of(seconds):
    """Floating-point operations per second of a large matrix product that takes so long."""
    return 2 * MATRIX**3 / seconds


def image_rates(bench, trainers, rounds):
    """{row: images per second of "extract" and "test", and their operations for an image}.

    Classes are encoded before, as in an evaluation.
    """
    visual = bench.clip_model().visual
    rows = {
        ("plain", "extract"): lambda: shallow_image(visual, bench.pixels, 6),
        ("plain", "test"): lambda: deep_image(visual, shallow_image(visual, bench.pixels, 6), 6),
    }
    for name, trainer in trainers.items():
        trainer.tested_features = trainer.class_features()
        rows[name, "extract"] = lambda trainer=trainer: trainer.encode_shallow(bench.pixels)
        rows[name, "test"] = lambda trainer=trainer: trainer.model_inference(bench.pixels)
    rates = {}
    with torch.no_grad():
        spent = interleaved(with_limits(rows), rounds, *STEADY)
        for name, kind in rows:
            with FlopCounterMode(display=False) as counter:
                rows[name, kind]()
            rate, flops = IMAGES / spent[name, kind], counter.get_total_flops() / IMAGES
            limit = rate_of(spent[name, kind, LIMIT])
            found = {kind: rate, f"{kind}_gflop": flops / 1e9, f"{kind}_limit_gflops": limit / 1e9}
            found[f"{kind}_share"] = rate * flops / limit
            rates.setdefault(name, {}).update(found)
    return rates


def measure(bench, classes, rounds):
    """{row: its figures} of one training step with `classes` base classes, and the trainers."""
    makers, built = {}, {}
    for name, (omega, ratio) in PLAIN.items():
        if ratio < 1 or classes <= FITS:
            makers[name] = lambda omega=omega, ratio=ratio: plain_step(bench, classes, omega, ratio)
    for name, precision in exact_rows().items():

        def make(name=name, precision=precision):
            built[name] = bench.trainer("SkipTuning", "", classes, precision)
            with quiet():
                built[name].before_train()
            return exact_step(bench, built[name], classes)

        makers[name] = make
    runs, rows = {}, {}
    for name, make in makers.items():
        runs[name], flops, peak = prepare(make)
        omega, ratio = PLAIN.get(name, (6, 0.5))
        paper = estimate(BATCH, mean_kept(classes, ratio), 12 - omega, pixels=not omega)
        rows[name] = {"peak_mb": peak, "paper_mb": paper, "gflop": flops / 1e9}
    found = turns(with_limits(runs), rounds, *STEADY)
    for name, row in rows.items():
        taken = found[name]
        low, middle, high = (1e3 * pick(one.seconds for one in taken) for pick in (min, statistics.median, max))
        faults = [one.page_faults for one in taken if one.page_faults is not None]
        limit = rate_of(statistics.median(one.seconds for one in found[name, LIMIT])) / 1e9
        row |= {"ms": middle, "ms_low": low, "ms_high": high, "limit_gflops": limit}
        row |= {"floor_ms": 1e3 * row["gflop"] / limit, "page_faults": statistics.median(faults) if faults else None}
    return rows, built


def extrapolate(steps):
    """Add the rows that were too large to measure: their cost is a straight line in the number of classes."""
    low, high = sorted(steps)[:2] if len(steps) > 1 else (None, None)
    for classes, rows in steps.items():
        for name in PLAIN:
            if name in rows or high is None or high > FITS:
                continue
            a, b = steps[low][name], steps[high][name]
            share = (classes - low) / (high - low)
            keys = a.keys() & {"ms", "gflop", "peak_mb", "paper_mb"}
            row = {key: a[key] + share * (b[key] - a[key]) for key in keys}
            limit = (a["limit_gflops"] + b["limit_gflops"]) / 2
            rows[name] = row | {"extrapolated": True, "limit_gflops": limit, "floor_ms": 1e3 * row["gflop"] / limit}


def whole_run(name, row, classes, rates):
    """Seconds of a 16-shot run of 20 epochs with a fresh view in each: measured steps and extraction, multiplied."""
    images = classes * SHOTS * EPOCHS
    extracts = 0 if PLAIN.get(name, (6,))[0] == 0 else images / rates[name if name in EXACT else "plain"]["extract"]
    return images / BATCH * row["ms"] / 1e3 + extracts


def cache(bench, trainers, classes, rates):
    """{row: {views: what they cost a run}}: GB that lie there together, where, and seconds of all extractions."""
    rows = {}
    for name, trainer in trainers.items():
        images = classes * SHOTS
        size = images * trainer.encode_shallow(bench.pixels[:1]).nbytes / 1e9
        rows[name] = {}
        for label, views in VIEWS.items():
            gb = max(views, 1) * size  # a fresh view takes the place of the one before
            place = "memory" if gb <= trainer.options.CACHE_LIMIT else "a mapped file"
            spent = images * (views or EPOCHS) / rates[name]["extract"]
            rows[name][label] = {"gb": gb, "place": place, "extract_s": spent}
    return rows


def run(shape, folder, numbers, rounds, progress=lambda text: None):
    """All measurements as one dictionary, what `--json` writes."""
    bench = Bench(folder, shape)
    steps, cached, rates = {}, {}, None
    for classes in numbers:
        progress(f"{classes} base classes")
        steps[classes], built = measure(bench, classes, rounds)
        rates = rates or image_rates(bench, built, rounds)
        cached[classes] = cache(bench, built, classes, rates)
    extrapolate(steps)
    steps = {
        classes: {name: rows[name] for name in (*PLAIN, *EXACT) if name in rows} for classes, rows in steps.items()
    }
    limits = {precision: [] for precision in exact_rows().values()}
    for classes, rows in steps.items():
        for name, row in rows.items():
            row["run_s"] = whole_run(name, row, classes, rates)
            limits[EXACT.get(name, "fp32")].append(row["limit_gflops"])
    matmul = {precision: [min(found), max(found)] for precision, found in limits.items()}
    told = {"machine": machine(), "allocator": allocator()}
    return told | {"matmul_gflops": matmul, "images_per_second": rates, "steps": steps, "cache": cached}


def table(result):
    """The result as text."""
    head = f"{result['machine']}\nmemory: {result['allocator']}"
    return show(head, *skip_tuning_tables(result))


def main(argv=None):
    args = parser("skip_tuning", __doc__, [50, 100, 1000, 5000]).parse_args(argv)
    return report(args, partial(run, SHAPE), table)


if __name__ == "__main__":
    sys.exit(main())
