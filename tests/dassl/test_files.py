"""Atomic writing: killed, interrupted, simultaneous, onto links and devices."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from dassl.utils import UserError, write_atomic

WRITER = """
import sys, time
from dassl.utils import write_atomic
def content(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(float(sys.argv[2]))
    file.write(b" whole")
write_atomic(sys.argv[1], content)
"""


def start(path, seconds):
    """A process that stands still for so long in the middle of a write."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(seconds)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "result.json"
    write_atomic(path, b"old")

    def full_disk(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="result.json") as caught:
        write_atomic(path, full_disk)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["result.json"]


def test_written_files_have_the_permissions_of_ordinary_files(tmp_path):
    write_atomic(tmp_path / "atomic", lambda file: file.write(b"x"))
    (tmp_path / "ordinary").write_bytes(b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_a_killed_writer_leaves_is_used_anew(tmp_path):
    path = tmp_path / "resume.pt"
    for _ in range(3):
        process = start(path, 60)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert os.listdir(tmp_path) == [".resume.pt.tmp"]
    write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["resume.pt"] and path.read_bytes() == b"new"


def test_two_writers_take_turns(tmp_path):
    path = tmp_path / "a"
    process = start(path, 0.2)
    write_atomic(path, b"second")  # waits
    assert process.wait() == 0
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == ["a"]


def test_ctrl_c_leaves_nothing(tmp_path):
    def content(file):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", content)
    assert os.listdir(tmp_path) == []


def test_only_plain_files_are_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for path in ("/dev/full", "/dev/null", tmp_path / "pipe", tmp_path / "folder"):
        with pytest.raises(UserError, match=f'"{path}" is not a plain file'):
            write_atomic(path, b"x")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_link_stays_one_and_its_file_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file")
    write_atomic(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "far" / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "far") == ["file"]


def test_a_link_put_where_the_file_beside_belongs_is_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / ".a.tmp").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="/a"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_bytes() == b"old"
