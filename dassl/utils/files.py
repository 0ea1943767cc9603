"""Files that are there whole or not at all."""

import json
import os
from contextlib import suppress
from pathlib import Path

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomic(path, content):
    """Write bytes, or what `content(file)` writes, beside `path` and rename: no one sees half a file.

    The file beside is `.<name>.tmp`, locked while somebody writes it. What a killed writer has left there is used anew
    by the next one, so there is never more than one. A link is followed.
    Errors: UserError if `path` is a device, a pipe or a folder; OSError that carries the path (a full disk: ENOSPC).
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f'"{path}" is not a plain file, so it is not written over; name another')
    target = Path(os.path.realpath(path))
    beside = target.with_name(f".{target.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # not what a link leads to
        with open(_locked(beside), "wb") as file:
            try:
                file.write(content) if isinstance(content, bytes) else content(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(beside, target)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def _locked(path):
    """Descriptor of the empty file `path`, which nobody else writes until it is closed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_open_at(path, descriptor):
            os.truncate(descriptor, 0)
            return descriptor
        os.close(descriptor)  # while we waited it got its name


def is_open_at(path, descriptor):
    """Whether the open file is the one called `path`."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def write_json(obj, fpath):
    write_atomic(fpath, (json.dumps(obj, indent=4) + "\n").encode())
