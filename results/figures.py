"""Figures of README.md and docs/: tables between marks, made from the committed rows in docs/results/<name>.json.

    python -m results.figures                                 write all tables anew
    python -m results.figures --check                         only say which differ from their rows
    python -m results.figures --from output/compare compare   new rows of one figure, from a folder of runs
    python -m results.figures --plots                         the plots (docs/results/<name>.png) that a page shows

A mark is a comment, `figure: NAME` between its signs, and a comment `end` closes it. Options in the mark choose what
of a figure is shown: rows="CoOp,LSkip only" (by the first column), columns=trainer,h (by their keys), tables=1,3,
join="A title" (these tables as one, what stands in several of them once), notes=no. Each JSON file says the command,
the machine, the date and the commit that its rows are from.

Exit code: 0 all is well, 1 something differs, is missing or broken.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from dassl.utils import Parser, UserError, exit_code, nearest, write_atomic

from . import ablation, choose, comparison, costs, curve, tables
from .gate import RESULT_LIMIT, Broken, is_name, is_names, is_table, read_json
from .layout import FORMATS, parts, table_text
from .plot import method_lines, plot
from .read import absolute, find_runs, read_folder

ROOT = Path(__file__).parents[1]
ROWS = Path("docs/results")
MARK = re.compile(r"<!-- figure: (?P<what>.+?) -->\n(?P<body>.*?)(?P<end><!-- end -->)", re.DOTALL)
START = re.compile(r"<!-- figure: (.+?) -->")
RULE = re.compile(r"^ *-{2,}( {2,}-{2,})+ *$", re.MULTILINE)  # under the head of a table
OPTIONS = ("rows", "columns", "tables", "join", "notes")


# --- rows -----------------------------------------------------------------------------------------------


def read_figure(file: Path) -> dict:
    """The rows of one figure. UserError names the file and what is wrong in it."""
    try:
        figure = read_json(file, RESULT_LIMIT)
    except Broken as error:
        raise UserError(f"{file}: {error}") from None
    commands = figure.get("command")
    needed = {
        "command, a list of texts": is_names(commands) and bool(commands),
        **{f"{key}, a text": is_name(figure.get(key)) for key in ("machine", "date", "commit", "made_by")},
        "style, text or markdown": figure.get("style") in ("text", "markdown"),
        "notes, a list of texts": is_names(figure.get("notes")),
        "tables, a list": isinstance(figure.get("tables"), list),
    }
    wrong = [what for what, fits in needed.items() if not fits]
    if wrong:
        raise UserError(f"{file} needs {wrong[0]}")
    for number, table in enumerate(figure["tables"], start=1):
        if fault := fault_of(table):
            raise UserError(f"{file}: table {number} {fault}")
    return figure


def fault_of(table: object) -> str:
    """What is wrong with one table of a figure, or ""."""
    if not is_table(table) or not isinstance(table.get("title"), str):
        return "has no title"
    columns, rows = table.get("columns"), table.get("rows")
    if not isinstance(columns, list) or not all(is_names(column) and len(column) == 3 for column in columns):
        return "needs columns, each [key, head, format]"
    unknown = [kind for *_, kind in columns if kind not in FORMATS]
    if unknown:
        return f"has a column of the unknown format {unknown[0]!r} (known: {', '.join(FORMATS)})"
    if not isinstance(rows, list) or not all(map(is_table, rows)):
        return "needs rows, each {key: value}"
    for number, row in enumerate(rows, start=1):
        strange = row.keys() - {key for key, *_ in columns}
        if strange:
            return f"has no column for {min(strange)!r} of its row {number}"
    try:
        table_text(table)
    except (TypeError, ValueError) as error:
        return f"has a value that its column's format can't show ({error})"
    return ""


def figure_text(figure: dict) -> str:
    """JSON with a line for every row, so that a changed number is a changed line."""

    def line(value: object) -> str:
        return json.dumps(value, ensure_ascii=False)

    parts = []
    for table in figure["tables"]:
        rows = ",\n    ".join(map(line, table["rows"]))
        columns = ",\n    ".join(map(line, table["columns"]))
        title = line(table["title"])
        parts.append(f'{{"title": {title},\n   "columns": [\n    {columns}],\n   "rows": [\n    {rows}]}}')
    head = [f"{line(key)}: {line(value)}" for key, value in figure.items() if key != "tables"]
    return "{\n " + ",\n ".join(head) + ',\n "tables": [\n  ' + ",\n  ".join(parts) + "]\n}\n"


# --- blocks ---------------------------------------------------------------------------------------------


def parse_mark(what: str) -> tuple[str, dict[str, list[str]]]:
    """'NAME key=a,b' -> (name, {key: [a, b]}). UserError for an option that there is not."""
    name, *words = shlex.split(what)
    options = {}
    for word in words:
        key, sign, value = word.partition("=")
        if key not in OPTIONS or not sign:
            raise UserError(f"figure {name}: {word} is no option; there are {', '.join(OPTIONS)}, as key=value")
        options[key] = [value] if key == "join" else [part.strip() for part in value.split(",")]
    return name, options


def chosen(what: str, wanted: list[str] | None, known: list[str]) -> list[str]:
    """`wanted` (None: all) in its own order. UserError for what is not known."""
    for name in wanted or ():
        if name not in known:
            raise UserError(f"{what} {name!r}: there is none; do you mean {nearest(name, known)!r}?")
    return known if wanted is None else wanted


def part_of(figure: dict, options: dict[str, list[str]]) -> list[dict]:
    """The tables of a figure that a mark asks for, with the rows and columns that it asks for."""
    numbers = [str(number) for number in range(1, len(figure["tables"]) + 1)]
    wanted = [figure["tables"][int(number) - 1] for number in chosen("table", options.get("tables"), numbers)]
    if "join" in options:
        lines = []
        for table in wanted:
            lines += [row for row in table["rows"] if row not in lines]
        wanted = [wanted[0] | {"title": options["join"][0], "rows": lines}]
    found = []
    for table in wanted:
        columns = {column[0]: column for column in table["columns"]}
        first = table["columns"][0][0]
        rows = {}
        for row in table["rows"]:
            rows.setdefault(str(row.get(first)), []).append(row)
        keys = chosen("column", options.get("columns"), list(columns))
        names = chosen("row", options.get("rows"), list(rows))
        lines = [row for name in names for row in rows[name]]
        found.append(table | {"columns": [columns[key] for key in keys], "rows": lines})
    return found


def block(figure: dict, options: dict[str, list[str]]) -> str:
    """What stands between a figure's marks: its tables, notes and where the rows are from."""
    plain = figure["style"] == "text"
    lines = []
    for table in part_of(figure, options):
        lines += [table["title"], ""] if table["title"] else []
        lines += [table_text(table, "simple" if plain else "pipe"), ""]
    notes = figure["notes"] if options.get("notes") != ["no"] else []
    lines += [*notes, ""] if notes else []
    source = [f"{figure['date']}, commit {figure['commit']}; {figure['machine']}"]
    source += [f"$ {command}" for command in figure["command"]]
    if plain:
        return "\n".join(["```", *lines, *source, "```", ""])
    return "\n".join(["", *lines, f"({source[0]})", ""])


def documents(root: Path) -> list[Path]:
    """The files that may hold figures."""
    return [path for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if path.is_file()]


def renewed(file: Path, root: Path) -> tuple[str, str, list[str]]:
    """(the document as it is, as its rows want it, names of the blocks that differ). UserError for a broken mark."""
    text = file.read_text(encoding="utf-8")
    differing = []
    starts, whole = START.findall(text), [match["what"] for match in MARK.finditer(text)]
    if starts != whole:
        open_mark = next(name for name, other in zip(starts, [*whole, ""], strict=False) if name != other)
        raise UserError(f"{file.name}: figure {open_mark} has no end; put <!-- end --> behind it")

    def put(match: re.Match) -> str:
        name, options = parse_mark(match["what"])
        rows = root / ROWS / f"{name}.json"
        if not rows.is_file():
            raise UserError(f"{file.name}: figure {name} has no rows; {rows.relative_to(root)} is missing")
        try:
            body = block(read_figure(rows), options)
        except UserError as error:
            raise UserError(f"{file.name}: figure {name}: {error}") from None
        if body != match["body"]:
            differing.append(name)
        return f"<!-- figure: {match['what']} -->\n{body}{match['end']}"

    return text, MARK.sub(put, text), differing


def pasted(text: str) -> list[int]:
    """Numbers of the lines on which a table stands in a fence, but outside any marks."""
    outside = MARK.sub(lambda match: "\n" * match[0].count("\n"), text)
    fence, found = False, []
    for number, line in enumerate(outside.splitlines(), start=1):
        if line.startswith("```"):
            fence = not fence
        elif fence and RULE.fullmatch(line):
            found.append(number)
    return found


def update(root: Path, check: bool = False) -> list[str]:
    """Write every document's blocks anew, or only check them -> what is wrong, one line each."""
    faults = []
    for file in documents(root):
        old, new, differing = renewed(file, root)
        if check:
            faults += [f"{file.name}: figure {name} differs from docs/results/{name}.json" for name in differing]
        elif new != old:
            write_atomic(file, new.encode())
            print(f"{file.relative_to(root)}: {', '.join(dict.fromkeys(differing))}")
        faults += [f"{file.name}:{line}: a table that no figure makes" for line in pasted(new)]
    return faults


# --- new rows -------------------------------------------------------------------------------------------


def from_runs(folder: Path) -> tuple[list[dict], dict[Path, str], list[str]]:
    """The tables of parse_test_res.py."""
    runs, problems = read_folder(folder)
    built = tables.build_tables(runs)
    return [tables.figure(table) for table in built], problems, list(tables.notes(built))


MAKERS: dict[str, Callable] = {  # each: folder or file -> (tables, {folder: problem}, notes)
    "runs": from_runs,
    "ablation": ablation.figures,
    "comparison": comparison.figures,
    "choose": choose.figures,
    "curve": curve.figures,
    "data": costs.reader(costs.data_tables),
    "methods": costs.reader(costs.method_tables),
    "sensitivity": costs.reader(costs.sensitivity_tables),
    "skip_tuning": costs.reader(costs.skip_tuning_tables),
}


def rounded(value: object) -> object:
    """Numbers to four decimals: all that any table shows, and as much as seeds tell."""
    if isinstance(value, float):
        return round(value, 4)
    return [rounded(part) for part in value] if isinstance(value, list) else value


def machine_name() -> str:
    """The processor and how many cores of it there are, PyTorch and Python."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return f"{device}; PyTorch {torch.__version__}, Python {platform.python_version()}"


def newest(source: Path) -> str:
    """The day on which the newest result in a folder was written, or the newest log of a code that leaves no more."""
    files = [source]
    if source.is_dir():
        runs = find_runs(source)
        files = [file for folder in runs for file in folder.glob("result.json")]
        files = files or [file for folder in runs for file in folder.glob("log.txt*")]
    return date.fromtimestamp(max(file.stat().st_mtime for file in files)).isoformat()


def commit_of(root: Path) -> str:
    """Of a git checkout, short; "unknown" elsewhere."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, text=True, capture_output=True)
    return found.stdout.strip() or "unknown"


def refresh(root: Path, source: str, name: str, args: argparse.Namespace) -> None:
    """Write docs/results/<name>.json from runs, or from what a benchmark's --json wrote. UserError if it can't be."""
    file, top = root / ROWS / f"{name}.json", absolute(source)
    before = read_figure(file) if file.is_file() else {}
    maker = args.made_by or before.get("made_by")
    if maker not in MAKERS:
        raise UserError(f"figure {name} says no way to make it from {source}: give --as {'|'.join(MAKERS)}")
    command = args.command or before.get("command")
    if not command:
        raise UserError(f"figure {name} is new: say with --command how its rows come about")
    try:
        found, problems, notes = MAKERS[maker](top)
    except Broken as error:
        raise UserError(f"{source}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is not what {maker} writes ({type(error).__name__}: {error})") from None
    tables.print_problems(problems)
    if problems or not found:
        raise UserError(f"{source} is not whole, so {file.name} stays as it is")
    for table in found:
        keys = [key for key, *_ in table["columns"]]
        table["rows"] = [{key: rounded(row[key]) for key in keys if key in row} for row in table["rows"]]
    figure = {
        "command": command,
        "machine": args.machine or machine_name(),
        "date": newest(top),
        "commit": commit_of(root),
        "made_by": maker,
        "style": before.get("style", "text"),
        "notes": notes,
        "tables": found,
    }
    write_atomic(file, figure_text(figure).encode())
    print(f"{file.relative_to(root)}: {sum(len(table['rows']) for table in found)} rows")


def paint_shots(canvas, table: dict) -> None:
    """Figure 5's form: the accuracy of every method over its shots, on a matplotlib figure."""
    axes = canvas.subplots()
    shots = [key for key, *_ in table["columns"] if key.isdigit()]
    known = Counter(row["trainer"] for row in table["rows"])
    lines = {}
    for row in table["rows"]:
        name = row["trainer"]
        if known[name] > 1:  # by datasets or recipes
            name += f" ({', '.join(row[key] for key in ('dataset', 'config') if key in row)})"
        if points := [(int(key), parts(row[key])[0]) for key in shots if parts(row.get(key))]:
            lines[name] = points
    method_lines(axes, lines)
    axes.set_xticks([int(key) for key in shots])
    axes.set_xlabel("shots")
    axes.set_ylabel("accuracy, %")


def draw_plots(root: Path) -> None:
    """docs/results/<name>.png where a page shows it, for an ablation on one dataset, a curve, or several shots."""
    shown = "".join(document.read_text(encoding="utf-8") for document in documents(root))
    for file in sorted((root / ROWS).glob("*.json")):
        if f"results/{file.stem}.png" not in shown:
            continue
        figure = read_figure(file)
        maker, table = figure["made_by"], figure["tables"][0]
        if maker == "ablation" and len(figure["tables"]) == 1:
            plot(file.with_suffix(".png"), lambda canvas, table=table: ablation.paint(canvas, table), size=(10, 4))
        elif maker == "curve":
            plot(file.with_suffix(".png"), lambda canvas, table=table: curve.paint(canvas, table), size=curve.SIZE)
        elif maker == "runs" and sum(key.isdigit() for key, *_ in table["columns"]) > 1:
            plot(file.with_suffix(".png"), lambda canvas, table=table: paint_shots(canvas, table), size=curve.SIZE)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """The command line; -> the exit code."""

    def run() -> int:
        form = argparse.RawDescriptionHelpFormatter
        parser = Parser(prog="python -m results.figures", description=__doc__, formatter_class=form)
        parser.add_argument("name", nargs="?", help="of the figure that gets new rows")
        parser.add_argument("--check", action="store_true", help="write nothing")
        parser.add_argument("--plots", action="store_true", help="also write the plots that a page shows")
        parser.add_argument("--from", dest="source", metavar="FOLDER", help="new rows: from these runs")
        parser.add_argument("--as", dest="made_by", choices=MAKERS, help="what FOLDER holds, for a new figure")
        parser.add_argument("--command", action="append", help="what made the runs, for a new figure")
        parser.add_argument("--machine", help="what they ran on, if not this machine")
        args = parser.parse_args(argv)
        if bool(args.source) != bool(args.name):
            raise UserError("new rows need both: --from FOLDER NAME")
        if args.source:
            refresh(root, args.source, args.name, args)
        if args.plots:
            draw_plots(root)
        faults = update(root, args.check)
        for fault in faults:
            print(fault, file=sys.stderr)
        return 1 if faults else 0

    return exit_code(run, "the documents are as they were or whole")


if __name__ == "__main__":
    sys.exit(main())
