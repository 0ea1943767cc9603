"""The paper's Tables 1 and 5 for what scripts/compare.sh leaves, with the paper's own numbers beside.

    python -m results.comparison output/compare

Base, New and H are means over seeds, H seed by seed with its sample standard deviation; training seconds include
feature extraction, peak memory is that of training. For each dataset there is one table each for every method's own
recipe and, where runs have them, for Skip Tuning's batch size and epochs; a method to which these mean nothing stands
in both. On the embedded model the two are one. Where the tests kept their logits, numbers of base and new classes in
one test stand beside. A run that is missing or broken is listed and left out.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read.
"""

import sys
from pathlib import Path

from .ablation import ACCURACIES
from .costs import over
from .layout import table_text
from .openworld import add_joined
from .published import Published, with_extra
from .read import BESIDE, read_folder
from .tables import (
    Row,
    Table,
    accuracy_cells,
    build_tables,
    finish,
    folder_of,
    group,
    mean,
    memory_column,
    seeds_behind,
    shots_name,
    shown,
    spread_name,
)

OURS = "SkipTuning"
TABLES = {  # the paper's rows in its order, and ours beside them
    "Table 1, prompt tuning": (
        *("ZeroshotCLIP", "CoOp", "CoCoOp", "ProGrad", "KgCoOp", "MaPLe", "IVLP", "PromptSRC", "TCP", "DePT"),
        *("CoPrompt", "MMRL", "MMRL, uniform", "MMRLpp", "MMRLpp, uniform", OURS),
    ),
    "Table 5, fine-tuning and adapters": (
        *("FinetuneCLIP", "CLIPAdapter", "CLIPLoRA", "TipAdapter", "TipAdapterF"),
        *("TwoSFS", "CLIPSVD", "ProLIP", "LPpp", OURS),
        *("CLIPAdapter†", "SkipTuning†"),
    ),
}
OWN = ("", "recommended", "uniform")  # presets
ENDS = {"cached": "†", "uniform": ", uniform"}  # of a method's name by presets that have a row beside its own
EVERYWHERE = ("cached",)  # presets that stand in all tables
ALL_AT_ONCE = ("LPpp",)  # every step takes all images: no batch size to match
MATCHED = ("matched",)
RECIPES = {OWN: "each method's own recipe", MATCHED: "Skip Tuning's batch size and epochs"}
ONE_FOR_ALL = "the same batches for all"  # own recipes of the embedded model
SHOWN_BESIDE = ("ece15_base", "ece15_new", "ece15_t_base", "ece15_t_new", "gen_h", "auroc_mcm")
PAPER_COSTS = {"time": "train seconds", "memory": "estimated memory MB"}
NOTES = [
    f"means over n seeds; H: seed by seed, ± {spread_name(False)}. Train s: feature extraction included;",
    "  trials: rates and epochs that were tried on the base classes' validation images to find the recipe",
    "ratio: the row's cost over Skip Tuning's; paper: averages over 11 datasets with ViT-B/16, its time and its",
    "  estimate of memory over Skip Tuning's. †: on features of each image that are cached once, epochs of its own",
    "ECE: 15 bins (at T: logits over TEST.TEMPERATURE's); Gen. H: each half's images among all classes;",
    "  AUROC: base images told from new ones (MCM)",
]


def methods(rows: list[Row], presets: tuple[str, ...]) -> dict[str, list[Row]]:
    """{method: its rows by one of these presets}, with what has no batches or epochs that could be matched."""
    found = {}
    for row in rows:
        if row.preset in (*presets, *EVERYWHERE):
            found.setdefault(row.trainer + ENDS.get(row.preset, ""), []).append(row)
    for row in rows:
        if row.preset in OWN and (row.learned == 0 or row.trainer in ALL_AT_ONCE):
            found.setdefault(row.trainer, [row])
    return found


def line_of(name: str, row: Row, ours: Row | None, memory: str) -> dict:
    """Our cells of one method; costs also as multiples of Skip Tuning's."""
    line = {"method": name, "base": mean(row, "Base"), "new": mean(row, "New")} | accuracy_cells(row, ["H"])
    for key, column in (("train_s", "Train s"), ("memory_mb", memory)):
        line[key] = mean(row, column)
        line[f"{key}_ratio"] = over(line[key], ours and mean(ours, column))
    line |= {name: mean(row, name) for name in SHOWN_BESIDE}
    counts = {"learned": row.learned or 0, "trials": row.trials, "n": seeds_behind(row, ACCURACIES)}
    return line | counts


def paper_cells(method: str, published: dict[tuple[str, str], float]) -> dict:
    """The paper's averages for one method, costs as multiples of Skip Tuning's."""
    cells = {f"paper_{name.lower()}": published.get((method, name)) for name in ACCURACIES}
    for key, metric in PAPER_COSTS.items():
        cells[f"paper_{key}"] = over(published.get((method, metric)), published.get((OURS, metric)))
    return cells


def columns(table: Table, memory: str) -> list[list[str]]:
    """Of a comparison's figure; those beside accuracy where a row has them."""
    ours = [["method", "", "text"], ["base", "Base", "percent"], ["new", "New", "percent"], ["h", "H", "percent"]]
    ours += [[name, BESIDE[name].replace(" ", "\n"), "percent"] for name in SHOWN_BESIDE if table.has(name)]
    ours += [["train_s", "Train s", "cost"], ["train_s_ratio", "ratio", "ratio"]]
    ours += [["memory_mb", memory, "cost"], ["memory_mb_ratio", "ratio", "ratio"]]
    ours += [["learned", "learned", "count"]]
    ours += [["trials", "trials", "count"]] * any(row.trials is not None for row in table.rows)
    ours += [["n", "n", "number"]]
    paper = [[f"paper_{name.lower()}", f"paper\n{name}", "percent"] for name in ACCURACIES]
    return ours + paper + [[f"paper_{key}", f"paper\n{key}", "ratio"] for key in PAPER_COSTS]


def compare(table: Table) -> list[dict]:
    """The figures of one base-to-new table: each of the paper's tables by each recipe, for each dataset."""
    published = Published().averages("base2new", "Average of 11")
    memory = memory_column(table)
    heads, found = columns(table, memory), []
    for dataset, rows in group(table.rows, lambda row: row.name).items():
        recipes = dict(RECIPES)
        if all(row.config.startswith("embedded") for row in rows):
            recipes[OWN] = ONE_FOR_ALL
        if all(row.preset not in MATCHED for row in rows):
            del recipes[MATCHED]
        for what, names in TABLES.items():
            for presets, recipe in recipes.items():
                known = methods(rows, presets)
                ours = known.get(OURS, [None])[0]
                lines = []
                for name in names:
                    for row in known.get(name, []):
                        label = name if len(known[name]) == 1 else f"{name} ({row.config})"
                        lines.append(line_of(label, row, ours, memory) | paper_cells(name, published))
                title = ", ".join((what, recipe, dataset, shots_name(table.shots), table.backbone))
                if lines:
                    lines = [{key: line[key] for key, *_ in heads} for line in lines]
                    found.append({"title": title, "columns": heads, "rows": lines})
    return found


def figures(folder: str | Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """The tables of a comparison's folder, for `layout` -> (figures, problems, notes)."""
    runs, problems = read_folder(folder)
    runs, unjoined = add_joined(runs, kept_only=True)
    problems |= unjoined
    tables = [table for table in build_tables(runs) if table.protocol == "base2new"]
    found = [figure for table in tables for figure in compare(table)]
    return found + [with_extra()] * bool(found), problems, NOTES


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    folder = folder_of("results.comparison", __doc__, "output/compare", argv)
    found, problems, said = figures(folder)
    for figure in found:
        print(f"{figure['title']}, {shown(folder)}\n\n{table_text(figure)}\n")
    if found:
        print(*said, sep="\n")
    return finish(found, problems, f"no base-to-new runs in {folder}; first: bash scripts/compare.sh emoji")


if __name__ == "__main__":
    sys.exit(main())
