"""What the cost benchmarks wrote with --json -> figures."""

from pathlib import Path

from .gate import LOG_LIMIT, read_json
from .published import Published

OURS = "SkipTuning"
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
]
STEP_COLUMNS = [
    *(["row", "", "text"], ["ms", "ms/step", "count"], ["ms_ft", "FT/", "ratio1"], ["ms_both", "both/", "ratio1"]),
    *(["floor_ms", "floor ms", "count"], ["run_s", "run s", "count"], ["run_ft", "FT/", "ratio1"]),
    *(["peak_mb", "peak MB", "count"], ["peak_ft", "FT/", "ratio1"], ["paper_mb", "paper-style MB", "count"]),
]
RATE_COLUMNS = [["row", "images/s", "text"], ["extract", "extraction", "rate"], ["test", "test", "rate"]]
STEP_NOTES = [
    "a step: 4 images; CSkip keeps at most 50 classes for sure. FT/, both/: the cost of FT plain and of both plain",
    "  over the row's. run s: 16 shots, 20 epochs, a fresh view of each image in each: measured step and extraction,",
    "  multiplied; reading images is not in it. (~): a straight line through the two smallest numbers of classes.",
    "floor: operations of the row's matrix products over the rate of a large one, in the row's precision.",
    "peak MB: measured in a step: all tensors that PyTorch allocated (weights, gradients, optimizer, activations),",
    "  without what a kernel needs for itself and, on the CPU, without the skipped half, which lies in a mapped file.",
    "paper-style MB: the estimate that the paper's tables give (benchmarks/paper_memory.py).",
    "images/s: once the classes are encoded; in brackets over the plain forward pass of both halves.",
]


def over(value: float | None, reference: float | None) -> float | None:
    """How many times the reference a value is; None where one of them is unknown or zero."""
    return value / reference if value and reference else None


def methods(file: Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """benchmarks.methods --json FILE -> a table for each number of classes, no problems, notes."""
    result = read_json(file, LOG_LIMIT)
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
    return tables, {}, METHOD_NOTES


def skip_tuning(file: Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """benchmarks.skip_tuning --json FILE -> a table for each number of classes and one of rates, no problems, notes."""
    result = read_json(file, LOG_LIMIT)
    tables = []
    for classes, rows in result["steps"].items():
        lines = []
        full, both = rows.get("FT plain", {}), rows.get("both plain", {})
        for name, row in rows.items():
            line = {"row": f"{name} (~)" if row.get("extrapolated") else name}
            line |= {key: row[key] for key in ("ms", "floor_ms", "run_s", "peak_mb", "paper_mb")}
            line |= {"ms_ft": over(full.get("ms"), row["ms"]), "ms_both": over(both.get("ms"), row["ms"])}
            line |= {"run_ft": over(full.get("run_s"), row["run_s"])}
            lines.append(line | {"peak_ft": over(full.get("peak_mb"), row["peak_mb"])})
        tables.append({"title": f"{classes} base classes", "columns": STEP_COLUMNS, "rows": lines})
    rates = result["images_per_second"]
    reference = rates["plain"]["test"]
    lines = []
    for name, rate in rates.items():
        lines.append({"row": name} | {kind: [rate[kind], rate[kind] / reference] for kind in ("extract", "test")})
    tables.append({"title": "", "columns": RATE_COLUMNS, "rows": lines})
    flops = ", ".join(f"{name} {rate:.0f}" for name, rate in result["matmul_gflops"].items())
    return tables, {}, [*STEP_NOTES, f"large matrix products: {flops} GFLOP/s"]
