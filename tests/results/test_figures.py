"""The documents' tables are made from committed rows, and what differs is named."""

import json
import re
import subprocess
import sys

import pytest

from results import figures
from results.figures import ROOT, figure_text, main, pasted, read_figure, update
from results.layout import cost

ROWS = {
    "command": ["make demo"],
    "machine": "CPU, 2 cores",
    "date": "2026-11-22",
    "commit": "a0c3a5d",
    "made_by": "runs",
    "style": "text",
    "notes": ["a note"],
    "tables": [
        {
            "title": "first",
            "columns": [["method", "Method", "text"], ["h", "H", "percent"], ["s", "Train s", "cost"]],
            "rows": [
                {"method": "CoOp", "h": [36.53, 0.07], "s": [114, 2.0]},
                {"method": "Skip Tuning", "h": [44.18, None], "s": None},
            ],
        },
        {
            "title": "second",
            "columns": [["method", "Method", "text"], ["h", "H", "percent"]],
            "rows": [{"method": "Skip Tuning", "h": [44.18, None], "s": None}, {"method": "LoRA", "h": [42.03, 0.2]}],
        },
    ],
}
del ROWS["tables"][1]["rows"][0]["s"]


@pytest.fixture
def house(tmp_path):
    """A folder with a README, one page and the rows of one figure."""
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Title\n")
    (tmp_path / "docs/results/demo.json").write_text(figure_text(ROWS))
    return tmp_path


def page(house, text):
    (house / "docs/PAGE.md").write_text(text)


def written(house):
    return (house / "docs/PAGE.md").read_text()


def mark(options=""):
    return f"Before.\n\n<!-- figure: demo{options} -->\n<!-- end -->\n\nAfter.\n"


class TestOurs:
    def test_every_table_is_as_its_rows_want_it(self):
        assert [fault for fault in update(ROOT, check=True) if "differs" in fault] == []

    def test_no_document_that_has_figures_has_tables_by_hand(self):
        for file in figures.documents(ROOT):
            text = file.read_text()
            assert not figures.START.search(text) or not pasted(text), file

    @pytest.mark.parametrize("file", sorted((ROOT / figures.ROWS).glob("*.json")), ids=lambda file: file.stem)
    def test_every_file_of_rows_says_where_it_is_from(self, file):
        figure = read_figure(file)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", figure["date"]) and re.fullmatch("[0-9a-f]{7,40}", figure["commit"])
        assert figure_text(figure) == file.read_text()

    def test_the_command_line_starts(self):
        command = [sys.executable, "-m", "results.figures", "--help"]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0 and "--check" in done.stdout


class TestBlocks:
    def test_a_block_has_table_notes_and_source(self, house):
        page(house, mark())
        assert main([], house) == 0
        text = written(house)
        assert text.startswith("Before.\n\n<!-- figure: demo -->\n```\nfirst\n\n") and text.endswith("\nAfter.\n")
        assert "CoOp         36.53 ±0.07  114 (2.0)" in text and "Skip Tuning        44.18          -" in text
        assert "a note\n\n2026-11-22, commit a0c3a5d; CPU, 2 cores\n$ make demo\n```\n<!-- end -->" in text

    def test_a_second_time_nothing_changes_and_the_check_is_content(self, house):
        page(house, mark())
        main([], house)
        text = written(house)
        assert main([], house) == 0 and written(house) == text
        assert main(["--check"], house) == 0

    def test_the_check_names_the_block_whose_rows_have_changed(self, house, capsys):
        page(house, mark())
        main([], house)
        text = written(house)
        rows = json.loads(json.dumps(ROWS).replace("36.53", "36.54"))
        (house / "docs/results/demo.json").write_text(figure_text(rows))
        assert main(["--check"], house) == 1
        assert "PAGE.md: figure demo differs from docs/results/demo.json" in capsys.readouterr().err
        assert written(house) == text

    def test_the_check_names_the_block_that_was_edited(self, house, capsys):
        page(house, mark())
        main([], house)
        page(house, written(house).replace("36.53", "99.99"))
        assert main(["--check"], house) == 1
        assert "figure demo differs" in capsys.readouterr().err

    def test_a_mark_chooses_rows_columns_tables_and_notes(self, house):
        page(house, mark(' rows="Skip Tuning" columns=h,method tables=2 notes=no'))
        assert main([], house) == 0
        lines = written(house).splitlines()
        table = lines[lines.index("```") + 1 :]
        assert table[:5] == ["second", "", "    H  Method", "-----  -----------", "44.18  Skip Tuning"]
        assert "a note" not in written(house)

    def test_a_mark_joins_tables(self, house):
        page(house, mark(' tables=1,2 join="Both of them" columns=method,h rows="LoRA,CoOp"'))
        assert main([], house) == 0
        text = written(house)
        assert "Both of them" in text and "first" not in text
        assert text.index("LoRA") < text.index("CoOp")

    def test_markdown_is_a_style(self, house):
        (house / "docs/results/demo.json").write_text(figure_text(ROWS | {"style": "markdown"}))
        page(house, mark(" tables=2"))
        assert main([], house) == 0
        assert "| Skip Tuning |" in written(house) and "```" not in written(house)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("<!-- figure: nothing -->\n<!-- end -->", "figure nothing has no rows; docs/results/nothing.json"),
            ("<!-- figure: demo -->\n", "figure demo has no end"),
            ("<!-- figure: demo -->\n<!-- figure: demo -->\n<!-- end -->", "has no end"),
            ("<!-- figure: demo row=x -->\n<!-- end -->", "row=x is no option"),
            ("<!-- figure: demo rows=CoCoOp -->\n<!-- end -->", "row 'CoCoOp': there is none; do you mean 'CoOp'?"),
            ("<!-- figure: demo columns=base -->\n<!-- end -->", "column 'base': there is none"),
            ("<!-- figure: demo tables=3 -->\n<!-- end -->", "table '3': there is none"),
        ],
    )
    def test_a_wrong_mark_is_one_line_and_nothing_is_written(self, house, capsys, text, reason):
        page(house, text)
        assert main([], house) == 1
        err = capsys.readouterr().err
        assert reason in err and len(err.splitlines()) == 1
        assert written(house) == text

    def test_a_table_by_hand_is_named_with_its_line(self, house, capsys):
        page(house, mark() + "\n```\nMethod  H\n------  --\nCoOp    36\n```\n")
        assert main([], house) == 1
        line = written(house).splitlines().index("------  --") + 1
        assert f"PAGE.md:{line}: a table that no figure makes" in capsys.readouterr().err


class TestRows:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"command": "make demo"}, "command, a list of texts"),
            ({"machine": None}, "machine, a text"),
            ({"style": "html"}, "style, text or markdown"),
            ({"tables": {}}, "tables, a list"),
            ({"tables": [{}]}, "table 1 has no title"),
            ({"tables": [{"title": "", "columns": [["a"]], "rows": []}]}, "needs columns"),
            ({"tables": [{"title": "", "columns": [["a", "A", "odd"]], "rows": []}]}, "unknown format 'odd'"),
            ({"tables": [{"title": "", "columns": [["a", "A", "text"]], "rows": [1]}]}, "needs rows"),
            ({"tables": [{"title": "", "columns": [["a", "A", "text"]], "rows": [{"b": 1}]}]}, "no column for 'b'"),
            ({"tables": [{"title": "", "columns": [["a", "A", "ratio"]], "rows": [{"a": "x"}]}]}, "can't show"),
        ],
    )
    def test_rows_of_another_shape_are_named(self, house, capsys, change, reason):
        (house / "docs/results/demo.json").write_text(json.dumps(ROWS | change))
        page(house, mark())
        assert main([], house) == 1
        err = capsys.readouterr().err
        assert "demo.json" in err and reason in err and len(err.splitlines()) == 1

    def test_every_row_is_a_line(self):
        text = figure_text(ROWS)
        assert json.loads(text) == ROWS
        assert sum(line.strip().startswith('{"method"') for line in text.splitlines()) == 4


class TestRefresh:
    def new(self, house, *arguments):
        return main([*arguments, "--machine", "a machine"], house)

    def test_a_comparison_gets_new_rows_from_its_folder(self, house, plant_run, tmp_path):
        runs = tmp_path / "runs"
        plant_run(runs, 80.0, 60.0, train=18.0, learned=7)
        plant_run(runs, 70.0, 50.0, trainer="CoOp", train=28.0, learned=2048)
        page(house, "<!-- figure: compare tables=1 -->\n<!-- end -->\n")
        command = ("--as", "comparison", "--command", "bash scripts/compare.sh emoji")
        assert self.new(house, "--from", str(runs), "compare", *command) == 0
        figure = read_figure(house / "docs/results/compare.json")
        assert (figure["machine"], figure["made_by"]) == ("a machine", "comparison")
        coop = figure["tables"][0]["rows"][0]
        assert (coop["method"], coop["base"], coop["train_s"], coop["train_s_ratio"]) == ("CoOp", 70.0, 30.0, 1.5)
        assert "CoOp" in written(house) and "$ bash scripts/compare.sh emoji" in written(house)

    def test_the_second_time_its_file_says_how(self, house, plant_run, tmp_path):
        plant_run(tmp_path / "runs", 200 / 3, 60.0)
        assert self.new(house, "--from", str(tmp_path / "runs"), "demo") == 0
        figure = read_figure(house / "docs/results/demo.json")
        assert figure["command"] == ["make demo"]
        assert figure["tables"][0]["rows"][0]["base"] == [66.6667, None]

    def test_an_ablation_gets_new_rows_and_a_plot(self, house, plant_run, tmp_path):
        for point in ("2", "4"):
            plant_run(tmp_path / "omega" / point, 80.0, 60.0)
        command = ("--as", "ablation", "--command", "bash scripts/skip/ablate_omega.sh")
        assert self.new(house, "--from", str(tmp_path / "omega"), "omega", *command) == 0
        rows = read_figure(house / "docs/results/omega.json")["tables"][0]["rows"]
        assert [row["point"] for row in rows] == ["2", "4"]
        pytest.importorskip("matplotlib")
        assert main(["--plots"], house) == 0
        assert not (house / "docs/results/omega.png").exists()  # no page shows it
        page(house, "![Accuracy over ω](results/omega.png)\n")
        assert main(["--plots"], house) == 0
        assert (house / "docs/results/omega.png").read_bytes().startswith(b"\x89PNG")

    def test_few_shot_runs_make_a_plot_with_a_line_for_each_method_or_recipe(self, house, tmp_path):
        for method, shots, accuracy in (("CoOp", 1, 61.0), ("CoOp", 4, 64.0), ("SkipTuning", 4, 70.0)):
            for config in ("vit_b16", "vit_b16_matched")[: 1 + (method == "CoOp")]:
                folder = tmp_path / f"runs/few_shot/dtd/{method}/{config}_{shots}shots/seed1"
                folder.mkdir(parents=True)
                folder.joinpath("log.txt").write_text(f"Finish training\n* accuracy: {accuracy}%\n")
        command = ("--as", "runs", "--command", "bash scripts/coop/few_shot.sh dtd 1")
        assert self.new(house, "--from", str(tmp_path / "runs"), "shots", *command) == 0
        page(house, "![Demo](results/demo.png) ![Accuracy over shots](results/shots.png)\n")
        pytest.importorskip("matplotlib")
        assert main(["--plots"], house) == 0
        assert (house / "docs/results/shots.png").read_bytes().startswith(b"\x89PNG")
        assert not (house / "docs/results/demo.png").exists()
        canvas = pytest.importorskip("matplotlib.figure").Figure(layout="constrained")
        figures.paint_shots(canvas, read_figure(house / "docs/results/shots.json")["tables"][0])
        lines = {line.get_label(): line.get_xydata().tolist() for line in canvas.axes[0].get_lines()}
        both = [[1, 61], [4, 64]]
        assert lines == {"CoOp (vit_b16)": both, "CoOp (vit_b16_matched)": both, "SkipTuning": [[4, 70]]}

    def test_a_folder_with_a_missing_run_changes_nothing(self, house, plant_run, tmp_path, capsys):
        _, new = plant_run(tmp_path / "runs", 80.0, 60.0)
        new.unlink()
        before = (house / "docs/results/demo.json").read_bytes()
        assert self.new(house, "--from", str(tmp_path / "runs"), "demo") == 1
        assert "is not whole, so demo.json stays as it is" in capsys.readouterr().err
        assert (house / "docs/results/demo.json").read_bytes() == before

    def test_a_new_figure_needs_to_be_told_how_it_is_made(self, house, tmp_path, capsys):
        assert self.new(house, "--from", str(tmp_path), "odd") == 1
        assert "give --as runs|ablation|comparison" in capsys.readouterr().err
        assert self.new(house, "--from", str(tmp_path)) == 1
        assert "--from FOLDER NAME" in capsys.readouterr().err

    def test_costs_come_from_what_a_benchmark_wrote(self, house, tmp_path):
        row = {"images": 4, "epochs": 20, "steps": 100, "peak_mb": 770.0, "paper_mb": 375.0, "learned": 10, "ms": 405.0}
        rows = {"SkipTuning": row | {"run_s": 2000.0}, "CoOp": row | {"run_s": 9000.0, "paper_mb": None}}
        source = tmp_path / "figures.json"
        source.write_text(json.dumps({"machine": "m", "precision": "bf16", "rows": {"50": rows}}))
        command = ("--as", "methods", "--command", "python -m benchmarks.methods")
        assert self.new(house, "--from", str(source), "methods", *command) == 0
        (table,) = read_figure(house / "docs/results/methods.json")["tables"]
        coop = table["rows"][1]
        assert (coop["run_ratio"], coop["paper_mb_ratio"], round(coop["paper_time"], 2)) == (4.5, None, 4.96)

    def test_steps_come_from_what_a_benchmark_wrote(self, house, tmp_path):
        row = {
            "ms": 100.0,
            "ms_low": 90.0,
            "ms_high": 120.0,
            "page_faults": 7.0,
            "floor_ms": 50.0,
            "run_s": 10.0,
            "peak_mb": 7.0,
            "paper_mb": 3.0,
            "gflop": 1.0,
        }
        steps = {"FT plain": row | {"ms": 400.0, "extrapolated": True}, "both plain": row, "both exact": row}
        steps["both exact, bf16"] = row | {"ms": 25.0}
        result = {"machine": "m", "matmul_gflops": {"fp32": [150.0, 161.0]}, "steps": {"50": steps}}
        shares = {"extract_share": 0.5, "test_share": 0.25}
        result["images_per_second"] = {
            "plain": {"extract": 8.0, "test": 4.0} | shares,
            "both exact": {"extract": 9.0, "test": 6.0} | shares,
            "both exact, bf16": {"extract": 18.0, "test": 18.0} | shares,
        }
        kept = {"gb": 2.5, "place": "a mapped file", "extract_s": 60.0}
        result["cache"] = {"50": {"both exact": {"5 views": kept}}}
        source = tmp_path / "figures.json"
        source.write_text(json.dumps(result))
        command = ("--as", "skip_tuning", "--command", "python -m benchmarks.skip_tuning")
        assert self.new(house, "--from", str(source), "cost", *command) == 0
        steps, runs, rates, cached = read_figure(house / "docs/results/cost.json")["tables"]
        assert (steps["rows"][0]["row"], steps["rows"][2]["ms_ft"]) == ("FT plain (~)", 4.0)
        assert (steps["rows"][2]["over_floor"], steps["rows"][3]["ms_fp32"]) == (2.0, 4.0)
        assert [steps["rows"][2][key] for key in ("ms_low", "ms_high", "page_faults")] == [90.0, 120.0, 7.0]
        assert runs["rows"][2]["peak_ft"] == 1.0
        fp32, bf16 = rates["rows"][1:]
        assert (fp32["extract"], fp32["test"], fp32["extract_share"]) == ([9.0, 2.25], [6.0, 1.5], 50.0)
        assert (bf16["extract_fp32"], bf16["test_fp32"]) == (2.0, 3.0)
        assert cached["rows"] == [{"classes": "50", "row": "both exact", "views": "5 views"} | kept]

    def test_from_the_benchmark_of_images(self, house, tmp_path):
        row = {"images": "JPEG", "transform": "train", "decoding": 300.0, "plain": 100.0, "ours": 150.0, "ratio": 1.5}
        row |= {"largest": 1.0, "mean": 0.05, "again": 400.0, "gain": 8 / 3}
        test = row | {"transform": "test", "again": None, "gain": None}
        loader = {"loader": "2 workers", "decoded each time": 120.0, "kept": 360.0, "gain": 3.0}
        source = tmp_path / "images.json"
        source.write_text(json.dumps({"machine": "m", "rows": [row, test], "loader": [loader]}))
        command = ("--as", "data", "--command", "python -m benchmarks.data")
        assert self.new(house, "--from", str(source), "images", *command) == 0
        images, loaders = read_figure(house / "docs/results/images.json")["tables"]
        assert [line["again_plain"] for line in images["rows"]] == [4.0, None]
        assert loaders["rows"] == [loader]

    def test_sensitivity_comes_from_what_its_benchmark_wrote(self, house, tmp_path):
        result = {"images": 100, "omega": 1, "threshold": 0.05, "dependence_kept": {"0.1": 0.9, "0.5": 0.99}}
        result["scaled_sensitivity"] = {"image": [0.01, 0.3, 1.0], "text": [0.02, 1.0]}
        source = tmp_path / "sensitivity.json"
        source.write_text(json.dumps(result))
        command = ("--as", "sensitivity", "--command", "python -m benchmarks.sensitivity")
        assert self.new(house, "--from", str(source), "sensitivity", *command) == 0
        figure = read_figure(house / "docs/results/sensitivity.json")
        layers, kept = figure["tables"]
        assert layers["rows"][0] == {"layer": 1, "image": 1.0, "text": 2.0}
        assert layers["rows"][2] == {"layer": 3, "image": 100.0}
        assert kept["rows"] == [{"ratio": "0.1", "share": 90.0}, {"ratio": "0.5", "share": 99.0}]
        assert "suggested: ω = 1, the first layers below" in figure["notes"][0] and "5%" in figure["notes"][1]

    @pytest.mark.parametrize("content", ["{", "{}", '{"rows": {"50": {}}, "precision": "fp32"}', "[]"])
    def test_what_no_benchmark_wrote_is_one_line(self, house, tmp_path, capsys, content):
        (tmp_path / "x.json").write_text(content)
        command = ("--as", "methods", "--command", "python -m benchmarks.methods")
        assert self.new(house, "--from", str(tmp_path / "x.json"), "methods", *command) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_cost_names_extraction_only_where_it_took_time():
    assert cost([8.2644, 2.0873]) == "8.3 (2.1)"
    assert cost([15.185, 3.7e-6]) == cost([15.185, 0.0]) == cost([15.185, None]) == cost(15.185) == "15.2"
