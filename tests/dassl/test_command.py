"""How a command line ends: its exit code and what stands on stderr."""

import io
import sys

import pytest

from dassl.utils import MissingFile, UserError, exit_code


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_run_that_ends_by_itself_decides_its_exit_code(returned, code, capsys):
    assert exit_code(lambda: returned, "again") == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; the same command goes on"),
        (UserError("no\nimages"), 1, "Error: no images"),
        (MissingFile("no file"), 1, "Error: no file"),  # an OSError as well, but it says itself what to do
        (OSError("disk full"), 1, "Error: disk full; make room"),
        (RuntimeError("a bug\nin two lines"), 1, "Error: unexpected RuntimeError: a bug in two lines"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_an_exit_code(error, code, line, capsys):
    log = io.StringIO()
    options = {"after_os_error": "make room", "traceback_to": log}
    assert exit_code(failing(error), "the same command goes on", **options) == code
    assert capsys.readouterr().err.strip() == line
    assert ("in run" in log.getvalue()) == isinstance(error, RuntimeError)


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. Perhaps workers are out of shared memory.",
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback\nunable to write to file </torch_1_2>:"
        " No space left on device (28)",
    ],
)
def test_too_little_shared_memory_is_one_line_that_says_what_to_do(message, capsys):
    assert exit_code(failing(RuntimeError(message)), "again") == 1
    error = capsys.readouterr().err
    assert "NUM_WORKERS 0" in error and "--shm-size" in error and error.count("\n") == 1


def test_a_bug_is_raised_where_nobody_asks_for_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        exit_code(failing(RuntimeError("a bug")), "again")
    assert exit_code(failing(UserError("a")), "again") == exit_code(failing(OSError("b")), "again") == 1


def test_a_console_that_cannot_show_a_character_gets_its_number(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert exit_code(lambda: print("\u65e5"), "again") == 0
    assert written.getvalue() == b"\\u65e5\n"
