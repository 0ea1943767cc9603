import csv
import io
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import parse_test_res
from parse_test_res import main
from results.published import PUBLISHED

SCRIPT = Path(parse_test_res.__file__)


def record(trainer="SkipTuning", dataset="Emoji", subsample="base", seed=1, accuracy=80.0, **changes):
    seconds = {"extract": 2.0, "train": 10.0, "test": 1.0}
    return {
        **{"trainer": trainer, "dataset": dataset, "subsample": subsample, "shots": 16, "seed": seed},
        **{"backbone": "ViT-B/16", "config": "vit_b16", "accuracy": accuracy, "macro_f1": accuracy - 1},
        **{"correct": 8, "total": 10, "split_hash": "0", "seconds": seconds, "peak_memory_mb": 400.0},
        **{"learned_parameters": 1, "versions": {}},
        **changes,
    }


def write(folder, content):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))


def write_log(folder, accuracy="89.3", end="Finish training", name="log.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    head = "Loading CLIP (backbone: ViT-B/16)\n* accuracy: 11.1%\n"
    (folder / name).write_text(f"{head}{end}\n=> result\n* total: 10\n* accuracy: {accuracy}%\n* macro_f1: 7.5%\n")


def b2n(root, part, seed, accuracy, dataset="emoji", trainer="SkipTuning", **changes):
    folder = root / "base2new" / part / dataset / "shots_16" / trainer / "vit_b16" / f"seed{seed}"
    subsample = "base" if part == "train_base" else "new"
    write(folder, record(trainer, dataset, subsample, seed, accuracy, **changes))
    return folder


def pairs(root, bases, news, **changes):
    for seed, (base, new) in enumerate(zip(bases, news, strict=True), start=1):
        b2n(root, "train_base", seed, base, **changes)
        b2n(root, "test_new", seed, new, **changes)


def line_of(text, *words):
    """The cells of the one line that contains all words."""
    found = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, text
    return re.split(r"\s{2,}|\s*\|\s*", found[0].strip().strip("|").strip())


def csv_of(capsys, root, *flags):
    code = main([str(root), "--csv", "-", *flags])
    return code, list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


class TestTables:
    def test_base_is_paired_with_new_and_h_is_taken_seed_by_seed(self, tmp_path, capsys):
        pairs(tmp_path, [80.0, 90.0], [60.0, 40.0])
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        h = [2 * 80 * 60 / 140, 2 * 90 * 40 / 130]
        expected = f"{statistics.mean(h):.2f} ±{statistics.stdev(h):.2f}"
        cells = line_of(out, "SkipTuning")
        assert cells == ["SkipTuning", "85.00 ±7.07", "50.00 ±14.14", expected, "12.0 (2.0)", "400", "2"]
        assert "sample standard deviation (n - 1)" in out

    def test_three_trainers_on_one_dataset_make_one_table_of_at_most_100_columns(self, tmp_path, capsys):
        for trainer, cost in (("ZeroshotCLIP", None), ("FinetuneCLIP", 1846.0), ("SkipTuning", 404.0)):
            seconds = {"extract": 0.0, "train": 0.0 if cost is None else 100.0, "test": 1.0}
            pairs(tmp_path, [70, 71, 72], [60, 61, 62], trainer=trainer, peak_memory_mb=cost, seconds=seconds)
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert out.count("Trainer ") == 1
        assert line_of(out, "ZeroshotCLIP")[-3:] == ["0.0", "-", "3"]
        assert line_of(out, "FinetuneCLIP")[-3:] == ["100", "1846", "3"]
        assert "emoji, vit_b16, 16 shots, ViT-B/16" in out.splitlines()[0]
        assert max(map(len, out.splitlines()[1:])) <= 100

    def test_average_row_has_the_harmonic_mean_of_the_averages_not_the_average_of_h(self, tmp_path, capsys):
        pairs(tmp_path, [90.0, 90.0], [90.0, 90.0], dataset="food101")
        pairs(tmp_path, [90.0, 90.0], [10.0, 10.0], dataset="dtd")
        _, lines = csv_of(capsys, tmp_path)
        h = {line["dataset"]: float(line["mean"]) for line in lines if line["metric"] == "H"}
        assert h["dtd"] == pytest.approx(18.0)
        assert h["Average of 2"] == pytest.approx(2 * 90 * 50 / 140)  # (90 + 18) / 2 would be 54

    def test_average_leaves_out_a_dataset_without_its_other_half(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0], dataset="food101")
        pairs(tmp_path, [70.0], [50.0], dataset="eurosat")
        b2n(tmp_path, "train_base", 1, 10.0, dataset="dtd")
        assert main([str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert line_of(out, "Average of 2", "75.00", "55.00")
        assert line_of(out, "dtd")[2:5] == ["10.00", "-", "-"]
        assert "test_new/dtd/shots_16/SkipTuning/vit_b16/seed1: missing, but its train_base run is there" in err

    def test_ci95_is_1_96_standard_errors_and_says_so(self, tmp_path, capsys):
        pairs(tmp_path, [80.0, 81.0, 82.0], [60.0, 60.0, 60.0])
        assert main([str(tmp_path), "--ci95"]) == 0
        out = capsys.readouterr().out
        assert line_of(out, "SkipTuning")[1] == f"81.00 ±{1.96 / 3**0.5:.2f}"
        assert "95% interval" in out

    def test_single_run_shows_no_spread(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0])
        main([str(tmp_path)])
        assert line_of(capsys.readouterr().out, "SkipTuning")[1:3] == ["80.00", "60.00"]

    def test_few_shot_has_a_column_per_shots_in_numeric_order(self, tmp_path, capsys):
        for dataset in ("dtd", "eurosat"):
            for shots in (16, 2, 1):
                folder = tmp_path / "few_shot" / dataset / "SkipTuning" / f"vit_b16_{shots}shots" / "seed1"
                write(folder, record(subsample="all", accuracy=50.0 + shots, shots=shots))
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert line_of(out, "Dataset") == ["Dataset", "Trainer", "1", "2", "16", "n"]
        assert line_of(out, "Average of 2") == ["Average of 2", "SkipTuning", "51.00", "52.00", "66.00"]

    def test_cross_dataset_averages_targets_without_source_and_variants_apart(self, tmp_path, capsys):
        write(tmp_path / "imagenet/CoOp/rn50_16shots/seed1", record("CoOp", subsample="all", accuracy=70.0))
        for dataset, accuracy in (("dtd", 40.0), ("food101", 80.0), ("imagenetv2", 1.0), ("imagenet_a", 3.0)):
            folder = tmp_path / "evaluation" / "CoOp" / "rn50_16shots" / dataset / "seed1"
            write(folder, record("CoOp", subsample="all", accuracy=accuracy))
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert line_of(out, "Average of 2 ", "CoOp", "60.00")
        assert line_of(out, "Average of 2 ImageNet variants", "2.00")
        assert out.index("imagenet ") < out.index("dtd")
        assert line_of(out, "imagenet ")[2:5] == ["70.00", "12.0 (2.0)", "400"]
        assert line_of(out, "dtd")[3:5] == ["-", "-"]

    def test_run_outside_the_layout_is_shown_not_dropped(self, tmp_path, capsys):
        write(tmp_path / "mine" / "try" / "seed1", record("CoOp", subsample="all", accuracy=71.25))
        write(tmp_path / "mine" / "other" / "seed2", record("CoOp", subsample="all", accuracy=60.5))
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert line_of(out, "mine/try", "71.25") and line_of(out, "mine/other", "60.50")

    def test_same_experiment_in_two_roots_is_not_merged(self, tmp_path, capsys):
        pairs(tmp_path / "omega3", [80.0], [60.0])
        pairs(tmp_path / "omega6", [90.0], [70.0])
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert "80.00" in out and "90.00" in out and "85.00" not in out

    def test_two_backbones_are_not_averaged(self, tmp_path, capsys):
        b2n(tmp_path, "train_base", 1, 80.0)
        b2n(tmp_path, "train_base", 2, 90.0, backbone="ViT-L/14")
        main([str(tmp_path)])
        out = capsys.readouterr().out
        assert "80.00" in out and "90.00" in out and "85.00" not in out

    def test_keyword_chooses_the_metric(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0])
        main([str(tmp_path), "--keyword", "macro_f1"])
        assert line_of(capsys.readouterr().out, "SkipTuning")[1] == "79.00"
        assert main([str(tmp_path), "--keyword", "nonsense"]) == 1
        assert "seed1: no log.txt with 'nonsense'" in capsys.readouterr().err
        main([str(tmp_path), "--keyword", "error"])
        assert line_of(capsys.readouterr().out, "SkipTuning")[1] == "20.00"


class TestProblems:
    def fail(self, root, capsys):
        assert main([str(root)]) == 1
        return capsys.readouterr()

    def test_truncated_result_is_listed_and_not_counted(self, tmp_path, capsys):
        pairs(tmp_path, [80.0, 80.0, 80.0], [60.0, 60.0, 60.0])
        broken = tmp_path / "base2new/test_new/emoji/shots_16/SkipTuning/vit_b16/seed2"
        (broken / "result.json").write_text('{"trainer": "Skip')
        out, err = self.fail(tmp_path, capsys)
        assert line_of(out, "SkipTuning")[1:4] == ["80.00 ±0.00", "60.00 ±0.00", "68.57 ±0.00"]
        assert line_of(out, "SkipTuning")[-1] == "3/2/2"
        assert err.count(str(broken)) == 1 and "truncated" in err

    def test_missing_seed_is_listed_against_the_fullest_experiment(self, tmp_path, capsys):
        pairs(tmp_path, [80.0, 80.0, 80.0], [60.0, 60.0, 60.0])
        pairs(tmp_path, [80.0, 80.0], [60.0, 60.0], trainer="CoOp")
        _, err = self.fail(tmp_path, capsys)
        for part in ("train_base", "test_new"):
            path = tmp_path / "base2new" / part / "emoji/shots_16/CoOp/vit_b16/seed3"
            assert f"{path}: missing, but another experiment has seed 3" in err

    def test_empty_seed_folder_is_listed(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0])
        (tmp_path / "base2new/train_base/emoji/shots_16/SkipTuning/vit_b16/seed2/learnable_params").mkdir(parents=True)
        _, err = self.fail(tmp_path, capsys)
        assert "seed2: neither result.json nor log.txt" in err

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"accuracy": None}, "trained, not tested"),
            ({"accuracy": "high"}, "not what a run writes"),
            ({"accuracy": float("nan")}, "accuracy is nan"),
            ({"seconds": {}}, "no 'extract'"),
            ({"seed": 7}, "says seed 7, the path says 1"),
            ({"trainer": "CoOp"}, "says trainer CoOp, the path says SkipTuning"),
            ({"subsample": "all"}, "says subsample all, the path says base"),
        ],
    )
    def test_result_that_is_wrong_or_contradicts_its_path_is_broken(self, tmp_path, capsys, change, reason):
        folder = tmp_path / "base2new/train_base/emoji/shots_16/SkipTuning/vit_b16/seed1"
        write(folder, record() | change)
        out, err = self.fail(tmp_path, capsys)
        assert reason in err
        assert "80.00" not in out

    def test_nothing_to_read_is_exit_code_2(self, tmp_path, capsys):
        assert main([str(tmp_path / "absent")]) == 2
        assert "no result.json and no log.txt" in capsys.readouterr().err

    def test_csv_into_a_missing_folder_is_exit_code_2_with_a_reason(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0])
        assert main([str(tmp_path), "--csv", str(tmp_path / "absent" / "a.csv")]) == 2
        assert "No such file" in capsys.readouterr().err


class TestLogs:
    @pytest.mark.parametrize("end", ["Finish training", "Finished training"])
    def test_training_log_counts_after_its_end_line_only(self, tmp_path, capsys, end):
        folder = tmp_path / "base2new/train_base/dtd/shots_16/CoOp/rn50/seed1"
        write_log(folder, "89.3", end)
        main([str(tmp_path)])
        assert line_of(capsys.readouterr().out, "CoOp")[1] == "89.30"
        write_log(folder, "89.3", "epoch [1/2]")
        assert main([str(tmp_path)]) == 1
        assert "seed1: unfinished?" in capsys.readouterr().err

    def test_a_run_that_an_error_stopped_says_which(self, tmp_path, capsys):
        folder = tmp_path / "base2new/train_base/dtd/shots_16/CoOp/rn50/seed1"
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("Loading dataset: DescribableTextures\nError: folder dtd not found in data\n")
        assert main([str(tmp_path)]) == 1
        assert "seed1: stopped by an error: folder dtd not found in data" in capsys.readouterr().err

    def test_log_of_test_new_needs_no_training(self, tmp_path, capsys):
        for part, accuracy in (("train_base", "80.0"), ("test_new", "60.0")):
            folder = tmp_path / "base2new" / part / "dtd/shots_16/CoOp/rn50/seed1"
            write_log(folder, accuracy, end="Finish training" if part == "train_base" else "")
        assert main([str(tmp_path)]) == 0
        assert line_of(capsys.readouterr().out, "CoOp")[1:] == ["80.00", "60.00", "68.57", "-", "-", "1"]

    def test_last_result_of_a_log_counts_and_folders_inside_a_run_do_not(self, tmp_path, capsys):
        folder = tmp_path / "few_shot/dtd/CoOp/rn50_16shots/seed1"
        write_log(folder, "10.0")
        with open(folder / "log.txt", "a") as file:
            file.write("=> result\n* accuracy: 4.05e+1%\n")
        write_log(folder / "evaluation", "99.0")
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert line_of(out, "CoOp")[1] == "40.50"
        assert "99.00" not in out

    def test_log_of_an_eval_only_run_needs_no_training(self, tmp_path):
        folder = tmp_path / "few_shot/dtd/ZeroshotCLIP/rn50_16shots/seed1"
        write_log(folder, end="")
        assert main([str(tmp_path)]) == 1
        (folder / "log.txt").write_text("eval_only: True\n" + (folder / "log.txt").read_text())
        assert main([str(tmp_path)]) == 0

    def test_newest_log_wins_and_result_json_wins_over_logs(self, tmp_path, capsys):
        folder = tmp_path / "few_shot/dtd/CoOp/rn50_16shots/seed1"
        write_log(folder, "10.0")
        write_log(folder, "30.0", name="log.txt-2025-02-01-00-00-00")
        write_log(folder, "20.0", name="log.txt-2025-01-01-00-00-00")
        main([str(tmp_path)])
        assert line_of(capsys.readouterr().out, "CoOp")[1] == "30.00"
        (folder / "result.json").write_text(json.dumps(record("CoOp", subsample="all", accuracy=31.25)))
        main([str(tmp_path)])
        assert line_of(capsys.readouterr().out, "CoOp")[1] == "31.25"


class TestOneExperiment:
    def test_summary_has_the_lines_of_coop(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for seed, accuracy in ((1, 89.0), (2, 89.5), (3, 90.3)):
            write_log(tmp_path / "exp" / f"seed{seed}", accuracy)
        assert main(["exp"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "file: exp/seed1/log.txt. accuracy: 89.00%. "
        assert lines[3:7] == ["===", "Summary of directory: exp", "* accuracy: 89.60% +- 0.66%", "==="]
        assert "sample standard deviation (n - 1), n = 3" in lines[7]

    def test_multi_exp_averages_the_means_of_its_folders(self, tmp_path, capsys):
        for dataset, accuracies in (("dtd", (60.0, 62.0)), ("eurosat", (80.0, 82.0, 84.0))):
            for seed, accuracy in enumerate(accuracies):
                write_log(tmp_path / dataset / f"seed{seed}", accuracy)
        assert main([str(tmp_path), "--multi-exp"]) == 0
        out = capsys.readouterr().out
        assert out.count("Summary of directory") == 2
        assert out.splitlines()[-2:] == ["Average performance", "* accuracy: 71.50%"]

    def test_test_log_reads_evaluation_logs(self, tmp_path, capsys):
        write_log(tmp_path / "seed1", "66.6", end="")
        assert main([str(tmp_path)]) == 1
        assert main([str(tmp_path), "--test-log", "--keyword", "macro_f1"]) == 0
        assert "* macro_f1: 7.50%" in capsys.readouterr().out

    def test_broken_seed_is_listed_and_the_rest_summarised(self, tmp_path, capsys):
        write_log(tmp_path / "seed1", "66.6")
        write_log(tmp_path / "seed2", "66.6", end="")
        assert main([str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        assert "* accuracy: 66.60%\n" in out
        assert "seed2: unfinished?" in err


class TestFormats:
    def test_csv_is_tidy_and_at_full_precision(self, tmp_path, capsys):
        pairs(tmp_path, [200 / 3, 200 / 3], [50.0, 50.0])
        target = tmp_path / "out.csv"
        assert main([str(tmp_path), "--csv", str(target)]) == 0
        assert "66.67" in capsys.readouterr().out
        with open(target, newline="") as file:
            lines = {line["metric"]: line for line in csv.DictReader(file)}
        assert set(lines) == {"Base", "New", "H", "Train s", "Extract s", "Peak MB"}
        assert float(lines["Base"]["mean"]) == 200 / 3
        assert (lines["Base"]["n"], lines["Base"]["dataset"], lines["Base"]["shots"]) == ("2", "emoji", "16")
        assert not list(tmp_path.glob("*.tmp"))

    def test_markdown_and_latex_are_whole_tables(self, tmp_path, capsys):
        pairs(tmp_path, [80.0], [60.0])
        main([str(tmp_path), "--markdown", "--paper"])
        assert line_of(capsys.readouterr().out, "SkipTuning", "|")[1] == "80.00"
        main([str(tmp_path), "--latex"])
        out = capsys.readouterr().out
        assert r"\begin{tabular}" in out
        outside = re.sub(r"\\begin.*\\end\{tabular\}", "", out, flags=re.DOTALL)
        assert all(line.startswith("% ") for line in outside.splitlines() if line)

    def test_help_prints(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        assert "95%" in capsys.readouterr().out

    def test_script_starts_without_torch(self, tmp_path):
        code = "import sys, parse_test_res; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent).returncode == 0


class TestPaper:
    def test_published_value_stands_beside_ours(self, tmp_path, capsys):
        pairs(tmp_path, [92.0], [83.0], dataset="eurosat")
        main([str(tmp_path), "--paper"])
        cells = line_of(capsys.readouterr().out, "SkipTuning")
        assert cells[1:7] == ["92.00", "92.47", "83.00", "83.00", "87.27", "87.48"]

    def test_published_average_needs_the_same_number_of_datasets(self, tmp_path, capsys):
        datasets = {line["dataset"] for line in published() if not line["dataset"].startswith("Average")}
        for dataset in sorted(datasets)[:10]:
            pairs(tmp_path, [80.0], [60.0], dataset=dataset, trainer="FinetuneCLIP")
        _, lines = csv_of(capsys, tmp_path, "--paper")
        assert all(line["paper"] == "" for line in lines)
        pairs(tmp_path, [80.0], [60.0], dataset=sorted(datasets)[10], trainer="FinetuneCLIP")
        _, lines = csv_of(capsys, tmp_path, "--paper")
        average = {line["metric"]: line["paper"] for line in lines if line["dataset"] == "Average of 11"}
        assert (average["Base"], average["New"], average["H"]) == ("84.99", "74.26", "79.27")

    def test_other_backbone_has_no_published_value(self, tmp_path, capsys):
        pairs(tmp_path, [92.0], [83.0], dataset="eurosat", backbone="ViT-XS/16-icons")
        _, lines = csv_of(capsys, tmp_path, "--paper")
        assert all(line["paper"] == "" for line in lines)

    def test_printing_error_of_a_paper_is_flagged(self, tmp_path, capsys):
        pairs(tmp_path, [92.0], [83.0], dataset="caltech101", trainer="CoOp")
        main([str(tmp_path), "--paper"])
        out = capsys.readouterr().out
        assert "89.31*" in out
        assert "* CoOp, caltech101, New: printing error?" in out


def published():
    with open(PUBLISHED, newline="") as file:
        return list(csv.DictReader(file))


class TestPublishedFile:
    def test_every_line_names_its_source_and_none_is_there_twice(self):
        lines = published()
        keys = [tuple(line[key] for key in ("protocol", "method", "dataset", "shots", "metric")) for line in lines]
        assert len(set(keys)) == len(keys)
        assert all(line["source"] and float(line["value"]) > 0 for line in lines)

    def test_averages_and_h_recompute_but_for_the_flagged_printing_errors(self):
        """Within 0.03: the papers round each number before they average."""
        table = {}
        for line in published():
            if line["protocol"] == "base2new" and line["metric"] in ("Base", "New", "H"):
                table.setdefault(line["method"], {}).setdefault(line["dataset"], {})[line["metric"]] = line
        flagged = []
        for method, datasets in table.items():
            value = {name: {key: float(line["value"]) for key, line in row.items()} for name, row in datasets.items()}
            for name, row in value.items():
                if abs(statistics.harmonic_mean([row["Base"], row["New"]]) - row["H"]) > 0.03:
                    flagged.append((method, name))
                    assert any(line["note"] for line in datasets[name].values()), (method, name)
            mean = value.pop("Average of 11")
            for metric in ("Base", "New") if value else ():
                error = abs(statistics.fmean(row[metric] for row in value.values()) - mean[metric])
                assert error < 0.03 + 0.5 / 11 * ((method, metric) == ("CoOp", "New"))
        assert sorted(flagged) == [("CoCoOp", "sun397"), ("CoOp", "caltech101"), ("PromptSRC", "dtd")]

    def test_digitised_few_shot_curves_average_to_the_printed_mean(self):
        ours = [line for line in published() if (line["protocol"], line["method"]) == ("few_shot", "SkipTuning")]
        for shots in ("1", "2", "4", "8", "16"):
            values = {line["dataset"]: float(line["value"]) for line in ours if line["shots"] == shots}
            assert values.pop("Average of 11") == pytest.approx(statistics.fmean(values.values()), abs=0.05)
