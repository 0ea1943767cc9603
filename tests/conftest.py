"""What all tests share: nothing of the user's is touched, and no test leaves its mark on the next."""

import copy
import functools
import gc
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tabulate import tabulate

from clip.model import CLIP
from dassl.utils import download
from tests.server import Server
from tests.sizes import TINY

# Files and folders that start processes, train or export: `make quick` leaves them out.
SLOW = (
    *("bad_input/", "benchmarks/", "clip/test_files.py", "clip/test_formats.py", "clip/test_hub.py"),
    *("clip/test_load.py", "clip/test_model.py", "dassl/test_data.py", "dassl/test_decoded.py"),
    *("dassl/test_files.py", "dassl/test_imports.py", "dassl/test_lock.py"),
    *("dassl/test_memory.py", "dassl/test_resume.py", "datasets/test_fetch", "datasets/test_published"),
    *("results/test_figures.py", "results/test_page.py", "swap/", "sweeps/", "test_config_files.py"),
    *("test_ablate_scripts.py", "test_embedded", "test_export.py", "test_joined", "test_kills.py", "test_make.py"),
    *("test_oracles.py", "test_own_modules.py", "test_predict", "test_scripts.py", "test_sweep_scripts.py"),
    *("test_train.py", "trainers/test_", "trainers/parts/test_exact.py", "trainers/parts/test_precision.py"),
)


def pytest_collection_modifyitems(items):
    """Mark what is slow, see pyproject.toml."""
    for item in items:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        if name.startswith(SLOW) or item.name.startswith("test_the_four_steps"):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """What the imports made stays to the end: garbage collections and memory meters need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """The table of `make gpu-check`: each test with its outcome and the figures that it recorded."""
    if terminalreporter.config.option.markexpr != "cuda":
        return
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            figures = getattr(report, "user_properties", [])  # a file that can't be imported has none
            name = report.nodeid.partition("::")[2] or report.nodeid
            rows.append((name, outcome, "; ".join(f"{key} {value}" for key, value in figures)))
    ran = any(outcome != "skipped" for _, outcome, _ in rows)
    terminalreporter.write_line(tabulate(rows, ["test", "outcome", "figures"]) if ran else "No test ran.")


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_users(tmp_path_factory):
    """CLIP's weights are unpacked into a folder of this test run, and no variable says where else to look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_CACHE", str(tmp_path_factory.mktemp("clip_cache")))
        for name in ("DATA", "HF_ENDPOINT"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from the same generators, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; downloads from it don't wait between tries and go through no proxy."""
    monkeypatch.setattr(download, "WAIT_SECONDS", 0)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def make_clip():
    """make_clip(**sizes) -> a CLIP in fp32 with every parameter random, also those that start as 0 or 1.

    One of each kind is made, without touching PyTorch's generator; every call returns a copy of its own.
    """

    @functools.cache
    def make(seed, sizes):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = CLIP(**dict(sizes)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return model

    def copied(seed=0, **sizes):
        return copy.deepcopy(make(seed, tuple((TINY | sizes).items())))

    return copied
