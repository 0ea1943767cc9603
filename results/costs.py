"""What the benchmarks measured -> figures."""

from collections.abc import Callable
from pathlib import Path

from .gate import LOG_LIMIT, read_json
from .published import Published

OURS = "SkipTuning"
EXACT = "both exact"  # the row in fp32 that bf16 is compared with
METHOD_COLUMNS = [
    *(["method", "", "text"], ["images", "batch", "count"], ["epochs", "epochs", "count"], ["ms", "ms/step", "count"]),
    *(["run_s", "run s", "count"], ["run_ratio", "ratio", "ratio"], ["paper_time", "paper", "ratio"]),
    *(["peak_mb", "peak MB", "count"], ["peak_mb_ratio", "ratio", "ratio"]),
    *(["paper_mb", "paper-style", "count"], ["paper_mb_ratio", "ratio", "ratio"], ["paper_memory", "paper", "ratio"]),
    ["learned", "learned", "count"],
]
METHOD_NOTES = [
    "run s: the official base-to-new recipe with 16 shots: measured steps, and images encoded beside them, multiplied;",
    "  reading images and testing are not in it. ratio: the row's cost over Skip Tuning's; paper: that in the paper's",
    "  Tables 1 and 5, which average over 11 datasets and measured some methods with other recipes (CoOp: 100 epochs,",
    "  KgCoOp: batches of 32).",
    "peak MB: measured in a step: all tensors that PyTorch allocated (weights, gradients, optimizer, activations),",
    "  without what a kernel needs for itself and, on the CPU, what no step runs through, which lies in a mapped file.",
    "paper-style: the estimate that the paper's tables give (benchmarks/paper_memory.py), in MB.",
    "†: on features of each image that are cached once. PromptSRC and CoPrompt encode 60 texts of every class once.",
    "  TwoSFS: the steps of stage 1, and the images that stage 2 encodes; its own steps, of a linear layer, are not in",
    "  it.",
]
STEP_COLUMNS = [
    *(["row", "", "text"], ["ms", "ms/step", "count"], ["ms_low", "low", "count"], ["ms_high", "high", "count"]),
    *(["page_faults", "page faults", "count"], ["ms_ft", "FT/", "ratio1"], ["ms_both", "both/", "ratio1"]),
    *(["ms_fp32", "fp32/", "ratio1"], ["floor_ms", "floor ms", "count"], ["over_floor", "ms/floor", "ratio"]),
]
RUN_COLUMNS = [
    *(["row", "", "text"], ["run_s", "run s", "count"], ["run_ft", "FT/", "ratio1"]),
    *(["peak_mb", "peak MB", "count"], ["peak_ft", "FT/", "ratio1"], ["paper_mb", "paper-style MB", "count"]),
]
RATE_COLUMNS = [
    *(["row", "images/s", "text"], ["extract", "extraction", "rate"], ["extract_fp32", "/fp32", "ratio1"]),
    *(["extract_share", "of the limit", "share"], ["test", "test", "rate"], ["test_fp32", "/fp32", "ratio1"]),
    ["test_share", "of the limit", "share"],
]
CACHE_COLUMNS = [
    *(["classes", "M", "number"], ["row", "cached images", "text"], ["views", "views", "text"]),
    *(["gb", "GB", "cost"], ["place", "in", "text"], ["extract_s", "extraction s", "cost"]),
]
IMAGE_COLUMNS = [
    *(["images", "images/s", "text"], ["transform", "", "text"], ["decoding", "decoding", "cost"]),
    *(["plain", "plain", "cost"], ["ours", "ours", "cost"], ["ratio", "/plain", "ratio1"], ["again", "again", "cost"]),
    *(["gain", "/ours", "ratio1"], ["again_plain", "/plain", "ratio1"]),
    ["largest", "difference", "percent1"],
]
LOADER_COLUMNS = [
    *(["loader", "images/s", "text"], ["decoded each time", "decoded each time", "cost"]),
    *(["kept", "kept", "cost"], ["gain", "gain", "ratio1"]),
]
IMAGE_NOTES = [
    "one core: from a file to a normalised tensor of 224 px. decoding: Pillow's part, which both share. plain: Pillow",
    "  and torchvision, as in CoOp. again: ours from the second epoch on, of images that lie decoded in memory.",
    "difference: the largest between plain's and our tensors for the same random numbers, in steps of an 8-bit pixel.",
    "draft: half the size straight from the JPEG's decoder; it is not used, because of its difference.",
    "loader: the whole way from JPEGs of 500 px to training batches, in an epoch behind the first one; workers start",
    "  anew in each epoch.",
]
LAYER_COLUMNS = [["layer", "layer", "number"], ["image", "image encoder", "share"], ["text", "text encoder", "share"]]
KEPT_COLUMNS = [["ratio", "r", "text"], ["share", "in the classes kept for sure", "share"]]
STEP_NOTES = [
    "a step: 4 images; CSkip keeps at most 50 classes for sure. ms/step: the median of the turns, each the median of",
    "  some steps behind unmeasured ones; low and high are of the turns. page faults of such a step: fresh memory from",
    "  the system, which costs time. FT/, both/, fp32/: the cost of FT plain, of both plain and of both exact (in",
    "  fp32) over the row's. (~): a straight line through the two smallest numbers of classes.",
    "floor: operations of the row's matrix products over the rate of a large one, in the row's precision, which was",
    "  measured beside the row.",
    "run s: 16 shots, 20 epochs, a fresh view of each image in each: measured step and extraction, multiplied; reading",
    "  images is not in it.",
    "peak MB: measured in a step: all tensors that PyTorch allocated (weights, gradients, optimizer, activations),",
    "  without what a kernel needs for itself and, on the CPU, without the skipped half, which lies in a mapped file.",
    "paper-style MB: the estimate that the paper's tables give (benchmarks/paper_memory.py).",
    "images/s: once the classes are encoded; in brackets over the plain forward pass of both halves. /fp32: over both",
    "  exact. of the limit: the share of a large product's rate at which the row's products run, all else included.",
    "cached images: M base classes, 16 shots, the whole run's extraction; a fresh view takes the last one's place.",
]


def over(value: float | None, reference: float | None) -> float | None:
    """How many times the reference a value is; None where one of them is unknown or zero."""
    return value / reference if value and reference else None


def method_tables(result: dict) -> tuple[list[dict], list[str]]:
    """What benchmarks.methods measured -> a table for each number of classes, notes."""
    paper = Published().averages("base2new", "Average of 11")
    tables = []
    for classes, rows in result["rows"].items():
        ours, lines = rows[OURS], []
        for name, row in rows.items():
            line = {"method": name} | {key: row[key] for key in ("images", "epochs", "ms", "run_s", "peak_mb")}
            line |= {"paper_mb": row["paper_mb"], "run_ratio": over(row["run_s"], ours["run_s"])}
            for key in ("peak_mb", "paper_mb"):
                line[f"{key}_ratio"] = over(row[key], ours[key])
            for key, metric in (("paper_time", "train seconds"), ("paper_memory", "estimated memory MB")):
                line[key] = over(paper.get((name, metric)), paper.get((OURS, metric)))
            lines.append(line | {"learned": row["learned"]})
        title = f"{classes} base classes, {result['precision']}"
        tables.append({"title": title, "columns": METHOD_COLUMNS, "rows": lines})
    return tables, METHOD_NOTES


def step_tables(classes: int | str, rows: dict[str, dict]) -> list[dict]:
    """With this number of classes: a step, and a run with its memory."""
    lines = []
    full, both, exact = (rows.get(name, {}) for name in ("FT plain", "both plain", EXACT))
    for name, row in rows.items():
        line = {"row": f"{name} (~)" if row.get("extrapolated") else name}
        line |= {key: row.get(key) for key in ("ms", "ms_low", "ms_high", "page_faults")}
        for key, reference in (("ms_ft", full), ("ms_both", both), ("ms_fp32", exact)):
            line[key] = over(reference.get("ms"), row["ms"])
        line |= {"over_floor": over(row["ms"], row["floor_ms"]), "run_ft": over(full.get("run_s"), row["run_s"])}
        line |= {key: row[key] for key in ("floor_ms", "run_s", "peak_mb", "paper_mb")}
        lines.append(line | {"peak_ft": over(full.get("peak_mb"), row["peak_mb"])})
    step = {"title": f"{classes} base classes: a step", "columns": STEP_COLUMNS, "rows": lines}
    return [step, {"title": f"{classes} base classes: a run", "columns": RUN_COLUMNS, "rows": lines}]


def rate_table(rates: dict[str, dict]) -> dict:
    """Images per second of extraction and test."""
    lines, full = [], rates["plain"]["test"]
    for name, rate in rates.items():
        line = {"row": name}
        for kind in ("extract", "test"):
            line[kind] = [rate[kind], rate[kind] / full]
            line[f"{kind}_fp32"] = over(rate[kind], rates[EXACT][kind])
            line[f"{kind}_share"] = 100 * rate[f"{kind}_share"]
        lines.append(line)
    return {"title": "", "columns": RATE_COLUMNS, "rows": lines}


def cache_table(cache: dict) -> dict:
    """Where cached images lie, and what they take."""
    lines = [
        {"classes": classes, "row": name, "views": views} | found
        for classes, rows in cache.items()
        for name, kinds in rows.items()
        for views, found in kinds.items()
    ]
    return {"title": "", "columns": CACHE_COLUMNS, "rows": lines}


def skip_tuning_tables(result: dict) -> tuple[list[dict], list[str]]:
    """What benchmarks.skip_tuning measured -> tables for each number of classes, of rates and of caches, notes."""
    tables = [table for classes, rows in result["steps"].items() for table in step_tables(classes, rows)]
    tables += [rate_table(result["images_per_second"]), cache_table(result["cache"])]
    rates = result["matmul_gflops"]
    spread = ", ".join(f"{name} {low:.0f} to {high:.0f}" for name, (low, high) in rates.items())
    notes = [*STEP_NOTES, f"large matrix products, beside the rows: {spread} GFLOP/s"]
    if "bf16" not in rates:
        notes.append("bf16: not measured, this CPU has no products of it")
    return tables, notes


def data_tables(result: dict) -> tuple[list[dict], list[str]]:
    """What benchmarks.data measured -> tables of images and of the loader, notes."""
    images = [row | {"again_plain": over(row["again"], row["plain"])} for row in result["rows"]]
    tables = [
        {"title": "", "columns": IMAGE_COLUMNS, "rows": images},
        {"title": "", "columns": LOADER_COLUMNS, "rows": result["loader"]},
    ]
    return tables, IMAGE_NOTES


def sensitivity_tables(result: dict) -> tuple[list[dict], list[str]]:
    """What benchmarks.sensitivity measured -> tables of layers and of what CSkip keeps, notes."""
    layers = {tower: [100 * value for value in scaled] for tower, scaled in result["scaled_sensitivity"].items()}
    lines = [{"layer": 1 + at} for at in range(max(map(len, layers.values())))]
    for tower, values in layers.items():
        for line, value in zip(lines, values, strict=False):
            line[tower] = value
    kept = [{"ratio": ratio, "share": 100 * share} for ratio, share in result["dependence_kept"].items()]
    tables = [
        {"title": "Feature Sensitivity (Eq. 3), of the last layer's", "columns": LAYER_COLUMNS, "rows": lines},
        {
            "title": "Gradient Dependence (Eq. 4) of the classes that an image doesn't show",
            "columns": KEPT_COLUMNS,
            "rows": kept,
        },
    ]
    return tables, [
        f"means of {result['images']} training images; suggested: ω = {result['omega']}, the first layers below",
        f"  {result['threshold']:.0%} of the last one in both towers; r: CSkip keeps the nearest r of classes for sure",
    ]


def reader(tables: Callable[[dict], tuple[list[dict], list[str]]]) -> Callable:
    """What makes figures of a benchmark's --json FILE: a function of the file -> (tables, no problems, notes)."""

    def read(file: Path) -> tuple[list[dict], dict[Path, str], list[str]]:
        made, notes = tables(read_json(file, LOG_LIMIT))
        return made, {}, notes

    return read
