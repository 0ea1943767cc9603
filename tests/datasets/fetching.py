"""A small dataset as a server has it, and helpers for the tests of python -m datasets.fetch."""

import hashlib
import io
import json
import tarfile
import zipfile

from datasets import fetch

PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota\n exceeded</title></head></html>"
SPLIT = {part: [[f"River/River_{n}.jpg", 0, "River"]] for n, part in enumerate(["train", "val", "test"])}
IMAGES = {f"River/River_{n}.jpg": bytes([n]) * 50_000 for n in range(3)}


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def under(folder, files=IMAGES):
    return {f"{folder}/{name}": content for name, content in files.items()}


def hashes(content, *algorithms):
    return {"size": len(content)} | {name: hashlib.new(name, content).hexdigest() for name in algorithms}


def run(world, *arguments):
    return fetch.main([*arguments, "--root", str(world.root)])


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_complete(world):
    expected = under("2750") | {"split_zhou_EuroSAT.json": json.dumps(SPLIT).encode()}
    assert files_in(world.folder) == expected
