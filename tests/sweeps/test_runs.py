"""What a sweep consists of; nothing is run."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from sweeps.runs import ROOT, Run, content, load, progress, runs, with_bases, write_recipes

SWEEPS = {file.stem: yaml.safe_load(file.read_text()) for file in ROOT.glob("sweeps/*.yaml")}


def small(**other):
    return {"protocol": "base2new", "datasets": ["dtd"], "trainers": ["CoOp"], "seeds": [1], "output": "out"} | other


@pytest.mark.parametrize("name, number", [("table1", 11 * 3 * 2), ("table2", 15 * 3), ("few_shot", 11 * 15)])
def test_the_papers_tables_are_whole(name, number):
    assert len(runs(SWEEPS[name])) == number * len(list(ROOT.glob("configs/trainers/*")))


def test_the_document_says_how_many_runs_table1_has():
    assert f"# 0 of {len(runs(SWEEPS['table1'])):,} runs are done, " in (ROOT / "docs/SWEEPS.md").read_text()


def test_runs_lie_where_the_scripts_put_them_and_start_by_their_verbs():
    found = runs(small(shots=[16], options="OPTIM.LR 0.1"))
    (train, test) = found
    assert train == "out/base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed1"
    assert found[train].command.endswith("bash scripts/protocols/base2new_train.sh dtd 1")
    assert "'OPTIONS=OPTIM.LR 0.1'" in found[train].command and "TRAINER=CoOp" in found[train].command
    assert found[test].inputs[-1] == found[train].result


def test_a_run_reads_its_files_and_those_they_are_based_on():
    (train, _) = runs(small(presets=["matched"])).values()
    assert {line.split()[0] for line in content(train.files)[0].splitlines()} == {
        *("configs/trainers/CoOp/vit_b16.yaml", "configs/base/vit_b16.yaml", "configs/base/warmup.yaml"),
        *("configs/overlays/base2new.yaml", "configs/overlays/matched.yaml"),
        *("configs/datasets/dtd.yaml", "configs/templates.yaml"),
    }


COOP, OVERLAY, TEMPLATES = (
    "configs/trainers/CoOp/vit_b16.yaml",
    "configs/overlays/base2new.yaml",
    "configs/templates.yaml",
)


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder with a copy of the configs, all from 1970."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for file in tmp_path.rglob("*.yaml"):
        os.utime(file, (1000, 1000))
    monkeypatch.setattr("sweeps.runs.ROOT", tmp_path)
    yield tmp_path
    forget()


def forget():
    """Files are looked at again, as by another process."""
    for function in (load, with_bases, content):
        function.cache_clear()


def recipe_time(configs, dataset="dtd"):
    """What Snakemake sees of what a run reads."""
    forget()
    run = Run("r", "c", (COOP, OVERLAY, f"configs/datasets/{dataset}.yaml"))
    write_recipes({"r": run})
    (recipe,) = run.inputs
    return (configs / recipe).stat().st_mtime


def edit(file, old="", new="# edited\n"):
    text = file.read_text()
    file.write_text(text.replace(old, new) if old else text + new)


def test_what_a_run_reads_is_as_old_as_its_newest_file_and_no_newer_when_one_is_touched(configs):
    os.utime(configs / OVERLAY, (2000, 2000))
    assert recipe_time(configs) == 2000
    for name in (COOP, OVERLAY, TEMPLATES, "configs/datasets/dtd.yaml", "configs/base/vit_b16.yaml"):
        (configs / name).touch()
        assert recipe_time(configs) == 2000


def test_a_new_copy_of_the_project_has_no_newer_recipe_than_its_configs(configs):
    recipe_time(configs)
    shutil.rmtree(configs / ".snakemake")
    assert recipe_time(configs) == 1000


@pytest.mark.parametrize("name", [COOP, OVERLAY, "configs/datasets/dtd.yaml", "configs/base/vit_b16.yaml"])
def test_a_changed_file_makes_it_newer_whatever_is_touched_and_however_old_the_file_is(configs, name):
    recipe_time(configs)
    start = time.time()
    edit(configs / name)
    os.utime(configs / name, (500, 500))  # as after cp -p
    (configs / TEMPLATES).touch()
    changed = recipe_time(configs)
    assert changed > start - 1
    assert recipe_time(configs) == changed


def test_a_changed_template_concerns_the_runs_of_its_dataset(configs):
    for name in ("dtd", "eurosat"):
        recipe_time(configs, name)
    edit(configs / TEMPLATES, "EuroSAT: ", "EuroSAT: 'new' # ")
    assert recipe_time(configs, "dtd") == 1000 < recipe_time(configs, "eurosat")
    edit(configs / TEMPLATES, "default: ", "default: 'new' # ")
    assert recipe_time(configs, "dtd") > 1000


def test_4700_runs_read_no_file_twice_and_give_snakemake_little_to_look_at(monkeypatch):
    forget()
    read, parse = [], yaml.load
    monkeypatch.setattr(yaml, "load", lambda text, loader: read.append(text) or parse(text, loader))
    found = runs(SWEEPS["table1"] | {"seeds": list(range(1, 14))})
    contents = {content(run.files)[0] for run in found.values()}
    files = {line.split()[0] for text in contents for line in text.splitlines()}
    assert len(found) > 4700 and len(read) == len(files)
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
        ({"seeds": ["x"]}, "'seeds' must be a list of whole numbers, such as .*; 'x' is none"),
        ({"seeds": [1.5]}, "'seeds' must be a list of whole numbers, such as .*; 1.5 is none"),
        ({"shots": [0]}, "'shots' must be a list of whole numbers, such as .*; 0 is none"),
        ({"shots": ["a"]}, "'shots' must be a list of whole numbers"),
        ({"output": ["out"]}, "'output' must be one text, not"),
        ({"options": {"OPTIM.LR": 1}}, "'options' must be one text, not"),
        ({"protocol": "xd", "datasets": ["emoji"]}, "emoji is tested with 4 shots, and nothing is trained with these"),
        ({"presets": ["paper"]}, "none of these methods has such a recipe: TRAINERS=CoOp PRESETS=paper"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        runs(small(**wrong))


def test_a_config_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("a: [b\nc: d")
    with pytest.raises(ValueError, match=r"own.yaml is no YAML: while parsing"):
        progress(runs(small(cfg=str(tmp_path / "own.yaml"))))


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


def test_progress_counts_and_estimates(tmp_path):
    config = small(output=str(tmp_path), seeds=[1, 2, 3])
    assert progress(runs(config)) == "0 of 6 runs are done, 6 are left"
    start, results = time.time(), [Path(folder, "result.json") for folder in list(runs(config))[:3]]
    for at, result in enumerate(results):
        result.parent.mkdir(parents=True)
        result.touch()
        os.utime(result, (start + 600 * at, start + 600 * at))
    # the idle time since then doesn't count
    pace = "at the pace of the last 3 that takes about 30 minutes"
    assert progress(runs(config)) == f"3 of 6 runs are done, 3 are left; {pace}"
    os.utime(results[2], (0, 0))  # older than its config
    os.utime(results[0], (start + 700, start + 700))  # trained again after its test
    assert progress(runs(config)) == "1 of 6 runs are done, 5 are left"
