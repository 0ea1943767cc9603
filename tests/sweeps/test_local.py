"""Sweeps on this machine, by a real Snakemake."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT, RUNS

COOP, TEMPLATES = "configs/trainers/CoOp/vit_b16.yaml", "configs/templates.yaml"


@pytest.fixture
def serial(project):
    """The bytes that the serial scripts leave for the same runs."""
    for trainer in ("CoOp", "SkipTuning"):
        settings = {"TRAINER": trainer, "SEEDS": "1 2", "OUTPUT": "out"}
        code, said = project.done(
            project.start("bash", "scripts/protocols/reproduce_base2new.sh", "dtd", "eurosat", **settings)
        )
        assert code == 0, said
    results = project.results()
    assert len(results) == RUNS
    table = project.done(project.start(project.env["PYTHON"], "parse_test_res.py", "out"))
    subprocess.run(["rm", "-r", project.output, project.calls_file], check=True)
    return results, table


def test_results_and_table_are_those_of_the_serial_scripts_and_nothing_runs_twice(project, serial):
    results, table = serial
    code, said = project.done(project.sweep("-c2"))
    assert code == 0, said
    assert project.results() == results
    assert project.done(project.start(project.env["PYTHON"], "parse_test_res.py", "out")) == table
    assert len(project.calls()) == RUNS
    code, said = project.done(project.sweep("-c2"))
    assert code == 0 and "16 of 16 runs are done, 0 are left" in said and len(project.calls()) == RUNS


def test_kill_9_of_the_engine_and_the_same_command_goes_on(project, serial):
    results, _ = serial
    process = project.sweep("-c2", SECONDS_EACH=0.3)
    project.until(3)
    os.kill(process.pid, signal.SIGKILL)  # its jobs live on
    process.wait()
    code, said = project.done(project.sweep("-c2"))
    assert code == 0, said
    assert project.results() == results


def test_kill_9_of_a_job_is_made_good(project, serial):
    results, _ = serial
    process = project.sweep("-c2", SECONDS_EACH=1)
    project.until(1, "start")
    os.kill(int(project.calls()[0][1]), signal.SIGKILL)
    code, said = project.done(process)
    assert code == 0, said
    assert project.results() == results and len(project.calls()) == RUNS + 1
    assert len(project.calls("resumed")) == 1  # what the killed job had done was there still


def test_a_failing_run_leaves_the_others_and_is_named(project):
    code, said = project.done(
        project.sweep("-c2", FAIL_ON="--seed 2 --trainer CoOp --dataset-config-file configs/datasets/dtd")
    )
    assert code == 1 and "said so" in said
    assert said.count("Failed: out/base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed2/result.json") == 1
    assert said.count("Failed: ") == 1
    assert len(project.results()) == RUNS - 2  # nor is there a test on its new classes
    before = len(project.calls())
    code, said = project.done(project.sweep("-c2"))
    assert code == 0 and len(project.results()) == RUNS and len(project.calls()) == before + 2


def test_a_changed_config_reruns_its_runs_and_a_touched_one_none(project):
    project.done(project.sweep("-c2"))
    time.sleep(0.1)
    for name in (TEMPLATES, COOP):
        (project.folder / name).touch()
        code, said = project.done(project.sweep("-c2"))
        assert code == 0 and len(project.calls()) == RUNS, said
    old = {}
    for trainer in ("CoOp", "SkipTuning"):
        old[trainer] = project.output / f"base2new/train_base/dtd/shots_16/{trainer}/vit_b16/seed1/learned/old"
        old[trainer].touch()
    with open(project.folder / COOP, "a") as file:
        file.write("SEED: 1\n")
    (project.folder / TEMPLATES).touch()
    code, said = project.done(project.sweep("-n"))
    assert code == 0 and "8 of 16 runs are done, 8 are left" in said and "SkipTuning" not in said
    code, said = project.done(project.sweep("-np"))
    assert code == 0 and said.count("bash scripts/protocols/") == said.count("TRAINER=CoOp") == RUNS // 2, said
    assert len(project.calls()) == RUNS
    code, said = project.done(project.sweep("-c2"))
    again = [folder for _, _, folder in project.calls()[RUNS:]]
    assert "8 of 16 runs are done, 8 are left" in said
    assert code == 0 and len(again) == RUNS // 2 and all("/CoOp/" in folder for folder in again), said
    assert old["SkipTuning"].exists() and not old["CoOp"].exists()  # which would be taken for the new run's


def test_a_changed_template_reruns_the_runs_of_its_dataset(project):
    project.done(project.sweep("-c2"))
    file = project.folder / TEMPLATES
    file.write_text(file.read_text().replace("EuroSAT: ", "EuroSAT: 'new' # "))
    code, said = project.done(project.sweep("-c2"))
    again = [folder for _, _, folder in project.calls()[RUNS:]]
    assert code == 0 and len(again) == RUNS // 2 and all("/eurosat/" in folder for folder in again), said


def test_the_table_shows_what_is_finished(project):
    process = project.sweep("-c1", SECONDS_EACH=0.3)
    project.until(2)
    os.killpg(process.pid, signal.SIGKILL)
    code, said = project.done(project.sweep("table"))
    assert code == 0 and "Base" in said and "paper" in said, said


def test_the_same_sweep_is_not_started_twice(project):
    project.sweep("-c1", SECONDS_EACH=1)
    project.until(1, "start")
    code, said = project.done(project.sweep("-c1"))
    assert code == 1 and "running already" in said


def test_no_gpu_has_more_jobs_than_slots_and_no_slot_is_lost(tmp_path):
    if not os.environ.get("SWEEP_TEST"):
        pytest.skip("takes minutes; run by: make sweep-test")
    log = tmp_path / "log"
    job = tmp_path / "job.py"
    job.write_text(
        "import os, sys, time\n"
        "def say(what):\n"
        "    with open(sys.argv[1], 'a') as log:\n"
        "        log.write(f\"{what} {os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\\n\")\n"
        "say('start'); time.sleep(0.2); say('end')\n"
    )
    env = os.environ | {"GPUS": "0,1", "JOBS_PER_GPU": "2", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(ROOT / "sweeps/slot.py"), sys.executable, str(job), str(log)]
    draw, killed = random.Random(1), set()
    running, left, most, used = [], 200, 0, set()
    while left or running:
        while left and len(running) < 8:
            running.append(subprocess.Popen(command, env=env))
            left -= 1
        time.sleep(0.03)
        alive = open_jobs(log, running)
        for gpu in "01":
            most = max(most, sum(at == gpu for at in alive.values()))
        used |= set(alive.values())
        if alive and len(killed) < 20 and draw.random() < 0.3:
            victim = draw.choice(sorted(alive))
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
        running = [process for process in running if process.poll() is None]
    ends = [line for line in log.read_text().splitlines() if line.startswith("end")]
    assert most == 2 and used == {"0", "1"} and len(killed) == 20
    assert len(ends) >= 180


def open_jobs(log: Path, running: list[subprocess.Popen]) -> dict[int, str]:
    """{process: its GPU} of the jobs that have a slot."""
    alive = {process.pid for process in running if process.poll() is None}
    found = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        what, gpu, number = line.split()
        if what == "start" and int(number) in alive:
            found[int(number)] = gpu
        elif what == "end":
            found.pop(int(number), None)
    return found
