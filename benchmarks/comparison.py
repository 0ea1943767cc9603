"""The paper's Tables 1 and 5 for one data set: what scripts/compare.sh leaves, with the paper's own numbers beside.

    python -m benchmarks.comparison output/compare

Base, New and H are means over seeds, H seed by seed with its sample standard deviation; training seconds include
feature extraction, peak memory is that of training. One table each for every method's own recipe and for Skip Tuning's
batch size and epochs. A run that is missing or broken is listed and left out.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read.
"""

import argparse
import json
import sys
from pathlib import Path

from tabulate import tabulate

from parse_test_res import (
    Published,
    build_tables,
    cost,
    finish,
    percent,
    read_folder,
    seeds_behind,
    shown,
    spread_name,
)

CONFIGS = Path(__file__).parents[1] / "configs" / "trainers"
OURS = "SkipTuning"
TABLES = {  # the paper's rows in its order, and ours beside them
    "Table 1, prompt tuning": (
        *("ZeroshotCLIP", "CoOp", "CoCoOp", "ProGrad", "KgCoOp", "MaPLe", "IVLP", "PromptSRC", "TCP", "DePT"),
        *("CoPrompt", OURS),
    ),
    "Table 5, fine-tuning and adapters": (
        *("FinetuneCLIP", "CLIPAdapter", "CLIPLoRA", "TipAdapter", "TipAdapterF", OURS),
        *("CLIPAdapter†", "SkipTuning†"),
    ),
}
RECIPES = {"": "each method's own recipe", "_matched": "Skip Tuning's batch size and epochs"}
ACCURACIES = ("Base", "New", "H")
COSTS = {"Train s": "train seconds", "Peak MB": "estimated memory MB"}  # ours: the paper's
HEADER = ["", *ACCURACIES, "Train s", "ratio", "Peak MB", "ratio", "learned", "n"]
PAPER = [f"paper\n{name}" for name in (*ACCURACIES, "time", "memory")]


def methods(table, suffix):
    """{method: (row, trainer, preset)} of one recipe; a method that has no such recipe stands with its own."""
    found = {}
    for (_, trainer, config), row in table.rows.items():
        cached = config.endswith("_cached")
        stem = config.removesuffix("_cached").removesuffix("_matched")
        has_recipe = cached or (CONFIGS / trainer / f"{stem}{suffix}.yaml").exists()
        if cached or config == (stem + suffix if has_recipe else stem):
            found[trainer + "†" * cached] = row, trainer, config
    return found


def learned(runs):
    """{(trainer, preset): how many parameters learned}."""
    found = {}
    for run in runs:
        if run.file.name == "result.json":
            number = json.loads(run.file.read_text(encoding="utf-8")).get("learned_parameters")
            if number is not None:
                found[run.trainer, run.config] = max(number, found.get((run.trainer, run.config), 0))
    return found


def times(value, reference):
    return f"{value / reference:.2f}x" if value and reference else "-"


def render(names, found, parameters, published):
    """Lines for the methods `names` of one recipe as text; the paper's are its averages over eleven data sets."""
    ours = found.get(OURS, ({},))[0]
    body = []
    for name in names:
        if name not in found:
            continue
        row, trainer, config = found[name]
        means = [f"{row[key].mean:.2f}" if key in row else "-" for key in ("Base", "New")]
        cells = [name, *means, percent(row.get("H"))]
        theirs = [f"{published[name, key]:.2f}" if (name, key) in published else "-" for key in ACCURACIES]
        for key, paper in COSTS.items():
            cells += [cost(row.get(key)), times(*(r[key].mean if key in r else None for r in (row, ours)))]
            theirs.append(times(published.get((name, paper)), published.get((OURS, paper))))
        body.append([*cells, f"{parameters.get((trainer, config), 0):,}", seeds_behind(row, ACCURACIES), *theirs])
    header = HEADER + PAPER
    return tabulate(body, header, disable_numparse=True, colalign=["left"] + ["right"] * (len(header) - 1))


NOTES = f"""\
means over n seeds; H: seed by seed, ± {spread_name(False)}. Train s: feature extraction included
ratio: the row's cost over Skip Tuning's; paper: averages over 11 data sets with ViT-B/16, its time and its estimate of
  memory over Skip Tuning's. †: on features of each image that are cached once"""


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="such as output/compare")
    folder = parser.parse_args(argv).folder
    runs, problems = read_folder(folder)
    tables = [table for table in build_tables(runs, ci95=False) if table.protocol == "base2new"]
    published = Published().averages("base2new", "Average of 11")
    parameters = learned(runs)
    for table in tables:
        for what, names in TABLES.items():
            for suffix, recipe in RECIPES.items():
                found = methods(table, suffix)
                heading = ", ".join((what, recipe, f"{table.shots} shots", table.backbone, shown(table.where)))
                print(f"{heading}\n\n{render(names, found, parameters, published)}\n")
    if tables:
        print(NOTES)
    return finish(tables, problems, f"no base-to-new runs in {folder}; first: bash scripts/compare.sh emoji")


if __name__ == "__main__":
    sys.exit(main())
