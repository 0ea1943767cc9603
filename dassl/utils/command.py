"""How every command line here ends: bad input is one line on stderr, and the exit code tells what happened."""

import argparse
import sys

from .errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises UserError for what it can't parse, which names the command's help; `prog` is the whole command."""

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def exit_code(run, interrupted):
    """What `run()` returns (None: 0); 1 after an error, 130 after Ctrl-C. `interrupted` says what Ctrl-C left."""
    try:
        return run() or 0
    except KeyboardInterrupt:
        print(f"\nInterrupted; {interrupted}", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        print("Error:", error, file=sys.stderr)
        return 1
