import os
import sys
import time

from .tools import mkdir_if_missing


class Logger:
    """Standard output and a file. All but writing (isatty, encoding, fileno, ...) is the console's."""

    def __init__(self, fpath=None):
        self.console = sys.stdout
        self.file = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            self.file = open(fpath, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the process)

    def write(self, text):
        if self.file:
            self.file.write(text)
            self.file.flush()  # a killed run keeps its last line
        return self.console.write(text)

    def flush(self):
        self.console.flush()

    def close(self):
        if self.file:
            self.file.close()
            self.file = None

    def __getattr__(self, name):
        return getattr(self.__dict__["console"], name)


def setup_logger(output=None):
    """Copy standard output to `output` (a .txt or .log file, or a folder: its log.txt) from now on.

    An existing file is never touched: the new one gets the time behind its name, as upstream does.
    """
    if output is None:
        return
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    if os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(path)
