"""Reading runs: files of every version, and damaged ones."""

import json
import os
import shutil
from pathlib import Path

import pytest

from results.gate import RESULT_LIMIT, Broken, read_record
from results.read import (
    DATASET_CONFIGS,
    absolute,
    check_together,
    dataset_stems,
    find_runs,
    read_folder,
    read_run,
)

OLD = Path(__file__).with_name("old_result.json")  # as commit 9e884e8 wrote it, but for its hundred class names
BASE = "base2new/train_base/emoji/shots_5/SkipTuning/embedded/seed1"
NEW = "base2new/test_new/emoji/shots_5/SkipTuning/embedded/seed1"


def old(**changes):
    return json.loads(OLD.read_text()) | changes


def new(protocol="base2new", **changes):
    """What a run writes now."""
    said = {"protocol": protocol, "preset": "recommended", "tested": "test", "split": "4bc2c4d6ae409d04" * 4}
    said |= {"images": "ab" * 32, "epochs": 6, "workers": 0, "peak_rss_mb": 900.5}
    record = old() | said | changes
    record.pop("split_hash")
    return record


@pytest.fixture
def put(tmp_path):
    """put(folder, record): a result.json there; the folder's full path."""

    def put(folder, record):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "result.json").write_text(json.dumps(record))
        return tmp_path / folder

    return put


class TestVersions:
    def test_a_file_of_the_first_version_is_read_and_placed_by_its_path(self, tmp_path):
        folder = tmp_path / BASE.replace("embedded", "embedded_matched")
        folder.mkdir(parents=True)
        shutil.copy(OLD, folder / "result.json")
        run = read_run(folder, tmp_path)
        assert (run.protocol, run.part, run.dataset, run.column) == ("base2new", "train_base", "emoji", "Base")
        assert (run.preset, run.config, run.shots, run.seed) == ("matched", "embedded_matched", 5, 1)
        assert (run.tested, run.split, run.value) == ("test", None, 52.63157894736842)
        assert run.costs == {"Train s": 15.75, "Extract s": 1.5, "Peak MB": 126.5, "RSS MB": None}
        assert run.record["learned_parameters"] == 6472960

    @pytest.mark.parametrize(
        ("record", "expected"),
        [
            (new(preset="paper"), ("base2new", "train_base", "emoji", "paper")),
            (new(subsample="new"), ("base2new", "test_new", "emoji", "recommended")),
            (new("few_shot", subsample="all"), ("few_shot", "few_shot", "emoji", "recommended")),
            (new("xd", subsample="all", dataset="ImageNet"), ("cross_dataset", "imagenet", "imagenet", "recommended")),
            (
                new("xd", subsample="all", dataset="DescribableTextures"),
                ("cross_dataset", "evaluation", "dtd", "recommended"),
            ),
            (new("xd", subsample="all", dataset="Birds"), ("cross_dataset", "evaluation", "Birds", "recommended")),
        ],
    )
    def test_a_file_that_says_its_protocol_needs_no_path(self, put, tmp_path, record, expected):
        run = read_run(put("anything/at all", record), tmp_path)
        assert (run.protocol, run.part, run.dataset, run.preset) == expected

    def test_outside_the_layout_its_own_file_and_the_preset_name_the_config(self, put, tmp_path):
        files = ["configs/trainers/CoOp/vit_b16.yaml", "configs/overlays/embedded.yaml", "configs/overlays/xd.yaml"]
        assert read_run(put("x", new(config_files=files, preset="matched")), tmp_path).config == "embedded_matched"
        assert read_run(put("y", new(config_files=[], preset="")), tmp_path).config == "-"

    def test_a_protocol_and_the_classes_that_were_tested_must_agree(self, put, tmp_path):
        with pytest.raises(Broken, match="says protocol base2new, but subsample all"):
            read_run(put("x", new(subsample="all")), tmp_path)

    def test_a_file_without_protocol_is_placed_by_its_path(self, put, tmp_path):
        run = read_run(put(BASE, new("", preset="")), tmp_path)
        assert (run.protocol, run.part, run.config) == ("base2new", "train_base", "embedded")

    def test_all_names_of_datasets_are_known(self):
        stems = dataset_stems()
        assert stems["OxfordPets"] == "oxford_pets" and stems["DescribableTextures"] == "dtd"
        assert sorted(stems.values()) == sorted(path.stem for path in DATASET_CONFIGS.glob("*.yaml"))

    def test_what_later_versions_add_is_kept(self, put, tmp_path):
        run = read_run(put("x", new(calibration={"ece15": 1.5}, unheard_of=[1])), tmp_path)
        assert run.record["calibration"] == {"ece15": 1.5} and run.record["unheard_of"] == [1]

    def test_the_log_says_which_split_an_older_run_was_tested_on(self, put, tmp_path):
        folder = put(BASE, old())
        (folder / "log.txt").write_text("Evaluate on the *test* set\n\nEvaluate on the *val* set\n=> result\n")
        assert read_run(folder, tmp_path).tested == "val"


DAMAGED = {
    "empty": (b"", "truncated or not JSON"),
    "cut off": (b'{"trainer": "Ski', "truncated or not JSON"),
    "utf-16": (json.dumps(old()).encode("utf-16"), "is not UTF-8"),
    "latin-1": ('{"trainer": "ü"}'.encode("latin-1"), "is not UTF-8"),
    "nested": (b"[" * 200_000, "can't be read as JSON"),
    "digits": (b'{"seed": ' + b"9" * 5000 + b"}", "can't be read as JSON"),
    "a list": (b"[]", "no JSON object"),
    "a number": (b"7", "no JSON object"),
    "too large": (b" " * (RESULT_LIMIT + 1), "more than 16,777,216 bytes"),
}
VALUES = [
    ("accuracy", None, "trained, not tested"),
    ("accuracy", float("nan"), "accuracy is nan"),
    ("accuracy", float("inf"), "accuracy is inf"),
    ("accuracy", 100.5, "accuracy is 100.5, not a number from 0 to 100"),
    ("accuracy", -1, "accuracy is -1, not a number from 0 to 100"),
    ("accuracy", True, "accuracy is True"),
    ("accuracy", [80], "accuracy is [80]"),
    ("macro_f1", "x", "macro_f1 is 'x'"),
    ("trainer", 7, "trainer is 7, not text"),
    ("trainer", "a\nb", "trainer is 'a\\nb', not text"),
    ("trainer", "x" * 1000, "trainer is 'xxx"),
    ("dataset", None, "dataset is None, not text"),
    ("subsample", "half", "subsample is 'half', not one of 'all', 'base', 'new'"),
    ("subsample", ["all"], "subsample is ['all']"),
    ("shots", "16", "shots is '16', not a whole number"),
    ("shots", 16.5, "shots is 16.5, not a whole number"),
    ("seed", None, "seed is None"),
    ("backbone", {}, "backbone is {}"),
    ("seconds", [], "seconds is [], not a table"),
    ("seconds", {"train": 1.0}, "seconds in result.json has no 'extract'"),
    ("seconds", {"train": -1.0, "extract": 0}, "train is -1.0, not a number of at least 0"),
    ("peak_memory_mb", "much", "peak_memory_mb is 'much'"),
    ("classnames", ["ant", 7], "classnames is ['ant', 7]"),
    ("classnames", ["ant"], "tested on one class"),
    ("protocol", "zero_shot", "protocol is 'zero_shot', not one of"),
    ("preset", ["paper"], "preset is ['paper']"),
    ("split", 12, "split is 12"),
    ("tested", False, "tested is False"),
    ("epochs", float("nan"), "epochs is nan"),
    ("calibration", 3, "calibration is 3, not a table"),
    ("versions", "2.14", "versions is '2.14'"),
]


class TestGate:
    @pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
    def test_a_damaged_file_is_named_with_its_fault(self, tmp_path, content, reason):
        folder = tmp_path / BASE
        folder.mkdir(parents=True)
        (folder / "result.json").write_bytes(content)
        runs, problems = read_folder(tmp_path)
        assert runs == [] and list(problems) == [folder] and reason in problems[folder]
        assert "\n" not in problems[folder] and len(problems[folder]) < 200

    @pytest.mark.parametrize(("key", "value", "reason"), VALUES)
    def test_a_value_that_no_run_writes_is_named_with_its_key(self, put, key, value, reason):
        with pytest.raises(Broken) as caught:
            read_record(put("x", new(**{key: value})) / "result.json")
        assert reason in str(caught.value) and len(str(caught.value)) < 200

    @pytest.mark.parametrize("key", ["trainer", "shots", "accuracy", "seconds", "peak_memory_mb"])
    def test_a_missing_key_is_named(self, put, key):
        record = old()
        del record[key]
        with pytest.raises(Broken, match=f"result.json has no '{key}'"):
            read_record(put("x", record) / "result.json")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    @pytest.mark.parametrize("name", ["result.json", "log.txt"])
    def test_a_pipe_is_not_waited_for(self, tmp_path, name):
        (tmp_path / BASE).mkdir(parents=True)
        os.mkfifo(tmp_path / BASE / name)
        assert read_folder(tmp_path)[1] == {tmp_path / BASE: f"{name} is not a regular file"}

    def test_a_dangling_link_is_broken_not_absent(self, tmp_path):
        (tmp_path / BASE).mkdir(parents=True)
        (tmp_path / BASE / "result.json").symlink_to("nowhere")
        assert "not a regular file" in read_folder(tmp_path)[1][tmp_path / BASE]

    @pytest.mark.parametrize("value", ["890.3", "nan", "1e999"])
    def test_a_log_with_no_percentage_is_broken(self, tmp_path, value):
        (tmp_path / BASE).mkdir(parents=True)
        (tmp_path / BASE / "log.txt").write_text(f"Finish training\n* accuracy: {value}%\n")
        assert "not a number from 0 to 100" in read_folder(tmp_path)[1][tmp_path / BASE]


class TestTogether:
    def problems(self, root):
        return {folder.relative_to(root).as_posix(): why for folder, why in read_folder(root)[1].items()}

    def test_halves_of_other_images_are_named(self, put, tmp_path):
        put(BASE, new(split="a" * 64))
        put(NEW, new(split="b" * 64, subsample="new"))
        assert self.problems(tmp_path) == {
            NEW: "no H with its base half: other images (split aaaaaaaaaaaaaaaa there, bbbbbbbbbbbbbbbb here)"
        }

    def test_halves_tested_on_other_splits_are_named(self, put, tmp_path):
        put(BASE, new())
        put(NEW, new(tested="val", subsample="new"))
        assert self.problems(tmp_path) == {NEW: "no H with its base half: tested on test there, on val here"}

    def test_an_older_half_goes_with_a_newer_one(self, put, tmp_path):
        put(BASE, old())
        put(NEW, new(subsample="new"))
        runs, problems = read_folder(tmp_path)
        assert not problems and {run.split for run in runs} == {"4bc2c4d6ae409d04" * 4}

    def test_runs_that_only_their_folders_tell_apart_are_left_out(self, put, tmp_path):
        put("lr_1", new("few_shot", subsample="all"))
        put("lr_2", new("few_shot", subsample="all"))
        put("lr_3", new("few_shot", subsample="all", seed=2))
        runs, problems = read_folder(tmp_path)
        assert [run.seed for run in runs] == [2]
        assert problems[tmp_path / "lr_1"].startswith(f"the same experiment and seed as {tmp_path / 'lr_2'}")
        assert problems[tmp_path / "lr_2"].startswith(f"the same experiment and seed as {tmp_path / 'lr_1'}")

    def test_a_missing_half_outside_the_layout_is_named_at_the_other(self, put, tmp_path):
        put("try", new())
        assert self.problems(tmp_path) == {"try": "its test_new run is missing"}

    def test_datasets_that_others_have_are_named_in_one_line_for_each_experiment(self, plant_run, tmp_path):
        grid = {"SkipTuning": ["dtd", "eurosat", "emoji"], "CoOp": ["dtd"], "IVLP": ["dtd", "emoji"]}
        for trainer, datasets in grid.items():
            for dataset in datasets:
                for seed in (1, 2):
                    plant_run(tmp_path, 80, 60, seed, trainer, dataset)
        place = "base2new/test_new/dtd/shots_5"
        assert self.problems(tmp_path) == {
            f"{place}/CoOp/embedded": "the same on emoji, eurosat is missing, but another experiment has it",
            f"{place}/IVLP/embedded": "the same on eurosat is missing, but another experiment has it",
        }

    @pytest.mark.parametrize(
        ("other", "lines"), [({}, 2), ({"backbone": "RN50"}, 0), ({"shots": 16}, 0), ({"tested": "val"}, 0)]
    )
    def test_a_dataset_is_missing_only_where_others_of_the_same_place_have_it(self, put, tmp_path, other, lines):
        put("one", new("few_shot", subsample="all"))
        put("two", new("few_shot", subsample="all", **{"dataset": "EuroSAT", "trainer": "CoOp", **other}))
        assert len(self.problems(tmp_path)) == lines

    def test_halves_outside_the_layout_are_a_pair(self, put, tmp_path):
        put("try", new())
        put("try_new", new(subsample="new"))
        assert self.problems(tmp_path) == {}

    def test_a_home_folder_is_meant_by_its_sign(self, monkeypatch, tmp_path, put):
        put("output/" + BASE, new())
        monkeypatch.setenv("HOME", str(tmp_path))
        assert absolute("~/output") == tmp_path / "output"
        assert len(read_folder("~/output")[0]) == 1

    def test_halves_with_seeds_of_their_own_are_paired_by_their_folders(self, put, tmp_path):
        put(BASE.replace("seed1", "seed-1"), new(seed=1234))
        put(NEW.replace("seed1", "seed-1"), new(seed=5678, subsample="new"))
        runs, problems = read_folder(tmp_path)
        assert not problems and {run.seed for run in runs} == {-1}

    def test_all_shots_are_part_of_the_layout(self, put, tmp_path):
        place = "few_shot/dtd/CoOp/vit_b16_few_shot_-1shots/seed1"
        put(place, old(trainer="CoOp", subsample="all", shots=-1))
        (run,), _ = read_folder(tmp_path)
        assert (run.protocol, run.config, run.shots, run.column) == ("few_shot", "vit_b16_few_shot", -1, "all")

    def test_check_together_of_nothing_is_nothing(self, tmp_path):
        assert find_runs(tmp_path) == [] and check_together([]) == ([], {})


class TestFinding:
    def test_links_to_folders_are_followed_and_each_folder_is_read_once(self, put, tmp_path):
        put(f"scratch/{BASE}", new())
        put(f"scratch/{NEW}", new(subsample="new"))
        top = tmp_path / "output"
        top.mkdir()
        (top / "base2new").symlink_to(tmp_path / "scratch/base2new")
        (top / "again").symlink_to(top)
        runs, problems = read_folder(top)
        assert not problems and sorted(run.file.parent for run in runs) == sorted([top / BASE, top / NEW])

    def test_a_run_has_its_own_name_where_a_link_leads_to_it(self, put, tmp_path):
        folder = put(BASE, new())
        (folder.parent / "latest").symlink_to("seed1")
        (tmp_path / "a").symlink_to("base2new")
        assert find_runs(tmp_path) == [folder]

    def test_a_log_above_runs_hides_none_and_is_none(self, put, tmp_path):
        folder = put(f"run/{BASE}", new())
        (tmp_path / "run/log.txt").write_text("nohup: ignoring input\n")
        (tmp_path / "lone").mkdir()
        (tmp_path / "lone/log.txt").write_text("Finish training\n* accuracy: 50%\n")
        assert find_runs(tmp_path) == [tmp_path / "lone", folder]


GOOD_BINS = {"count": [0, 2], "confidence": [None, 60.0], "accuracy": [None, 50.0]}


@pytest.mark.parametrize(
    ("calibration", "why"),
    [
        ({"ece15": "2"}, "ece15 is '2', not a number from 0 to 100"),
        ({"nll": -1}, "nll is -1, not a number of at least 0"),
        ({"bins15": {"count": [1]}}, ".*, not bins"),
        ({"bins15": {**GOOD_BINS, "count": [1, 2]}}, ".*, not bins"),  # a mean is missing
        ({"bins15": {**GOOD_BINS, "accuracy": [50.0]}}, ".*, not bins"),
        ({"bins15": {**GOOD_BINS, "count": [0, True]}}, ".*, not bins"),
        ({"temperature": 1.5}, "temperature is 1.5, not a table"),
    ],
)
def test_calibration_passes_the_gate_too(put, tmp_path, calibration, why):
    good = {"ece15": 2.0, "nll": None, "bins15": GOOD_BINS}
    assert read_run(put("good", new(calibration=good)), tmp_path).beside == {"ece15_base": 2.0}
    scaled = {"temperature": {"value": 1.5, "source": "val", "ece15": 1.0}}
    beside = read_run(put("scaled", new(calibration=good | scaled)), tmp_path).beside
    assert beside == {"ece15_base": 2.0, "ece15_t_base": 1.0}
    with pytest.raises(Broken, match="calibration at T in result.json is not what a run writes: ece15 is 101"):
        read_run(put("worse", new(calibration={"temperature": {"ece15": 101}})), tmp_path)
    with pytest.raises(Broken, match=f"calibration in result.json is not what a run writes: {why}"):
        read_run(put("bad", new(calibration=good | calibration)), tmp_path)
