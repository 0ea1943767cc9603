"""One run at a time in a folder, with real processes that are killed."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from dassl.utils import FolderLock, UserError
from dassl.utils import lock as module

HOLD = """
import sys, time
from dassl.utils import FolderLock
with FolderLock(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""
FORK = """
import os, sys, time
from dassl.utils import FolderLock
with FolderLock(sys.argv[1], "train"):
    child = os.fork()
    if not child:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


def start(code, folder):
    """A process that holds the lock, and what it printed."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", refuse)


def test_the_folder_is_left_as_it_was(tmp_path):
    with FolderLock(tmp_path / "run", "train"):
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert os.listdir(tmp_path / "run") == []


def test_another_command_is_refused_while_one_runs_and_not_when_it_is_dead(tmp_path):
    process, _ = start(HOLD, tmp_path)
    with (
        pytest.raises(UserError, match=rf"process {process.pid} on .*; wait for it, or choose another --output-dir"),
        FolderLock(tmp_path, "test"),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with FolderLock(tmp_path, "test"):
        pass


def test_the_same_command_waits_for_the_other_one(tmp_path, monkeypatch, capsys):
    process, _ = start(HOLD, tmp_path)
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            process.kill()
            process.wait()

    monkeypatch.setattr(module.time, "sleep", sleep)
    with FolderLock(tmp_path, "train"):
        assert process.returncode is not None and len(waited) >= 3
    assert capsys.readouterr().out.count("The same command is at work") == 1


def test_a_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    process, child = start(FORK, tmp_path)
    process.kill()
    process.wait()
    try:
        with FolderLock(tmp_path, "test"):
            os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_lock_that_is_removed_while_another_waits_for_it_is_taken_anew(tmp_path, monkeypatch):
    first = contextlib.ExitStack()
    first.enter_context(FolderLock(tmp_path, "train"))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: first.close())
    with FolderLock(tmp_path, "train") as second:
        assert os.path.samestat(os.stat(tmp_path / ".lock"), os.fstat(second.descriptor))


def test_a_note_that_is_damaged_holds_nobody_up_for_ever(tmp_path):
    for content in (b"", b"{", b"[]", b"{}", b"\xff"):
        (tmp_path / ".lock").write_bytes(content)
        with FolderLock(tmp_path, "train"):
            pass


def test_without_locks_a_file_stands_for_one(tmp_path, no_locks):
    with FolderLock(tmp_path, "train"):
        assert os.listdir(tmp_path) == [".lock.owner"]
        with pytest.raises(UserError, match="Another run is at work"), FolderLock(tmp_path, "test"):
            pass
    assert os.listdir(tmp_path) == []


def test_without_locks_an_owner_that_shows_no_life_is_dead(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(module.threading.Thread, "start", lambda thread: None)
    never_left = contextlib.ExitStack()
    never_left.enter_context(FolderLock(tmp_path, "train"))
    past = time.time() - module.STALE - 5
    os.utime(tmp_path / ".lock.owner", (past, past))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with FolderLock(tmp_path, "test"):
        assert os.listdir(tmp_path) == [".lock.owner"]


def test_without_locks_the_owner_shows_life(tmp_path, no_locks, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    with FolderLock(tmp_path, "train"):
        os.utime(tmp_path / ".lock.owner", (0, 0))
        deadline = time.monotonic() + 30
        while os.stat(tmp_path / ".lock.owner").st_mtime == 0:
            assert time.monotonic() < deadline
