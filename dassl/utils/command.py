"""How every command line here ends: bad input is one line on stderr, and the exit code tells what happened."""

import argparse
import sys
import traceback

from .errors import UserError

# How PyTorch says that shared memory is full, in the message of a RuntimeError.
NO_SHARED_MEMORY = ("Bus error", "shared memory", "No space left on device")


class Parser(argparse.ArgumentParser):
    """Raises UserError for what it can't parse, which names the command's help; `prog` is the whole command."""

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def any_console():
    """What the console or file that is written to can't show is shown by its number."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def exit_code(run, interrupted, *, after_os_error="", traceback_to=None):
    """What `run()` returns (None: 0); 1 after bad input or a bug, 130 after Ctrl-C.

    interrupted: what Ctrl-C has left, and what to do now.
    after_os_error: the same for a full disk, a folder without rights and the like.
    traceback_to: file for the traceback of an unexpected error, which is then one line on stderr; None: it is raised.
    """
    any_console()
    try:
        return run() or 0
    except KeyboardInterrupt:
        print(f"\nInterrupted; {interrupted}", file=sys.stderr)
        return 130
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error}; {after_os_error}" if after_os_error else str(error)
    except Exception as error:
        if "DataLoader worker" in str(error) and any(sign in str(error) for sign in NO_SHARED_MEMORY):
            message = "the shared memory (/dev/shm) is too small for the workers that read images;"
            message += " set DATALOADER.NUM_WORKERS 0, or give the container a larger --shm-size"
            print("Error:", message, file=sys.stderr)
            return 1
        if traceback_to is None:
            raise
        traceback.print_exc(file=traceback_to)
        message = f"unexpected {type(error).__name__}: {error}"
    print("Error:", " ".join(message.split()), file=sys.stderr)
    return 1
