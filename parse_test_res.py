"""Read many runs, print tables: mean and spread over seeds, harmonic mean, training time, peak memory.

    python parse_test_res.py output/               every experiment below output/, as tables
    python parse_test_res.py output/ --openworld   base and new in one test, too, from the logits that tests kept
    python parse_test_res.py EXPERIMENT            one experiment: a folder that holds seed1, seed2, ...
    python parse_test_res.py FOLDER --multi-exp    each experiment in FOLDER, and their average

The last two print the lines of CoOp's script of this name. A run is read from its result.json (full
precision) or, where there is none, from its newest log.txt. A run that is missing or broken is listed and
left out, never counted as zero.

Exit code: 0 all is well, 1 some runs are missing or broken, 2 nothing to read or bad arguments.
"""

import argparse
import statistics
import sys
from pathlib import Path

from results.layout import table_text
from results.published import BACKBONE, PUBLISHED, Published, with_extra
from results.read import Run, absolute, check_together, find_runs, read_all
from results.tables import (
    any_console,
    build_tables,
    csv_text,
    describe,
    figure,
    group,
    notes,
    print_problems,
    shown,
    spread_name,
    write_text,
)


def print_tables(runs: list[Run], args: argparse.Namespace) -> None:
    """All tables, or their numbers alone with `--csv -`. Raises OSError if the file can't be written."""
    tables = build_tables(runs, args.ci95, args.keyword)
    published = Published() if args.paper else None
    if args.csv == "-":
        print(csv_text(tables, published), end="")
        return
    if args.csv:
        write_text(args.csv, csv_text(tables, published))
    markup = args.markup or "simple"
    heading_mark, note_mark = {"simple": ("", ""), "pipe": ("### ", "- ")}.get(markup, ("% ", "% "))
    for table in tables:
        lines = figure(table, published)
        print(f"{heading_mark}{lines['title']}, {shown(table.where)}\n\n{table_text(lines, markup)}\n")
    if published and any(table.protocol == "base2new" and table.backbone in (BACKBONE, "") for table in tables):
        lines = with_extra()
        print(f"{heading_mark}{lines['title']}\n\n{table_text(lines, markup)}\n")
    shown_notes = list(notes(tables, args.ci95, published))
    if args.openworld:
        from results import openworld

        joined = openworld.figures(tables)
        for lines in joined:
            print(f"{heading_mark}{lines['title']}\n\n{table_text(lines, markup)}\n")
        shown_notes += openworld.NOTES if joined else ()
    for note in shown_notes:
        print(f"{note_mark}{note}")


def write_page(runs: list[Run], problems: dict[Path, str], top: Path, args: argparse.Namespace) -> None:
    """The page and the figures that were asked for. Raises ImportError if what they need isn't installed; OSError."""
    from results import page, paint  # here, as they take PyTorch along

    tables = build_tables(runs, args.ci95, args.keyword)
    said = sys.stderr if args.csv == "-" else sys.stdout
    if args.html:
        published = Published() if args.keyword == "accuracy" else None
        write_text(args.html, page.page_html(tables, runs, problems, top, published, args.ci95, args.keyword))
        print(f"\nPage: {args.html} ({len(runs)} runs)", file=said)
    if args.figures:
        files = paint.write_figures(tables, absolute(args.figures))
        print(f"\nFigures: {len(files)} files in {args.figures}", file=said)


def print_summaries(runs: list[Run], args: argparse.Namespace) -> None:
    """The lines of CoOp's script, for each experiment."""
    means = []
    for directory, members in group(runs, lambda run: run.file.parent.parent).items():
        for run in members:
            print(f"file: {shown(run.file)}. {args.keyword}: {run.value:.2f}%. ")
        stat = describe([run.value for run in members], args.ci95)
        means.append(stat.mean)
        spread = f" +- {stat.spread:.2f}%" if stat.spread is not None else ""
        print("===", f"Summary of directory: {shown(directory)}", sep="\n")
        print(f"* {args.keyword}: {stat.mean:.2f}%{spread}", "===", sep="\n")
        print(f"+- {spread_name(args.ci95)}, n = {stat.n}" if spread else "a single run has no spread")
    if args.multi_exp:
        print("Average performance", f"* {args.keyword}: {statistics.fmean(means):.2f}%", sep="\n")


class Parser(argparse.ArgumentParser):
    """Its errors are one line. (That of dassl.utils loads PyTorch.)"""

    def error(self, message: str) -> None:
        self.exit(2, f"Error: {message}; see {self.prog} --help\n")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line; what can't be is an error of argparse, with exit code 2."""
    parser = Parser(
        prog="python parse_test_res.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", help="root of experiments, or the folder of one")
    parser.add_argument("--ci95", action="store_true", help="spread: half of the 95%% confidence interval")
    parser.add_argument("--test-log", action="store_true", help="the logs are those of --eval-only runs")
    parser.add_argument("--multi-exp", action="store_true", help="summarise each experiment and average them")
    parser.add_argument("--keyword", default="accuracy", help="or: error, macro_f1, average (per class)")
    parser.add_argument("--csv", metavar="FILE", help="tables as numbers to FILE; -: to the screen instead")
    parser.add_argument("--html", metavar="FILE", help="all tables and figures as one page, to be opened in a browser")
    parser.add_argument("--figures", metavar="DIR", help="the page's figures as PDF and PNG")
    parser.add_argument(
        "--openworld", action="store_true", help="join halves whose logits were kept (docs/CALIBRATION.md)"
    )
    markup = parser.add_mutually_exclusive_group()
    markup.add_argument("--markdown", dest="markup", action="store_const", const="pipe")
    markup.add_argument("--latex", dest="markup", action="store_const", const="latex_booktabs")
    parser.add_argument("--paper", action="store_true", help=f"published values beside ours ({PUBLISHED.name})")
    args = parser.parse_args(argv)
    args.wants_tables = any((args.csv, args.markup, args.paper, args.html, args.figures, args.openworld))
    if args.multi_exp and args.wants_tables:
        parser.error("--multi-exp prints no tables: without it, the folder's experiments become tables")
    if args.paper and args.keyword != "accuracy":
        parser.error("--paper knows accuracies only: leave out --keyword")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command line; -> the exit code."""
    any_console()
    args = parse_args(argv)
    top = absolute(args.directory)
    folders = find_runs(top)
    if not folders:
        print(f"Error: no result.json and no log.txt in or below {args.directory}: check the folder", file=sys.stderr)
        return 2
    runs, problems = read_all(folders, top, args.keyword, args.test_log)
    one_experiment = all(folder.parent == top for folder in folders)
    if args.multi_exp or (one_experiment and not args.wants_tables):
        if runs:
            print_summaries(runs, args)
    else:
        runs, wrong = check_together(runs)
        problems = wrong | problems
        if args.openworld:
            from results.openworld import add_joined  # here, as it takes numpy along

            runs, unjoined = add_joined(runs)
            problems = unjoined | problems
        try:
            print_tables(runs, args)
            write_page(runs, problems, top, args)
        except (OSError, ImportError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
    print_problems(problems)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
