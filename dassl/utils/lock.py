"""One run at a time in an output folder."""

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files import is_open_at
from .reading import read_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

POLL = 0.5  # seconds between two looks at a lock that another run holds
BEAT = 10.0  # seconds between two signs of life, where the file system has no locks
STALE = 60.0  # seconds without a sign of life after which the owner counts as dead

_held = set()  # file descriptors of this process' locks


class FolderLock:
    """`with FolderLock(folder, command):` nobody else works in `folder` inside the block.

    command: a text that says what is to be done. A run with the same one waits for the end of the other; with another
    one it gets UserError. The lock is the kernel's (flock), which goes with its owner, however that dies, and does not
    depend on process numbers. Where a file system has no locks, a file stands for it whose time the owner renews.
    """

    def __init__(self, folder, command):
        self.path = Path(folder) / ".lock"
        self.substitute = Path(folder) / ".lock.owner"
        self.note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": hashlib.sha256(command.encode()).hexdigest(),
            "token": uuid.uuid4().hex,
        }
        self.descriptor = None  # of the locked file
        self.released = threading.Event()

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = False
        while not self._take():
            other = _note(self.path) or _note(self.substitute)
            if other:
                who = f"process {other['pid']} on {other['host']}, since {other['since']}"
                if other["command"] != self.note["command"]:
                    raise UserError(
                        f'Another run is at work in "{self.path.parent}" ({who}); wait for it, or choose another'
                        " --output-dir"
                    )
                if not told:
                    print(f'The same command is at work in "{self.path.parent}" ({who}): waiting for it')
                    told = True
            time.sleep(POLL)
        return self

    def __exit__(self, *error):
        self.released.set()
        if self.descriptor is None:
            if _note(self.substitute) == self.note:
                self.substitute.unlink(missing_ok=True)
            return
        self.path.unlink(missing_ok=True)
        _held.discard(self.descriptor)
        os.close(self.descriptor)  # releases

    def _take(self):
        """Whether the lock is ours now."""
        if fcntl is None:
            return self._take_substitute()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # no locks here
            os.close(descriptor)
            self.path.unlink(missing_ok=True)
            return self._take_substitute()
        if not is_open_at(self.path, descriptor):  # its owner has removed it meanwhile
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(self.note).encode())
        self.descriptor = descriptor
        _held.add(descriptor)
        return True

    def _take_substitute(self):
        try:
            with open(self.substitute, "x", encoding="utf-8") as file:
                json.dump(self.note, file)
        except FileExistsError:
            self._remove_if_stale()
            return False
        threading.Thread(target=self._show_life, daemon=True).start()
        return True

    def _show_life(self):
        while not self.released.wait(BEAT):
            with suppress(OSError):
                os.utime(self.substitute)

    def _remove_if_stale(self):
        """Remove the file of an owner that shows no life; the file system's clock decides, not this machine's."""
        probe = self.substitute.with_name(f".lock.{self.note['token']}")
        with suppress(FileNotFoundError):  # its owner was quicker
            probe.touch()
            if probe.stat().st_mtime - self.substitute.stat().st_mtime > STALE:
                os.replace(self.substitute, probe)
        probe.unlink(missing_ok=True)


def _note(path):
    """What the owner of a lock has written about itself; None if there is none, or not yet."""
    with suppress(OSError, UserError):
        note = read_json(path)
        return note if isinstance(note, dict) and {"pid", "host", "since", "command"} <= note.keys() else None


def _forget_in_child():
    """A forked process, such as a DataLoader's worker, must not keep the lock of its dead parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
