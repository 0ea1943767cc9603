"""What happens to files on their way: every kind of damage, for text and for other files."""

import gzip
import os
import random
from pathlib import Path

HUGE = (256 << 20) + 1  # bytes, none of which takes room on a disk
DEEP = 100_000
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>quota exceeded</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


def rewritten(change):
    """Damage by other bytes: change(what the file held) is what it holds."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def replaced(make):
    """Damage by something that is no file: make(path) puts it there."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def _huge(path):
    os.truncate(path, HUGE)


ANY = {
    "missing": replaced(lambda path: None),
    "empty": rewritten(lambda content: b""),
    "zeros": rewritten(lambda content: bytes(len(content))),
    "noise": rewritten(lambda content: random.Random(0).randbytes(len(content))),
    "web page": rewritten(lambda content: PAGE),
    "LFS pointer": rewritten(lambda content: POINTER),
    "compressed": rewritten(lambda content: gzip.compress(content, mtime=0)),
    "huge": _huge,
    "folder": replaced(Path.mkdir),
    "pipe": replaced(os.mkfifo),
    "link to nothing": replaced(lambda path: path.symlink_to("/nowhere/at/all")),
    "link to itself": replaced(lambda path: path.symlink_to(path)),
}
BINARY = ANY | {
    "half": rewritten(lambda content: content[: len(content) // 2]),
    "without its end": rewritten(lambda content: content[:-20]),
    "first byte lost": rewritten(lambda content: content[1:]),
}
TEXT = ANY | {
    "UTF-16": rewritten(lambda content: content.decode().encode("utf-16")),
    "Latin-1": rewritten(lambda content: content + "# caf\xe9\n".encode("latin-1")),
}
JSON = TEXT | {
    "half": rewritten(lambda content: content[: len(content) // 2]),
    "nested": rewritten(lambda content: b"[" * DEEP + b"]" * DEEP),
    "nested tables": rewritten(lambda content: b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "number": rewritten(lambda content: b"7"),
    "null": rewritten(lambda content: b"null"),
    "list": rewritten(lambda content: b"[[1, 2]]"),
    "text": rewritten(lambda content: b'"train"'),
    "empty table": rewritten(lambda content: b"{}"),
    "many digits": rewritten(lambda content: b'{"seed": ' + b"9" * 5000 + b"}"),
}
YAML = TEXT | {
    "nested": rewritten(lambda content: b"[" * 20_000),
    "number": rewritten(lambda content: b"7\n"),
    "list": rewritten(lambda content: b"- 1\n- 2\n"),
    "control character": rewritten(lambda content: content + b"a: \x00\n"),
    "open bracket": rewritten(lambda content: content + b"A: [1, \n"),
    "tab": rewritten(lambda content: b"A:\n\tB: 1\n"),
    "Python object": rewritten(lambda content: b"A: !!python/object/apply:os.getcwd []\n"),
    "twice": rewritten(lambda content: b"SEED: 1\nSEED: 2\n"),
    "endless alias": rewritten(lambda content: b"a: &a [*a]\n"),
    "merge conflict": rewritten(lambda content: b"<<<<<<< HEAD\n" + content),
}
