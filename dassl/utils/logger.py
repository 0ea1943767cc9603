"""A run's log: what is printed goes to the console and to a file. engine/trainer.py makes the lines of training."""

import os
import sys
import time
import traceback

from .errors import UserError
from .tools import mkdir_if_missing


class Logger:
    """Standard output and a file. All but writing (isatty, encoding, fileno, ...) is the console's.

    `with Logger(path):` copies what is printed inside; an error that ends the block is the file's last entry.
    """

    def __init__(self, fpath=None):
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            self.file = open(fpath, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (see close)

    def write(self, text):
        if self.file:
            self.file.write(text)
            self.file.flush()  # a killed run keeps its last line
        return self.console.write(_printable(text, getattr(self.console, "encoding", None)))

    def flush(self):
        self.console.flush()

    def close(self):
        if self.file:
            self.file.close()
            self.file = None

    def __enter__(self):
        sys.stdout = self
        return self

    def __exit__(self, kind, error, trace):
        sys.stdout = self.console
        if isinstance(error, UserError):
            self.file.write(f"Error: {error}\n")
        elif error is not None:
            self.file.write("".join(traceback.format_exception(error)))
        self.close()

    def __getattr__(self, name):
        return getattr(self.__dict__["console"], name)


def _printable(text, encoding):
    """`text` with the characters escaped that a console of this encoding can't show."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def log_path(output):
    """Where a run's log goes: `output` itself if it is a .txt or .log file, else log.txt in this folder.

    An existing file is never touched: the new one gets the time behind its name, as upstream does.
    """
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return path + time.strftime("-%Y-%m-%d-%H-%M-%S") if os.path.exists(path) else path


def setup_logger(output=None):
    """Copy standard output to `log_path(output)` for the rest of the process."""
    if output is not None:
        sys.stdout = Logger(log_path(output))
