"""The scripts around Snakemake, which a stand-in takes the place of."""

import os
import shutil
import subprocess
import sys

import pytest

from sweeps.runs import ROOT

ENGINE = """#!/bin/sh
echo "GPUS=$GPUS $*"
if [ -n "$INNER" ]; then
  words=$INNER
  unset INNER
  bash sweeps/run.sh $words || exit $?
fi
"""


@pytest.fixture
def run(tmp_path):
    """`run(WORD ...)`: run.sh of a copy of the project; $INNER has the words of a second call while it runs."""
    shutil.copytree(ROOT / "sweeps", tmp_path / "project" / "sweeps")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    (tmp_path / "bin/snakemake").write_text(ENGINE)
    (tmp_path / "bin/snakemake").chmod(0o755)
    settings = {"SNAKEMAKE": tmp_path / "bin/snakemake", "PYTHONPATH": os.pathsep.join(sys.path)}

    def call(*words, **env):
        env = os.environ | {name: str(value) for name, value in (settings | env).items()}
        script = tmp_path / "project/sweeps/run.sh"
        return subprocess.run(["bash", script, *words], cwd=tmp_path, env=env, capture_output=True, text=True)

    return call


@pytest.mark.parametrize("word", ["progress", "-n"])
@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has no lines 'key: value'"),
        ("- base2new\n", "has no lines 'key: value'"),
        ("protocol: [base2new\nseeds: 1", "is no YAML: while parsing a flow sequence"),
        ("output: \xe9", "is no YAML: 'utf-8' codec can't decode"),
        ("1: 2\nx: y\n", ": a sweep has no '1'"),
        ("datasets: dtd\n", ": 'datasets' must be a list"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(run, tmp_path, text, said, word):
    (tmp_path / "my.yaml").write_bytes(text.encode("latin-1"))
    done = run("my.yaml", word)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"Error: {tmp_path}/my.yaml") and said in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (["table"], "table -c1"),
        (["table", "-c2"], "table -c2"),
        (["--cores", "3", "table"], "--cores 3 table"),
        (["-c2"], "-c2"),
    ],
)
def test_the_table_needs_no_number_of_cores(run, words, said):
    done = run("table1", *words)
    assert done.returncode == 0 and done.stdout.endswith(f" --profile sweeps/profile {said}\n"), done.stderr


@pytest.mark.parametrize("words", [["--executor", "slurm"], ["--executor=slurm"], ["-e", "slurm"]])
def test_jobs_of_slurm_have_the_gpu_that_slurm_gives_them(run, words):
    assert run("table1", *words, "--jobs", "2", GPUS="0,1").stdout.startswith("GPUS= ")


def test_in_a_job_of_slurm_the_gpus_of_an_allocation_are_used(run):
    assert run("table1", "-c2", GPUS="0,1", SLURM_JOB_ID="7").stdout.startswith("GPUS=0,1 ")


@pytest.mark.parametrize("words", ["-c2", "--executor slurm"])
def test_a_sweep_that_runs_is_not_started_again(run, words):
    done = run("table1", "-c2", INNER=f"table1 {words}")
    assert done.returncode == 1 and "running already" in done.stderr


@pytest.mark.parametrize("words", ["-n", "-nq", "-pn", "--dry-run", "--dryrun", "--dag", "table"])
def test_a_sweep_that_runs_can_be_looked_at(run, words):
    done = run("table1", "-c2", INNER=f"table1 {words}")
    assert done.returncode == 0 and done.stdout.count("GPUS=") == 2, done.stderr


@pytest.mark.parametrize(
    "words, flags",
    [("-n", "-n --quiet"), ("--dry-run", "--dry-run --quiet"), ("-np", "-np"), ("-n --verbose", "-n --verbose")],
)
def test_a_dry_run_counts_unless_more_is_asked_for(run, words, flags):
    assert run("table1", *words.split()).stdout.endswith(f" --profile sweeps/profile {flags}\n")


def test_another_sweep_of_the_same_name_runs_beside(run, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my.yaml").write_text("protocol: xd\n")
    done = run("one/my.yaml", "-c2", INNER=f"{tmp_path}/two/my.yaml -c2")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kept", ["resume.pt", ".lock", ".lock.owner", None])
def test_models_of_a_finished_run_go_and_those_of_an_unfinished_one_stay(tmp_path, kept):
    run = tmp_path / "a folder" / "seed1"
    for name in ("learned", "other part", "logs"):
        (run / name).mkdir(parents=True)
    for file in (
        "learned/checkpoint",
        "learned/model.pth.tar-1",
        "other part/checkpoint",
        "logs/log.txt",
        "config.yaml",
    ):
        (run / file).touch()
    if kept:
        (run / kept).touch()
    before = set(run.rglob("*"))
    subprocess.run(["bash", ROOT / "sweeps/anew.sh", run], check=True)
    expected = before if kept else {run / "logs", run / "logs/log.txt", run / "config.yaml"}
    assert set(run.rglob("*")) == expected


def test_a_run_without_models_or_folder_begins(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        subprocess.run(["bash", ROOT / "sweeps/anew.sh", folder], check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("gpu", ["1", "MIG-GPU-a5/1/0"])
def test_a_slot_is_a_gpu_also_within_an_allocation_of_slurm(tmp_path, gpu):
    words = [sys.executable, ROOT / "sweeps/slot.py", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    env = os.environ | {"GPUS": gpu, "SLURM_JOB_ID": "7", "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{gpu}\n", "")
