"""Tables: what shares a cell and what doesn't, and their numbers as records and files."""

import csv
import io
import json
import os
import sys

import pytest

from parse_test_res import main
from results.published import Published
from results.read import dataset_stems, read_folder
from results.tables import CSV_COLUMNS, build_tables, cell_records, paper_value, write_text


@pytest.fixture
def plant(tmp_path, plant_run):
    """plant(base, new, ...): both halves of a seed, as runs write them now; `said` goes into result.json."""

    def plant(base, new, seed=1, said=None, **place):
        files = plant_run(tmp_path, base, new, seed, **place)
        for file in files:
            record = json.loads(file.read_text())
            record |= {"protocol": "base2new", "preset": "recommended", "tested": "test", "split": "a" * 64}
            file.write_text(json.dumps(record | (said or {})))
        return files

    return plant


def tables(root):
    return build_tables(read_folder(root)[0])


def change(file, **said):
    file.write_text(json.dumps(json.loads(file.read_text()) | said))


class TestCells:
    def test_what_was_tested_on_val_has_a_row_of_its_own(self, plant, tmp_path, capsys):
        plant(80.0, 60.0, seed=1)
        plant(70.0, 50.0, seed=2, said={"tested": "val"})
        (table,) = tables(tmp_path)
        assert [(row.name, row.cells["H"].n) for row in table.rows] == [("emoji", 1), ("emoji (val)", 1)]
        main([str(tmp_path), "--paper"])
        out = capsys.readouterr().out
        assert "emoji (val)" in out and "(val): tested on the validation images" in out

    def test_other_images_under_one_name_have_rows_of_their_own(self, plant, tmp_path):
        plant(80.0, 60.0, seed=1, dataset="custom", said={"dataset": "Custom"})
        plant(70.0, 50.0, seed=2, dataset="custom", said={"dataset": "Custom", "split": "b" * 64})
        (table,) = tables(tmp_path)
        assert [row.name for row in table.rows] == ["custom [aaaaaaaa]", "custom [bbbbbbbb]"]

    def test_halves_of_other_images_make_no_h(self, plant, tmp_path, capsys):
        _, new = plant(80.0, 60.0)
        change(new, split="b" * 64)
        (table,) = tables(tmp_path)
        assert [list(row.cells)[:1] for row in table.rows] == [["Base"], ["New"]]
        assert not any("H" in row.cells for row in table.rows)
        assert main([str(tmp_path)]) == 1
        assert "no H with its base half: other images" in capsys.readouterr().err

    def test_a_half_of_one_class_makes_no_h(self, plant, tmp_path, capsys):
        _, new = plant(80.0, 100.0)
        change(new, classnames=["ant"])
        assert main([str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert "100.00" not in out and "tested on one class" in err

    def test_all_shots_are_a_column_behind_the_others(self, tmp_path, capsys):
        for shots in (-1, 16, 2):
            folder = tmp_path / f"few_shot/dtd/CoOp/vit_b16_{shots}shots/seed1"
            folder.mkdir(parents=True)
            folder.joinpath("log.txt").write_text(f"Finish training\n* accuracy: {60 + shots}%\n")
        main([str(tmp_path)])
        out = capsys.readouterr().out
        assert "few_shot" in out and "other" not in out
        assert [line.split() for line in out.splitlines() if "Trainer" in line] == [["Trainer", "2", "16", "all", "n"]]
        main([str(tmp_path), "--csv", "-"])
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert {line["shots"]: line["mean"] for line in lines} == {"2": "62.0", "16": "76.0", "-1": "59.0"}

    def test_all_shots_stand_in_the_heading(self, plant_run, tmp_path, capsys):
        for file in plant_run(tmp_path, 80.0, 60.0):
            change(file, shots=-1)
            target = tmp_path / str(file.relative_to(tmp_path)).replace("shots_5", "shots_-1")
            target.parent.mkdir(parents=True)
            file.rename(target)
            file.parent.rmdir()
        assert main([str(tmp_path)]) == 0
        assert "base2new, emoji, embedded, all images, ViT-XS/16-icons" in capsys.readouterr().out

    def test_memory_of_the_process_shows_where_that_of_tensors_was_not_measured(self, plant, tmp_path, capsys):
        plant(80.0, 60.0, said={"peak_memory_mb": None, "peak_rss_mb": 901.4})
        main([str(tmp_path)])
        out = capsys.readouterr().out
        assert "RSS MB" in out and "901" in out and "Peak MB" not in out  # neither as a column nor in a note
        plant(80.0, 60.0, trainer="CoOp", said={"peak_memory_mb": 33.0, "peak_rss_mb": 901.4})
        main([str(tmp_path)])
        out = capsys.readouterr().out
        assert "901" not in out and "33.0" in out

    def test_older_and_newer_seeds_share_a_row(self, plant, plant_run, tmp_path):
        plant_run(tmp_path, 80.0, 60.0, 1)
        plant(70.0, 50.0, 2)
        (table,) = tables(tmp_path)
        (row,) = table.rows
        assert row.cells["H"].n == 2 and row.preset == "recommended" and row.split == "a" * 64


class TestAverages:
    def test_those_over_other_datasets_have_other_names(self, plant, tmp_path, capsys):
        names = {"dtd": "DescribableTextures", "eurosat": "EuroSAT", "ucf101": "UCF101", "food101": "Food101"}
        for trainer, datasets in {
            "CoOp": names,
            "KgCoOp": ["dtd", "eurosat"],
            "TCP": ["dtd", "ucf101", "food101"],
        }.items():
            for dataset in datasets:
                plant(80.0, 60.0, dataset=dataset, trainer=trainer, said={"dataset": names[dataset]})
        (table,) = tables(tmp_path)
        assert {row.trainer: row.name for row in table.averages} == {
            "CoOp": "Average of 4",
            "KgCoOp": "Average of 2 (dtd, eurosat)",
            "TCP": "Average of 3 (without eurosat)",
        }
        main([str(tmp_path), "--csv", "-"])
        assert "Average of 2 (dtd" in capsys.readouterr().out

    def test_a_dataset_with_several_splits_is_in_none(self, plant, tmp_path):
        for split, base in (("a", 80.0), ("b", 70.0)):
            seed = 1 if split == "a" else 2
            plant(base, 60.0, seed, dataset="custom", said={"dataset": "Custom", "split": split * 64})
        for dataset, name in (("dtd", "DescribableTextures"), ("eurosat", "EuroSAT")):
            plant(50.0, 40.0, dataset=dataset, said={"dataset": name})
        (table,) = tables(tmp_path)
        (row,) = table.averages
        assert (row.over, row.cells["Base"].mean) == (("dtd", "eurosat"), 50.0)

    def test_the_papers_stands_only_beside_one_over_its_datasets(self, plant, tmp_path):
        published = Published()
        names = {stem: name for name, stem in dataset_stems().items()}
        eleven = sorted(name for name in published.datasets if name in names)
        assert len(eleven) == 11
        for dataset in [*eleven[1:], "emoji"]:
            plant(80.0, 60.0, dataset=dataset, said={"dataset": names[dataset], "backbone": "ViT-B/16", "shots": 16})
        (table,) = tables(tmp_path)
        assert [row.name for row in table.averages] == ["Average of 11"]
        assert paper_value(table, table.averages[0], "H", published) == {}
        emoji = table.averages[0].over.index("emoji")
        table.averages[0].over = tuple(eleven)
        assert emoji >= 0 and paper_value(table, table.averages[0], "H", published)["value"]


class TestKeyword:
    def test_it_stands_in_titles_and_csv_unless_it_is_accuracy(self, plant, tmp_path, capsys):
        plant(80.0, 60.0)
        main([str(tmp_path)])
        plain = capsys.readouterr().out
        main([str(tmp_path), "--keyword", "macro_f1"])
        assert capsys.readouterr().out == plain.replace("base2new, emoji", "base2new, macro_f1, emoji")
        main([str(tmp_path), "--keyword", "macro_f1", "--csv", "-"])
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert {"Base macro_f1", "New macro_f1", "H macro_f1", "Train s"} <= {line["metric"] for line in lines}
        main([str(tmp_path), "--csv", "-"])
        assert "macro_f1" not in capsys.readouterr().out

    def test_errors_have_no_harmonic_mean(self, plant, tmp_path, capsys):
        plant(80.0, 60.0)
        plant(70.0, 60.0, dataset="dtd", said={"dataset": "DescribableTextures"})
        main([str(tmp_path), "--keyword", "error"])
        out = capsys.readouterr().out
        assert "base2new, error" in out and "40.00" in out and " H " not in out and "H:" not in out
        main([str(tmp_path), "--keyword", "error", "--csv", "-"])
        assert ",H" not in capsys.readouterr().out


class TestRecords:
    def test_a_cell_is_a_plain_dictionary_with_its_seeds(self, plant, tmp_path):
        plant(80.0, 60.0, seed=1)
        plant(90.0, 60.0, seed=2)
        records = cell_records(tables(tmp_path))
        (base,) = [record for record in records if record["metric"] == "Base"]
        assert (base["mean"], base["n"], base["seeds"], base["split"]) == (85.0, 2, {1: 80.0, 2: 90.0}, "a" * 64)
        assert set(CSV_COLUMNS) <= set(base)

    def test_csv_and_records_hold_the_same_numbers(self, plant, tmp_path, capsys):
        plant(200 / 3, 60.0)
        main([str(tmp_path), "--csv", "-"])
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        records = cell_records(tables(tmp_path))
        assert [(line["metric"], float(line["mean"])) for line in lines] == [(r["metric"], r["mean"]) for r in records]


class TestFiles:
    def test_a_home_folder_is_meant_by_its_sign(self, plant, tmp_path, monkeypatch):
        plant(80.0, 60.0)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert main([str(tmp_path), "--csv=~/table.csv"]) == 0
        assert (tmp_path / "table.csv").is_file() and not (tmp_path / "~").exists()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's devices")
    def test_a_device_is_written_to_and_stays(self, plant, tmp_path, capsys):
        plant(80.0, 60.0)
        link = tmp_path / "full"
        link.symlink_to("/dev/full")
        assert main([str(tmp_path), "--csv", str(link)]) == 2
        assert "No space left" in capsys.readouterr().err and link.is_symlink()
        write_text("/dev/null", "numbers")
        assert not os.path.isfile("/dev/null")

    def test_a_link_stays_a_link(self, tmp_path):
        (tmp_path / "real.csv").write_text("old")
        (tmp_path / "link.csv").symlink_to("real.csv")
        write_text(str(tmp_path / "link.csv"), "new")
        assert (tmp_path / "real.csv").read_text() == "new" and (tmp_path / "link.csv").is_symlink()

    def test_a_folder_is_no_file(self, plant, tmp_path, capsys):
        plant(80.0, 60.0)
        assert main([str(tmp_path), "--csv", str(tmp_path)]) == 2
        assert "Is a directory" in capsys.readouterr().err

    def test_a_console_that_lacks_characters_gets_the_table_all_the_same(self, plant, tmp_path, monkeypatch):
        plant(80.0, 60.0, seed=1)
        plant(90.0, 60.0, seed=2)
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
        assert main([str(tmp_path)]) == 0
        sys.stdout.flush()
        assert b"85.00 ?7.07" in raw.getvalue()
