"""All tables and charts as one HTML file, which needs no network and no server.

The numbers are those of `cell_records`, which --csv writes too. Python brings them, page.html shows them: DataTables
(from itables) makes the tables, plotly the charts. Both libraries stand in the file, which makes it about 6 MB.
"""

import base64
import functools
import importlib.util
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dassl.config.config import flatten, holding, read_files
from dassl.utils import UserError

from .charts import build_charts, labels, split_grids
from .layout import brief, cost, percent
from .layout import cell as cell_text
from .published import BACKBONE, Published, with_extra
from .read import BESIDE, COSTS, Run, dataset_stems
from .tables import Table, cell_records, group, memory_column, notes

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("page.html")
LIBRARIES = {  # what of them goes into the page
    "plotly": ("plotly", "package_data/plotly.min.js"),
    "datatables": ("itables", "html/dt_bundle.js"),
    "datatables_css": ("itables", "html/dt_bundle.css"),
}
GET_LIBRARIES = "pip install plotly itables"
SENTENCES = re.compile(r"^\s+SENTENCES: *['\"]?[^\s'\"]", re.MULTILINE)  # in a run's config.yaml
PLACE = ("protocol", "folder", "backbone", "shots", "dataset", "trainer", "config", "preset", "tested", "split")
RUN_FIELDS = ("protocol", "part", "dataset", "trainer", "preset", "shots", "seed", "value", "backbone", "tested")
RUN_COSTS = ("Train s", "Peak MB", "RSS MB")


# --- libraries ------------------------------------------------------------------------------------------


def library(name: str) -> bytes:
    """One file of LIBRARIES. ImportError says how to get it."""
    package, file = LIBRARIES[name]
    found = importlib.util.find_spec(package)  # not imported: only its files are needed
    path = Path(found.submodule_search_locations[0], file) if found else None
    if path is None or not path.is_file():
        raise ImportError(f"--html needs {package}'s {Path(file).name}; get it with: {GET_LIBRARIES}")
    return path.read_bytes()


# --- what a fair reader needs ---------------------------------------------------------------------------


@functools.cache
def read_recipe(files: tuple[str, ...]) -> tuple[dict, dict] | None:
    """({option: value}, {key of OVERRIDES: such a row}); None where the files aren't here any more."""
    paths = [ROOT / file for file in files]
    if not paths or not all(path.is_file() for path in paths):
        return None
    options, rows = {}, {}
    try:
        for path in paths:
            for _, tree in read_files(str(path)):
                for key, row in (tree.pop("OVERRIDES", None) or {}).items():
                    rows[key] = rows.get(key, {}) | flatten(row)
                options |= flatten(tree)
    except (UserError, AttributeError, TypeError):  # somebody's file, changed since
        return None
    return options, rows


def per_dataset(files: tuple[str, ...], protocol: str, preset: str, shots: int | None) -> bool | None:
    """Whether a recipe comes to other options on some dataset than on the rest, be it only to fewer epochs."""
    recipe = read_recipe(files)
    if recipe is None:
        return None
    options, rows = recipe
    name = options.get("MODEL.RECIPE", "")

    def on(dataset: str) -> dict:
        laid = dict(options)
        for key in holding(rows, {dataset, f"{shots}shots", protocol, preset, name}, name):
            laid |= rows[key]
        return laid

    rest = on("")
    return any(on(dataset) != rest for dataset in dataset_stems())


def extra_text(run: Run) -> bool | None:
    """Whether the run read sentences about its classes from a file; None where it left no config.yaml."""
    try:
        return bool(SENTENCES.search(run.file.with_name("config.yaml").read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        return None


def flags(runs: list[Run]) -> dict[tuple[str, str, str], dict[str, bool | int | None]]:
    """{(protocol, trainer, config): flags}: what holds for any of its runs; trials only where all say the same."""
    found = {}
    for key, members in group(runs, lambda run: (run.protocol, run.trainer, run.config)).items():
        recipes = set()
        for run in members:
            said = tuple(run.record.get("config_files") or ()), run.record.get("protocol"), run.record.get("preset")
            recipes.add((said[0], said[1] or run.protocol, said[2] or run.preset, run.shots))
        trials = {run.record.get("trials") for run in members}
        found[key] = {
            "extra_text": some(extra_text(run) for run in members),
            "per_dataset": some(per_dataset(*recipe) for recipe in recipes),
            "trials": trials.pop() if len(trials) == 1 else None,
        }
    return found


def some(answers: Iterable[bool | None]) -> bool | None:
    """Whether any is yes; None where none is known."""
    return max((answer for answer in answers if answer is not None), default=None)


# --- rows -----------------------------------------------------------------------------------------------


def page_cell(record: dict) -> dict:
    """What the page needs of one record of `cell_records`; texts are made here, so that they are the terminal's."""
    cell = {key: record[key] for key in ("mean", "spread", "n", "paper", "note", "seeds")}
    if record["metric"] in COSTS:
        return cell | {"text": brief(record["mean"])}
    cell["text"] = percent([record["mean"], record["spread"]])
    if record["paper"]:
        delta = record["mean"] - float(record["paper"])
        beyond = record["spread"] is not None and abs(delta) > record["spread"]
        cell |= {"delta": delta, "delta_text": f"{abs(delta):.2f}", "beyond": beyond}
    return cell


def table_rows(table: Table, known: dict, published: Published | None) -> list[dict]:
    """The lines of one table; `known`: what `flags` found."""
    names = labels(table.rows + table.averages)
    shared = {"memory": memory_column(table)}
    averages = {row.name for row in table.averages}
    rows = {}
    for record in cell_records([table], published):
        place = {key: record[key] for key in PLACE}
        row = rows.setdefault(tuple(place.values()), place | shared | {"cells": {}, "n": ""})
        row["cells"][record["metric"]] = page_cell(record)
    found = []
    for row in rows.values():
        counts = [str(cell["n"]) for name, cell in row["cells"].items() if name not in {*COSTS, *BESIDE}]
        if counts:  # costs alone make no line
            if "Train s" in row["cells"]:
                seconds = [row["cells"].get(name, {}).get("mean") for name in ("Train s", "Extract s")]
                row["cells"]["Train s"]["text"] = cost(seconds)
            row["n"] = "/".join(counts if len(set(counts)) > 1 else counts[:1])
            row |= {"method": names[row["trainer"], row["config"]], "average": row["dataset"] in averages}
            found.append(row | known.get((row["protocol"], row["trainer"], row["config"]), {}))
    return found


def page_rows(tables: list[Table], runs: list[Run], published: Published | None) -> list[dict]:
    """The lines of all tables: averages before their datasets, ablations last and with their point."""
    known = flags(runs)
    of_methods, grids = split_grids(tables)
    rows = []
    for table in of_methods:
        lines = table_rows(table, known, published)
        rows += sorted(lines, key=lambda row: not row["average"])
    for folder, points in grids.items():
        for table in points:
            point = {"ablation": f"{folder.name} {table.where.parent.name}"}
            rows += [row | point for row in table_rows(table, known, published)]
    return rows


def extra_rows(tables: list[Table]) -> list[list[str]]:
    """Head and lines of the published numbers of methods with extra input, as texts, where ours are to be compared."""
    if not any(table.protocol == "base2new" and table.backbone in (BACKBONE, "") for table in tables):
        return []
    figure = with_extra()
    heads = [head.replace("\n", " ") for _, head, _ in figure["columns"]]
    return [heads, *([cell_text(row, key, kind) for key, _, kind in figure["columns"]] for row in figure["rows"])]


def page_runs(runs: list[Run], top: Path) -> dict[str, list]:
    """Every file that was read: names once, then a list of values for each, as there may be thousands."""
    rows = []
    for run in runs:
        file = run.file.relative_to(top).as_posix() if run.file.is_relative_to(top) else str(run.file)
        costs = [run.costs.get(name) for name in RUN_COSTS]
        costs.append((run.record.get("calibration") or {}).get("ece15"))
        texts = ["" if value is None else brief(value) for value in costs]
        rows.append([*(getattr(run, key) for key in RUN_FIELDS), percent(run.value), costs, texts, file])
    return {
        "fields": [*RUN_FIELDS, "text", "costs", "cost_texts", "file"],
        "costs": [*RUN_COSTS, BESIDE["ece15"]],
        "rows": rows,
    }


def page_html(
    tables: list[Table],
    runs: list[Run],
    problems: dict[Path, str],
    top: Path,
    published: Published | None = None,
    ci95: bool = False,
    keyword: str = "accuracy",
) -> str:
    """The page's whole text.

    Args:
        tables: what `build_tables` made of `runs`.
        runs: the runs that count.
        problems: {folder: why it is missing, broken or left out}.
        top: the folder that was read.
        published: the papers' numbers, or None for a metric that they don't have.
        ci95: whether the spreads are halves of 95% intervals.
        keyword: the metric.
    Raises:
        ImportError: plotly or itables isn't installed.
    """
    data = {
        "top": str(top),
        "keyword": keyword,
        "beside": [[name, head] for name, head in BESIDE.items() if head],
        "extra": extra_rows(tables) if published else [],
        "rows": page_rows(tables, runs, published),
        "runs": page_runs(runs, top),
        "problems": [[str(folder), why] for folder, why in sorted(problems.items())],
        "charts": [asdict(chart) for chart in build_charts(tables)],
        "notes": list(dict.fromkeys(notes(tables, ci95, published))),
    }
    # "<" can't end the element that the data stands in; NaN is no JSON and never comes through the gate
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8")
    fill = {"DATA": text, "PLOTLY": library("plotly").decode("utf-8").replace("</script", "<\\/script")}
    for name in ("datatables", "datatables_css"):
        fill[name.upper()] = base64.b64encode(library(name)).decode("ascii")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], page)
