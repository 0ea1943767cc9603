"""What a sweep consists of; nothing is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sweeps.runs import ROOT, Run, progress, runs, with_bases

SWEEPS = {file.stem: yaml.safe_load(file.read_text()) for file in ROOT.glob("sweeps/*.yaml")}


def small(**other):
    return {"protocol": "base2new", "datasets": ["dtd"], "trainers": ["CoOp"], "seeds": [1], "output": "out"} | other


@pytest.mark.parametrize("name, number", [("table1", 11 * 3 * 2), ("table2", 15 * 3), ("few_shot", 11 * 15)])
def test_the_papers_tables_are_whole(name, number):
    assert len(runs(SWEEPS[name])) == number * len(list(ROOT.glob("configs/trainers/*")))


def test_the_document_says_how_many_runs_table1_has():
    assert f"# 0 of {len(runs(SWEEPS['table1'])):,} runs are done" in (ROOT / "docs/SWEEPS.md").read_text()


def test_runs_lie_where_the_scripts_put_them_and_start_by_their_verbs():
    found = runs(small(shots=[16], options="OPTIM.LR 0.1"))
    (train, test) = found
    assert train == "out/base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed1"
    assert found[train].command.endswith("bash scripts/protocols/base2new_train.sh dtd 1")
    assert "'OPTIONS=OPTIM.LR 0.1'" in found[train].command and "TRAINER=CoOp" in found[train].command
    assert found[test].inputs[-1] == found[train].result


def test_a_run_reads_its_files_and_those_they_are_based_on():
    (train, _) = runs(small(presets=["matched"])).values()
    assert set(train.reads) == {
        *("configs/trainers/CoOp/vit_b16.yaml", "configs/base/vit_b16.yaml", "configs/base/warmup.yaml"),
        *("configs/overlays/base2new.yaml", "configs/overlays/matched.yaml"),
        *("configs/datasets/dtd.yaml", "configs/templates.yaml"),
    }


def test_the_newest_of_its_files_decides_whether_a_result_is_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.runs.ROOT", tmp_path)
    for name, time in (("a.yaml", 3), ("b.yaml", 9), ("c.yaml", 6)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
    assert Run("r", "c", ["a.yaml", "b.yaml", "c.yaml"], ["trained/result.json"]).inputs == [
        "b.yaml",
        "trained/result.json",
    ]
    assert Run("r", "c", ["a.yaml", "c.yaml"]).inputs == ["c.yaml"]


def test_4700_runs_read_no_file_twice_and_give_snakemake_little_to_look_at(monkeypatch):
    with_bases.cache_clear()
    read, load = [], yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: read.append(text) or load(text))
    found = runs(SWEEPS["table1"] | {"seeds": list(range(1, 14))})
    assert len(found) > 4700 and len(read) == len({file for run in found.values() for file in run.reads})
    assert max(len(run.inputs) for run in found.values()) == 2


def test_transfer_waits_for_its_training():
    found = list(runs(small(protocol="xd", datasets=["dtd", "eurosat"])).values())
    assert [run.inputs[-1] for run in found[1:]] == [found[0].result] * 2


def test_every_shots_is_a_run():
    found = runs(small(protocol="few_shot", shots=[1, 4]))
    assert [re.search(r"_(\d+)shots", folder)[1] for folder in found] == ["1", "4"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"trainer": ["CoOp"]}, "a sweep has no 'trainer'"),
        ({"seeds": 3}, "'seeds' must be a list"),
        ({"protocol": "few"}, "^there is no protocol few"),
        ({"trainers": ["CoOpp"]}, "there is no trainer CoOpp; there are: CLIPAdapter "),
        ({"presets": ["mached"]}, "there is no preset mached"),
        ({"datasets": ["eurosatt"]}, "there is no dataset eurosatt"),
        ({"cfg": "typo"}, "there is no CFG typo"),
        ({"presets": ["paper"]}, "none of these methods has such a recipe: TRAINERS=CoOp PRESETS=paper"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        runs(small(**wrong))


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (train, test) = runs(small(output="~/runs", data="~/data")).values()
    assert train.result.startswith(f"{tmp_path}/runs/base2new/train_base/")
    assert f"OUTPUT={tmp_path}/runs DATA={tmp_path}/data " in train.command and test.inputs[-1] == train.result


def test_a_result_of_other_settings_is_not_taken_for_a_run(tmp_path):
    config = small(output=str(tmp_path), options="OPTIM.LR 0.1", prec="fp32")
    (train, test) = runs(config)
    Path(train).mkdir(parents=True)
    Path(train, "result.json").touch()  # of a plain run
    with pytest.raises(ValueError, match=f"the run in {train} is noted with other settings") as raised:
        runs(config)
    command = str(raised.value).split("this notes them: ")[1]
    assert command.startswith(f"TRAINER=CoOp OUTPUT={tmp_path} ") and "PREC=fp32 OPTIONS='OPTIM.LR 0.1' bash" in command
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")  # train.py says that it was finished before
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python)}
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, env=env).returncode == 0
    assert list(runs(config)) == [train, test]
    with pytest.raises(ValueError, match="other settings"):
        runs(config | {"prec": "bf16"})


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no lines 'key: value'"),
        ("- base2new\n", "has no lines 'key: value'"),
        ("protocol: [base2new\nseeds: 1", "is no YAML: while parsing a flow sequence"),
        ("1: 2\nx: y\n", "a sweep has no '1'"),
    ],
)
def test_a_broken_file_is_one_line_wherever_the_command_is_given(tmp_path, text, said):
    (tmp_path / "my.yaml").write_text(text)
    engine = tmp_path / "bin"
    engine.mkdir()
    (engine / "python").symlink_to(sys.executable)
    (engine / "snakemake").touch(mode=0o755)
    env = os.environ | {"SNAKEMAKE": str(engine / "snakemake"), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["bash", ROOT / "sweeps/run.sh", "my.yaml", "progress"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and said in done.stderr


def test_a_sweep_that_is_not_there_is_named(tmp_path):
    for words in (["my.yaml"], ["tabel1", "-n"]):
        command = ["bash", ROOT / "sweeps/run.sh", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(
            f"Error: there is no file {tmp_path}/{words[0]}; give the path of a sweep, or one of"
        )


def test_progress_counts_and_estimates(tmp_path):
    config = small(output=str(tmp_path), seeds=[1, 2, 3])
    assert progress(runs(config)) == "0 of 6 runs are done"
    for at, folder in enumerate(list(runs(config))[:3]):
        Path(folder).mkdir(parents=True)
        Path(folder, "result.json").touch()
        os.utime(Path(folder, "result.json"), (600 * at, 600 * at))
    assert progress(runs(config), now=1200) == "3 of 6 runs are done; at the pace of the last 3, about 30 minutes are left"
