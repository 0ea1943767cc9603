"""Sweeps on a real Slurm, which tests/sweeps/slurm.sh starts on loopback."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from .conftest import ROOT, SWEEP

PATHS = os.environ["PATH"] + ":/usr/sbin"
FLAGS = ["--executor", "slurm", "--jobs", "4", "--slurm-no-account", "--slurm-status-command", "squeue"]
FLAGS += ["--slurm-init-seconds-before-status-checks", "3", "--default-resources", "slurm_partition=main", "runtime=5"]
FLAGS += ["mem_mb=100"]
RUNS = 8


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """-> the variables that lead to a Slurm of this machine alone."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name, path=PATHS)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: apt-get install slurm-wlm munge")
    if not os.environ.get("SWEEP_TEST"):
        pytest.skip("takes minutes; run by: make sweep-test")
    folder = tmp_path_factory.mktemp("slurm")
    env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}/bin:{PATHS}"}
    with open(folder / "out", "w") as out:
        process = subprocess.Popen(["bash", ROOT / "tests/sweeps/slurm.sh", folder], stdout=out, stderr=out)
        for _ in range(60):
            time.sleep(1)
            asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=os.environ | env, capture_output=True, text=True)
            if asked.stdout.strip() == "idle":
                break
        else:
            process.terminate()
            pytest.fail(f"Slurm does not start: {(folder / 'out').read_text()}")
        yield env
        process.terminate()
        process.wait()


@pytest.fixture
def small(project):
    """The project with a sweep of 8 runs."""
    (project.folder / "small.yaml").write_text(yaml.safe_dump(SWEEP | {"output": "out", "datasets": ["dtd"]}))
    return project


@pytest.fixture
def expected(small):
    """What the same sweep leaves on this machine."""
    code, said = small.done(small.sweep("-c2"))
    results = small.results()
    assert code == 0 and len(results) == RUNS, said
    subprocess.run(["rm", "-r", small.output, small.calls_file], check=True)
    return results


def jobs(env):
    """The numbers of Slurm's jobs that wait or run."""
    command = ["squeue", "-h", "-t", "PENDING,RUNNING", "-o", "%i"]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True).stdout.split()


def test_results_are_those_of_this_machine_and_nothing_runs_twice(small, expected, slurm):
    code, said = small.done(small.sweep(*FLAGS, **slurm))
    assert code == 0, said
    assert small.results() == expected and len(small.calls()) == RUNS
    code, said = small.done(small.sweep(*FLAGS, **slurm))
    assert code == 0 and len(small.calls()) == RUNS


def test_kill_9_of_the_engine_and_scancel_and_the_same_command_goes_on(small, expected, slurm):
    process = small.sweep(*FLAGS, **slurm, SECONDS_EACH=2)
    small.until(2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["scancel", *jobs(slurm)[:1]], env=os.environ | slurm, check=True)
    code, said = small.done(small.sweep(*FLAGS, **slurm))
    assert code == 0, said
    assert small.results() == expected


def test_kill_9_of_a_job_is_made_good(small, expected, slurm):
    process = small.sweep(*FLAGS, **slurm, SECONDS_EACH=2)
    small.until(1, "start")
    os.kill(int(small.calls()[0][1]), signal.SIGKILL)
    code, said = small.done(process)
    assert code == 0, said
    assert small.results() == expected and len(small.calls()) == RUNS + 1
    assert len(small.calls("resumed")) == 1  # what the killed job had done was there still


def test_a_failing_job_leaves_the_others_and_is_named(small, expected, slurm):
    failing = "--seed 2 --trainer CoOp --dataset-config-file configs/datasets/dtd"
    code, said = small.done(small.sweep(*FLAGS, **slurm, FAIL_ON=failing))
    assert code == 1
    assert said.count("Failed: ") == 1
    assert "Failed: out/base2new/train_base/dtd/shots_16/CoOp/vit_b16/seed2/result.json" in said
    assert len(small.results()) == RUNS - 2  # nor is there a test on its new classes
    code, said = small.done(small.sweep(*FLAGS, **slurm))
    assert code == 0 and small.results() == expected, said
