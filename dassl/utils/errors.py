import re
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can fix. The message is one line: what is wrong, and what to do next.

    A DataLoader worker re-raises with its whole traceback as the message; only the last line, ours, is kept.
    """

    def __init__(self, message):
        if message.startswith("Caught ") and "DataLoader worker" in message.split("\n", 1)[0]:
            message = re.sub(r"^[\w.]+: ", "", message.strip().rsplit("\n", 1)[-1])
        super().__init__(message)

    def __str__(self):  # KeyError would print the repr, OSError an errno
        return self.args[0]


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that should be there is not."""


class UnknownName(UserError, KeyError, ValueError):
    """A name that is not registered (upstream raises KeyError from a registry, ValueError from a builder)."""


@contextmanager
def complete(path, advice):
    """Inside, parts are taken out of what `path` held; one that is missing or of a wrong kind is one clear line."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f'"{path}" is damaged or of another kind ({reason}); {advice}') from error
