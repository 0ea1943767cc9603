"""The comparison's tables, from planted runs."""

import json
import re
import statistics

import pytest

from results import comparison
from results.published import Published


@pytest.fixture
def compare(tmp_path, capsys):
    """Runs the command: its exit code, {heading: {method: cells}}, what it wrote to stderr."""

    def compare():
        code = comparison.main([str(tmp_path)])
        out, err = capsys.readouterr()
        tables = {}
        for line in out.splitlines():
            if line.startswith("Table"):
                rows = tables[", ".join(line.split(", ")[:3])] = {}
            elif len(cells := re.split(r"\s{2,}", line.strip())) in (15, 16):  # with and without trials
                rows[cells[0]] = cells[1:]
        return code, tables, err

    return compare


OWN = "Table 1, prompt tuning, the same batches for all"  # the planted runs have the embedded recipe
MATCHED = "Table 1, prompt tuning, Skip Tuning's batch size and epochs"
ADAPTERS = "Table 5, fine-tuning and adapters, the same batches for all"


def test_a_row_is_means_costs_over_skip_tunings_and_the_papers_numbers(plant_run, tmp_path, compare):
    plant_run(tmp_path, 80.0, 60.0, train=18.0, memory=50.0)
    for seed, base in enumerate((70.0, 74.0), start=1):
        plant_run(tmp_path, base, 50.0, seed, "CoOp", train=28.0, memory=200.0, learned=2048)
    code, tables, err = compare()
    cells = tables[OWN]["CoOp"]
    h = [2 * base * 50 / (base + 50) for base in (70, 74)]
    assert cells[:3] == ["72.00", "50.00", f"{statistics.mean(h):.2f} ±{statistics.stdev(h):.2f}"]
    assert cells[3:9] == ["30.0", "1.50x", "200", "4.00x", "2,048", "2"]
    assert cells[9:] == ["82.69", "63.22", "71.66", "4.96x", "7.93x"]
    assert tables[OWN]["SkipTuning"][-2:] == ["1.00x", "1.00x"]
    assert (code, err.count("another experiment has seed 2")) == (1, 2)  # which Skip Tuning lacks


def test_trials_stand_where_a_run_says_them(plant_run, tmp_path, compare):
    plant_run(tmp_path, 80.0, 60.0)
    for file in plant_run(tmp_path, 70.0, 50.0, trainer="CoOp", learned=512):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"trials": 7}))
    _, tables, _ = compare()
    assert [tables[OWN][name][8] for name in ("CoOp", "SkipTuning")] == ["7", "-"]


def test_each_recipe_has_its_table_and_what_has_no_matched_one_stands_in_both(plant_run, tmp_path, compare):
    plant_run(tmp_path, 80.0, 60.0)
    plant_run(tmp_path, 70.0, 60.0, config="embedded_matched")
    plant_run(tmp_path, 30.0, 20.0, trainer="ZeroshotCLIP")
    plant_run(tmp_path, 50.0, 40.0, trainer="CoOp", learned=512)
    code, tables, _ = compare()
    assert code == 0
    assert [tables[name]["SkipTuning"][0] for name in (OWN, MATCHED)] == ["80.00", "70.00"]
    assert [tables[name]["ZeroshotCLIP"][0] for name in (OWN, MATCHED)] == ["30.00", "30.00"]
    assert "CoOp" in tables[OWN] and "CoOp" not in tables[MATCHED]


def test_what_no_run_fills_is_no_table(plant_run, tmp_path):
    plant_run(tmp_path, 70.0, 60.0, trainer="CoOp", config="vit_b16_matched")
    titles = [table["title"].split(", ")[:3] for table in comparison.figures(tmp_path)[0]]
    assert titles[:-1] == [MATCHED.split(", ")]
    plant_run(tmp_path, 70.0, 60.0, trainer="CoOp", config="vit_b16")
    (own, *_) = comparison.figures(tmp_path)[0]
    assert own["title"].startswith("Table 1, prompt tuning, each method's own recipe, ")


def test_cached_presets_are_the_papers_daggers(plant_run, tmp_path, compare):
    plant_run(tmp_path, 80.0, 60.0)
    plant_run(tmp_path, 75.0, 55.0, config="embedded_cached", memory=20.0)
    cells = compare()[1][ADAPTERS]["SkipTuning†"]
    assert cells[0] == "75.00" and cells[6] == "0.20x" and cells[-5:] == ["82.66", "75.56", "78.95", "0.48x", "0.17x"]


def test_numbers_beside_accuracy_have_columns_where_there_are_any(plant_run, tmp_path):
    files = plant_run(tmp_path, 80.0, 60.0)
    plant_run(tmp_path, 70.0, 60.0, trainer="CoOp")
    keys = [key for key, *_ in comparison.figures(tmp_path)[0][0]["columns"]]
    assert not set(comparison.SHOWN_BESIDE) & set(keys)
    for file in files:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": {"ece15": 2.5}}))
    figures, problems, _ = comparison.figures(tmp_path)
    lines = {line["method"]: line for line in figures[0]["rows"]}
    assert (lines["SkipTuning"]["ece15_base"], lines["CoOp"]["ece15_base"]) == (2.5, None) and not problems
    assert ["ece15_new", "ECE\nnew", "percent"] in figures[0]["columns"] and "gen_h" not in lines["CoOp"]
    (files[0].parent / "logits.npz").write_bytes(b"")
    assert comparison.figures(tmp_path)[1] == {}  # the other half kept none, so there is nothing to join
    (files[1].parent / "logits.npz").write_bytes(b"")
    assert any("is damaged" in why for why in comparison.figures(tmp_path)[1].values())


def test_published_numbers_with_extra_input_are_a_table_of_their_own(plant_run, tmp_path, capsys):
    plant_run(tmp_path, 80.0, 60.0)
    figures, *_ = comparison.figures(tmp_path)
    titles = [figure["title"].startswith("published only, with extra text or a teacher") for figure in figures]
    assert titles == [False] * (len(titles) - 1) + [True]
    values = [row["h"] for row in figures[-1]["rows"]]
    assert values == sorted(values, reverse=True)
    assert {row["extra"] for row in figures[-1]["rows"]} == {"text", "teacher"}
    places = {name for names in comparison.TABLES.values() for name in names}
    assert not places & {row["method"] for row in figures[-1]["rows"]}


def test_what_is_not_told_the_new_classes_has_a_row_beside_what_is(plant_run, tmp_path, compare):
    plant_run(tmp_path, 80.0, 60.0)
    plant_run(tmp_path, 75.0, 55.0, trainer="MMRL", learned=512)
    for file in plant_run(tmp_path, 70.0, 58.0, trainer="MMRL", config="embedded_uniform", learned=512):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol": "base2new", "preset": "uniform"}))
    tables = compare()[1]
    assert (tables[OWN]["MMRL"][0], tables[OWN]["MMRL, uniform"][0]) == ("75.00", "70.00")
    assert not any("MMRL, uniform" in rows for name, rows in tables.items() if name != OWN)  # its batches are its own


def test_what_takes_all_images_at_once_stands_in_both_tables(plant_run, tmp_path, compare):
    def tables_with(*names):
        tables = compare()[1]
        return [sum(name in rows for rows in tables.values()) for name in names]

    plant_run(tmp_path, 75.0, 55.0, trainer="LPpp", learned=512)
    plant_run(tmp_path, 74.0, 55.0, trainer="CoOp", learned=512)
    assert tables_with("LPpp", "CoOp") == [1, 1]  # there is no second one yet
    plant_run(tmp_path, 74.0, 55.0, trainer="IVLP", config="embedded_matched", learned=512)
    assert tables_with("LPpp", "CoOp", "IVLP") == [2, 1, 1]


def test_every_published_row_of_both_tables_has_its_place():
    published = {method for method, _ in Published().averages("base2new", "Average of 11")}
    assert published <= {name for names in comparison.TABLES.values() for name in names}


def test_an_empty_folder_says_which_command_fills_it(tmp_path, compare, capsys):
    code, _, err = compare()
    assert code == 2 and "bash scripts/compare.sh emoji" in err
