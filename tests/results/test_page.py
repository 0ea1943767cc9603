"""The page and the figures: the numbers are --csv's, nothing is made up, and a real browser shows them."""

import csv
import importlib.util
import io
import json
import os
import re
import shutil

import pytest

from parse_test_res import main
from results import page, paint
from results.charts import build_charts, pooled
from results.read import find_runs, read_folder
from results.tables import build_tables
from tests.shell import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VALUES = {"ZeroshotCLIP": 10.0, "CoOp": 20.0, "SkipTuning": 30.0}
BINS = {"count": [0] * 13 + [30, 10], "confidence": [None] * 13 + [90.0, 97.0], "accuracy": [None] * 13 + [60.0, 100.0]}
EVERY = {name: float(number) for number, name in enumerate(sorted(os.listdir(ROOT / "configs/trainers")))}
DATASETS = {"dtd": "DescribableTextures", "eurosat": "EuroSAT", "ucf101": "UCF101"}


@pytest.fixture
def plant(tmp_path, plant_run):
    """plant(): methods (three), three datasets, two seeds, as ViT-B/16 runs with the paper's 16 shots -> the folder."""

    def plant(skip=(), methods=VALUES):
        for method, (trainer, value) in enumerate(methods.items()):
            for number, (dataset, name) in enumerate(DATASETS.items()):
                for seed in (1, 2):
                    if (trainer, dataset, seed) in skip:
                        continue
                    base = 60 + value / 3 + number + seed / 7
                    files = plant_run(tmp_path, base, base - 10 * seed / 3, seed, trainer, dataset, "vit_b16")
                    for file in files:
                        said = {"protocol": "base2new", "preset": "recommended", "dataset": name, "tested": "test"}
                        said |= {"backbone": "ViT-B/16", "shots": 16, "split": "a" * 64}
                        said |= {"config_files": [f"configs/trainers/{trainer}/vit_b16.yaml"]}
                        said |= {"seconds": {"extract": 0.0, "train": 40.0 * method, "test": 1.0}}
                        said |= {"calibration": {"ece15": 10.0 / seed, "bins15": BINS}, "trials": 60}
                        file.write_text(json.dumps(json.loads(file.read_text()) | said))
        return tmp_path

    return plant


@pytest.fixture
def plant_shots(tmp_path):
    """plant_shots(): few-shot logs of two methods that have no number of shots in common -> the folder."""

    def plant():
        for method, numbers in (("CoOp", (16, 4)), ("SkipTuning", (1, 8))):
            for shots in numbers:
                folder = tmp_path / f"few_shot/dtd/{method}/vit_b16_{shots}shots/seed1"
                folder.mkdir(parents=True)
                folder.joinpath("log.txt").write_text(f"Finish training\n* accuracy: {60 + shots}%\n")
        return tmp_path

    return plant


@pytest.fixture
def libraries(monkeypatch):
    """Stands in for plotly and itables where only the page's data is of interest."""
    monkeypatch.setattr(page, "library", lambda name: b"")


def data_of(file):
    """What the page shows."""
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL)[1])


def make(folder, *arguments):
    """-> (exit code, the page's data)."""
    file = folder / "page.html"
    code = main([str(folder), "--html", str(file), *arguments])
    return code, data_of(file)


class TestData:
    def test_every_number_is_the_csvs(self, plant, libraries, capsys):
        root = plant()
        _, data = make(root)
        capsys.readouterr()
        main([str(root), "--paper", "--csv", "-"])
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        shown = {}
        for row in data["rows"]:
            for name, cell in row["cells"].items():
                place = row["dataset"], row["trainer"], name
                shown[place] = [
                    str(cell[key] if cell[key] is not None else "") for key in ("mean", "spread", "n", "paper")
                ]
        said = {}
        for line in lines:
            said[line["dataset"], line["trainer"], line["metric"]] = [
                line[key] for key in ("mean", "spread", "n", "paper")
            ]
        assert shown == said
        assert any(line["paper"] for line in lines)

    def test_a_difference_counts_only_beyond_the_spread(self):
        record = {"metric": "H", "mean": 75.0, "n": 3, "note": "", "seeds": {}, "paper": "74.59"}
        cells = [page.page_cell(record | {"spread": spread}) for spread in (0.4, 0.5, None)]
        assert [cell["beyond"] for cell in cells] == [True, False, False]
        assert cells[0]["delta_text"] == "0.41"

    def test_text_is_rounded_as_in_the_terminal(self):
        record = {"metric": "H", "mean": 52.125, "spread": None, "n": 1, "note": "", "seeds": {}, "paper": None}
        assert page.page_cell(record)["text"] == "52.12"  # a browser would say 52.13

    def test_missing_runs_are_listed_and_never_zero(self, plant, libraries, capsys):
        root = plant(skip=[("CoOp", "dtd", 2), ("SkipTuning", "eurosat", 1), ("SkipTuning", "eurosat", 2)])
        code, data = make(root)
        assert code == 1
        assert [folder.rsplit("/", 2)[1:] for folder, why in data["problems"] if "seed" in why] == [
            ["vit_b16", "seed2"]
        ] * 2
        assert [why for _, why in data["problems"] if "eurosat" in why] == [
            "the same on eurosat is missing, but another experiment has it"
        ]
        assert not any(
            cell["mean"] == 0 for row in data["rows"] for cell in row["cells"].values() if cell["text"] != "0.0"
        )
        corners = data["charts"][0]["views"][""]
        skip = next(series for series in corners if series["name"] == "SkipTuning")
        assert skip["y"][skip["x"].index("eurosat")] is None

    def test_a_name_cannot_end_the_data(self, plant_run, tmp_path, libraries):
        plant_run(tmp_path, 80, 60, trainer="<x><!--")
        file = tmp_path / "page.html"
        main([str(tmp_path), "--html", str(file)])
        assert "<x>" not in file.read_text() and data_of(file)["rows"][0]["trainer"] == "<x><!--"

    def test_numbers_beside_accuracy_have_their_columns(self, plant, libraries):
        _, data = make(plant())
        heads = dict(data["beside"])
        assert heads["ece15_base"] == "ECE base" and "auroc_msp" not in heads
        row = next(row for row in data["rows"] if (row["dataset"], row["trainer"]) == ("dtd", "CoOp"))
        assert row["cells"]["ece15_new"]["text"] == "7.50 ±3.54" and (row["n"], row["trials"]) == ("2", 60)
        assert data["runs"]["costs"][-1] == "ECE" and data["runs"]["rows"][0][-3][-1] == 10.0

    def test_published_numbers_with_extra_input_stand_apart(self, plant, libraries, plant_run, tmp_path):
        _, data = make(plant())
        heads, *lines = data["extra"]
        assert heads == ["", "extra input", "paper Base", "paper New", "paper H"]
        assert ["HiCroPL", "text", "85.89", "77.99", "81.75"] in lines and ["TAC", "text", "-", "-", "81.24"] in lines
        assert not {line[0] for line in lines} & {row["trainer"] for row in data["rows"]}
        plant_run(tmp_path / "emoji", 80, 60)
        assert make(tmp_path / "emoji")[1]["extra"] == []  # there is nothing to compare with another backbone

    @pytest.mark.parametrize(
        ("files", "protocol", "shots", "own"),
        [
            (["CoPrompt/vit_b16"], "base2new", 16, True),
            (["KgCoOp/vit_b16"], "base2new", 16, False),
            (["MMRL/vit_b16"], "base2new", 16, True),
            (["MMRL/vit_b16", "MMRL/uniform"], "base2new", 16, True),  # ImageNet's epochs
            (["MMRL/vit_b16", "MMRL/uniform"], "xd", 16, False),
            (["CLIPSVD/vit_b16"], "base2new", 16, True),
            (["CLIPSVD/vit_b16"], "few_shot", 16, False),
            (["ProGrad/vit_b16"], "few_shot", 16, True),
            (["ProGrad/vit_b16"], "few_shot", 1, False),  # all have 50 epochs there, as ImageNet always has
            *(
                ([f"{name}/vit_b16", "embedded"], "base2new", 5, False)
                for name in ("MMRL", "MMRLpp", "CLIPSVD", "CoOp")
            ),
        ],
    )
    def test_a_recipe_has_own_numbers_where_its_rows_come_to_others(self, files, protocol, shots, own):
        paths = [f"configs/{'trainers' if '/' in file else 'overlays'}/{file}.yaml" for file in files]
        preset = "uniform" if "MMRL/uniform" in files else ""
        assert page.per_dataset(tuple(paths), protocol, preset, shots) is own

    def test_a_recipe_that_is_gone_says_nothing(self):
        assert page.per_dataset(("configs/gone.yaml",), "base2new", "", 16) is None

    def test_sentences_are_extra_text(self, plant, libraries):
        root = plant()
        for folder in find_runs(root):
            sentences = "words.json" if "CoOp" in str(folder) else "''"
            (folder / "config.yaml").write_text(f"TRAINER:\n  COPROMPT:\n    SENTENCES: {sentences}\n")
        _, data = make(root)
        assert {row["trainer"]: row["extra_text"] for row in data["rows"]} == {name: name == "CoOp" for name in VALUES}

    def test_flags_are_of_all_runs_of_a_recipe(self, plant, libraries):
        root = plant()
        for number, folder in enumerate(folder for folder in find_runs(root) if "CoOp" in str(folder)):
            sentences = "words.json" if number == 0 else "''"
            (folder / "config.yaml").write_text(f"TRAINER:\n  COPROMPT:\n    SENTENCES: {sentences}\n")
        file = next(folder for folder in find_runs(root) if "SkipTuning" in str(folder)) / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"trials": 5}))
        rows = make(root)[1]["rows"]
        averages = {row["trainer"]: (row["extra_text"], row["trials"]) for row in rows if row["average"]}
        assert averages == {"CoOp": (True, 60), "SkipTuning": (None, None), "ZeroshotCLIP": (None, 60)}

    def test_without_the_libraries_a_line_says_how_to_get_them(self, plant, monkeypatch, capsys):
        monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
        root = plant()
        assert main([str(root), "--html", str(root / "page.html")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "pip install plotly itables" in error
        assert not (root / "page.html").exists()


class TestCharts:
    def test_base_to_new_has_the_familys_figures(self, plant):
        charts = {chart.kind: chart for chart in build_charts(build_tables(read_folder(plant())[0]))}
        assert list(charts) == ["radar", "plane", "bubbles", "bars", "reliability"]
        assert list(charts["plane"].views) == ["Average of 3", "dtd", "eurosat", "ucf101"]
        drawn = [series.name for series in charts["bubbles"].views["dtd"]]
        assert drawn == ["CoOp", "SkipTuning"]  # zero-shot CLIP trains nothing
        gains = {series.name: series.x[0] for series in charts["bars"].views["dtd"]}
        assert list(gains) == ["CoOp", "SkipTuning"]  # the longest bar is drawn last, at the top
        assert gains["SkipTuning"] == pytest.approx(2 * gains["CoOp"], rel=0.05)

    def test_bins_of_all_seeds_are_one_curve_for_each_half(self, plant):
        charts = build_charts(build_tables(read_folder(plant(skip=[("CoOp", "dtd", 2)]))[0]))
        (chart,) = [chart for chart in charts if chart.kind == "reliability"]
        assert list(chart.views)[:2] == ["dtd, Base", "dtd, New"] and len(chart.views) == 6
        coop = chart.views["dtd, Base"][0]
        assert (coop.name, coop.x, coop.y) == ("CoOp", [90, 97], [60, 100]) and coop.text[0].startswith("30 images")
        assert chart.views["eurosat, New"][0].text[1].startswith("20 images")  # of two seeds

    def test_pooled_bins_are_those_of_all_images(self):
        one = {"count": [0, 3, 1], "confidence": [None, 40.0, 90.0], "accuracy": [None, 10.0, 100.0]}
        two = {"count": [0, 1, 0], "confidence": [None, 60.0, None], "accuracy": [None, 50.0, None]}
        assert pooled([one, two]) == [(4, 45.0, 20.0), (1, 90.0, 100.0)]

    def test_shots_make_curves(self, tmp_path):
        for shots in (1, 16, 4):
            folder = tmp_path / f"few_shot/dtd/CoOp/vit_b16_{shots}shots/seed1"
            folder.mkdir(parents=True)
            folder.joinpath("log.txt").write_text(f"Finish training\n* accuracy: {60 + shots}%\n")
        (chart,) = build_charts(build_tables(read_folder(tmp_path)[0]))
        (line,) = chart.views["dtd"]
        assert (line.x, line.y) == (["1", "4", "16"], [61, 64, 76])

    def test_shots_stand_in_order_whatever_the_first_method_has(self, plant_shots):
        Figure = pytest.importorskip("matplotlib.figure").Figure
        (chart,) = build_charts(build_tables(read_folder(plant_shots())[0]))
        assert [line.x for line in chart.views["dtd"]] == [["4", "16"], ["1", "8"]]
        assert chart.points == ["1", "4", "8", "16"]  # the page's axis
        figure = Figure()
        paint.paint(figure, chart, paint.looks_in([chart]))
        assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "4", "8", "16"]

    def test_charts_of_equal_places_below_different_folders_have_files_of_their_own(self, plant_run, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        for place in ("one/lr", "two/lr"):
            plant_run(tmp_path / place, 80, 60)
        main([str(tmp_path), "--figures", str(tmp_path / "out")])
        files = len(list((tmp_path / "out").iterdir()))
        assert files == 8 and f"Figures: {files} files" in capsys.readouterr().out

    def test_an_ablation_is_a_curve_over_its_points(self, plant_run, tmp_path):
        for point in (10, 2):
            plant_run(tmp_path / f"omega/{point}", 80 - point, 60)
        accuracy, costs = build_charts(build_tables(read_folder(tmp_path)[0]))
        (series,) = accuracy.views.values()
        assert {line.name: (line.x, line.y) for line in series}["Base"] == (["2", "10"], [78, 70])
        assert costs.title == "omega: costs"

    def test_ablations_of_one_name_have_charts_and_files_of_their_own(self, plant_run, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        for place in ("one/lr", "two/lr"):
            for point in (0.1, 1):
                plant_run(tmp_path / f"{place}/{point}", 80 - point, 60)
        main([str(tmp_path), "--figures", str(tmp_path / "out")])
        names = [file.name for file in (tmp_path / "out").glob("*.png")]
        assert sorted(names) == [f"{place}_lr_{what}.png" for place in ("one", "two") for what in ("accuracy", "costs")]

    def test_a_grid_without_costs_has_no_chart_of_them(self, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        for point in ("0.1", "1"):
            for part in ("train_base", "test_new"):
                folder = tmp_path / f"lr/{point}/base2new/{part}/dtd/shots_5/CoOp/vit_b16/seed1"
                folder.mkdir(parents=True)
                folder.joinpath("log.txt").write_text("Finish training\n=> result\n* accuracy: 60%\n")
        main([str(tmp_path), "--figures", str(tmp_path / "out")])
        assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["lr_accuracy.png"]

    def test_two_recipes_of_a_method_have_two_names(self, plant_run, tmp_path):
        plant_run(tmp_path, 80, 60, config="embedded")
        plant_run(tmp_path, 70, 60, config="embedded_matched")
        chart = next(chart for chart in build_charts(build_tables(read_folder(tmp_path)[0])) if chart.kind == "plane")
        assert [series.name for series in chart.views["emoji"]] == ["SkipTuning", "SkipTuning (matched)"]

    def test_figures_are_files(self, plant, tmp_path, capsys):
        pytest.importorskip("matplotlib")
        main([str(plant()), "--figures", str(tmp_path / "out")])
        kinds = [file.suffix for file in sorted((tmp_path / "out").iterdir())]
        assert kinds.count(".pdf") == kinds.count(".png") == 5
        for file in (tmp_path / "out").iterdir():
            assert file.read_bytes()[:4] in (b"%PDF", b"\x89PNG")


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium; the tests are skipped where it, playwright or the page's libraries are missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    if not all(importlib.util.find_spec(package) for package, _ in page.LIBRARIES.values()):
        pytest.skip(f"needs: {page.GET_LIBRARIES}")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, plant, tmp_path):
    """open_page(width, dark, methods) -> the page of `plant` in the browser; it must have been quiet and offline."""
    said, contexts = [], []
    file = tmp_path / "page.html"

    def opened(width=1000, dark=False, methods=VALUES):
        if not file.exists():
            main([str(plant(methods=methods)), "--html", str(file)])
        scheme = "dark" if dark else "light"
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        )
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        shown.goto(file.as_uri())
        shown.wait_for_selector("html[data-ready]", timeout=60_000)
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert said == []


def column(shown, section, head):
    """The texts of one column of a table."""
    heads = shown.locator(f"#{section} thead th").all_inner_texts()
    at = [text.strip() for text in heads].index(head) + 1
    return shown.locator(f"#{section} tbody td:nth-child({at})").all_inner_texts()


class TestInABrowser:
    def test_rows_are_files_and_sorting_by_h_is_right(self, open_page, tmp_path):
        shown = open_page()
        shown.locator("#runs").scroll_into_view_if_needed()
        shown.locator("#runs .dt-info").wait_for()
        assert f"of {len(list(tmp_path.rglob('result.json')))} " in shown.locator("#runs .dt-info").inner_text()
        tables = build_tables(read_folder(tmp_path)[0])
        values = [row.cells["H"].mean for table in tables for row in table.rows + table.averages]
        head = shown.locator("#table th", has_text=re.compile(r"^\s*H\s*$"))
        for order in (sorted(values), sorted(values, reverse=True)):
            head.locator(".dt-column-order").click()
            cells = [text.split()[0] for text in column(shown, "table", "H")]
            assert cells == [f"{value:.2f}" for value in order]

    def test_filter_and_search_leave_their_rows(self, open_page):
        shown = open_page()
        shown.locator("#table").get_by_label("Method", exact=True).select_option("SkipTuning")
        assert set(column(shown, "table", "Method")) == {"SkipTuning"}
        shown.locator("#table input[type=search]").fill("eurosat")
        assert column(shown, "table", "Dataset") == ["eurosat"]

    def test_averages_have_the_flags_of_their_runs(self, open_page):
        shown = open_page()
        names = zip(column(shown, "table", "Dataset"), column(shown, "table", "Method"), strict=True)
        flags = [column(shown, "table", head) for head in ("Own numbers per dataset", "Trials")]
        lines = dict(zip(names, zip(*flags, strict=True), strict=True))
        assert lines["Average of 3", "SkipTuning"] == ("yes", "60")
        assert lines["Average of 3", "ZeroshotCLIP"] == ("no", "60")

    def test_pointing_at_a_number_shows_its_seeds_in_full(self, open_page, tmp_path):
        shown = open_page()
        (table,) = build_tables(read_folder(tmp_path)[0])
        row = next(row for row in table.rows if (row.trainer, row.dataset) == ("CoOp", "dtd"))
        line = shown.locator("#table tbody tr", has_text="CoOp").filter(has_text="dtd")
        titles = [span.get_attribute("title") for span in line.locator("span[title]").all()]
        wanted = [f"seed {seed}: {value!r}" for seed, value in row.values["H"].items()]
        assert any(
            title.startswith(f"mean {row.cells['H'].mean!r}") and all(w in title for w in wanted) for title in titles
        )
        assert "paper" in line.inner_text()

    def test_keyboard_reaches_and_sorts_and_chooses(self, open_page):
        shown = open_page()
        before = column(shown, "table", "Dataset")
        shown.locator("#table th", has_text=re.compile(r"^\s*Dataset")).locator(".dt-column-order").focus()
        shown.keyboard.press("Enter")
        shown.keyboard.press("Enter")
        assert column(shown, "table", "Dataset") == sorted(before, reverse=True) != before
        shown.locator("#charts figure").first.scroll_into_view_if_needed()
        shown.locator("#charts .plot .polarlayer").first.wait_for()
        shown.locator("#legend input").first.focus()
        shown.keyboard.press("Space")
        assert not shown.locator("#legend input").first.is_checked()
        shown.wait_for_function("document.querySelectorAll('#charts .plot')[0].data.length === 2")

    def test_thousands_of_lines_are_one_page_of_them_and_what_is_far_below_waits(self, open_page, monkeypatch):
        rows, runs = page.page_rows, page.page_runs
        monkeypatch.setattr(page, "page_rows", lambda *given: rows(*given) * 400)
        monkeypatch.setattr(page, "page_runs", lambda *given: (found := runs(*given)) | {"rows": found["rows"] * 131})
        shown = open_page()
        assert "of 4,800 " in shown.locator("#table .dt-info").inner_text()
        counts = [shown.locator(what).count() for what in ("#table tbody tr", "#runs tbody tr", ".main-svg")]
        assert counts == [25, 0, 0]
        shown.locator("#charts figure").first.scroll_into_view_if_needed()
        shown.locator("#charts .main-svg").first.wait_for()
        shown.locator("#runs").scroll_into_view_if_needed()
        assert "of 4,716 " in shown.locator("#runs .dt-info").inner_text()
        assert shown.locator("#runs tbody tr").count() == 25

    def test_shots_stand_in_order_whatever_the_first_method_has(self, open_page, plant_shots, tmp_path):
        main([str(plant_shots()), "--html", str(tmp_path / "page.html")])
        shown = open_page()
        shown.locator("#charts figure").first.scroll_into_view_if_needed()
        shown.locator("#charts .xtick").first.wait_for()
        assert shown.locator("#charts .xtick").all_text_contents() == ["1", "4", "8", "16"]

    @pytest.mark.parametrize("width", [400, 1000, 1600])
    def test_nothing_sticks_out(self, open_page, width):
        for dark in (False, True):
            shown = open_page(width, dark, EVERY)
            assert shown.locator("#legend input").count() == len(EVERY) > 16
            for figure in shown.locator("figure").all():
                figure.scroll_into_view_if_needed()
                figure.locator(".main-svg").first.wait_for()
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            paper, ink = shown.evaluate(
                "() => { const s = getComputedStyle(document.querySelector('#table tbody td:nth-child(2)'));"
                " return [getComputedStyle(document.body).backgroundColor, s.color]; }"
            )
            assert (light(paper) < light(ink)) is dark and abs(light(paper) - light(ink)) > 400


def light(colour):
    """Sum of red, green and blue."""
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3])
