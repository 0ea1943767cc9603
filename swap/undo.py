"""Carrying out a plan, and taking it back from the manifest alone.

`.swap_in.json` in the codebase is written before anything else. It says which files and folders will be there and what
was there before, so a run that was killed at any moment can be undone. A file is written beside its place, under
`beside(path)`, and renamed.
"""

import hashlib
import json
import os
import re
import signal
from pathlib import PurePosixPath

from dassl.utils import UserError

MANIFEST = ".swap_in.json"


def digest(content):
    return hashlib.sha256(content).hexdigest()


def beside(path):
    return path.with_name(f".{path.name}.swap_in")


def write(path, content, executable=False):
    """Write a file by renaming. Links are written through; one that was there keeps its permissions."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.stat() if path.exists() else None
    if old and old.st_nlink > 1:  # renaming would cut a hard link
        with path.open("r+b", buffering=0) as file:
            file.write(content)
            file.truncate()
        return
    beside(path).write_bytes(content)
    if old:
        beside(path).chmod(old.st_mode)
    elif executable:
        beside(path).chmod(beside(path).stat().st_mode | 0o111)
    os.replace(beside(path), path)


def inside(root, path):
    """Whether a relative path, all links resolved, stays in the codebase."""
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts:
        return False
    return (root / place).resolve().is_relative_to(root.resolve())


# ---- the manifest ------------------------------------------------------------------------------------------------


def manifest_of(plan):
    """What is remembered of a plan: all that `undo` needs."""
    added = {path: after for path, (before, after) in plan.changes.items() if before is None}
    folders = {parent.as_posix() for path in added for parent in PurePosixPath(path).parents}
    edited = {path: pair for path, pair in plan.changes.items() if pair[0] is not None}
    return {
        **plan.facts(),
        "added": {path: digest(content) for path, content in added.items()},
        "edited": {
            path: {"original": before.decode("utf-8", "surrogateescape"), "sha256": digest(after)}
            for path, (before, after) in edited.items()
        },
        "folders": sorted((f for f in folders if not (plan.fork.root / f).exists()), reverse=True),  # inner ones first
    }


def read_manifest(root):
    """The manifest, None if there is none. UserError unless it is what `manifest_of` makes, inside the codebase."""
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        fault = _fault(root, manifest)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fault = str(error) or type(error).__name__
    if fault:
        raise UserError(
            f"{path} is not as swap_in wrote it ({fault}): restore it, or delete it and give --undo, which then "
            "recognises its files by what is in them"
        )
    return manifest


def _fault(root, manifest):
    """What is wrong with a manifest's content; "" if nothing is."""
    if not isinstance(manifest, dict):
        return "it is no table"
    name, trainers = manifest["name"], manifest.get("trainers", "trainers")
    own = (f"{trainers}/{name.lower()}/", f"configs/trainers/{name}/", "scripts/skip/", "dassl/")
    if not name.isidentifier() or manifest["engine"] not in ("ours", "theirs"):
        return "its name or engine is none"
    for path, sha in manifest["added"].items():
        if not path.startswith(own) or not re.fullmatch("[0-9a-f]{64}", sha):
            return f"{path} is nothing that swap_in adds"
    for path, record in manifest["edited"].items():
        if path != manifest.get("train", "train.py") or not path.endswith(".py"):
            return f"{path} is nothing that swap_in edits"
        if not isinstance(record["original"], str) or not re.fullmatch("[0-9a-f]{64}", record["sha256"]):
            return f"what {path} was is missing"
    for path in [*manifest["added"], *manifest["edited"], *manifest["folders"]]:
        if not inside(root, path):
            return f"{path} is outside"
    for path in manifest["folders"]:
        if not any(added.startswith(f"{path}/") for added in manifest["added"]):
            return f"{path}/ is nothing that swap_in makes"
    return ""


# ---- doing and undoing -------------------------------------------------------------------------------------------


def apply(plan):
    """All of the plan or, after an error or Ctrl-C, none of it."""
    root, manifest = plan.fork.root, manifest_of(plan)
    try:
        write(root / MANIFEST, json.dumps(manifest, indent=1).encode())
        for path, (_, after) in plan.changes.items():
            write(root / path, after, executable=path.endswith(".sh"))
    except BaseException:
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave half of it
        try:
            undo(root, manifest)
        except OSError as error:
            raise UserError(f"{error}; --undo takes back what was written, once that is repaired") from error
        finally:
            signal.signal(signal.SIGINT, handler)
        raise


def undo(root, manifest):
    """Everything as before the plan, however much of it was carried out -> what stays because it is not ours.

    Errors: UserError if a file was changed since; nothing is undone then.
    """
    files = (*manifest["added"], *manifest["edited"])
    if changed := [path for path in files if state(root, manifest, path) == "changed"]:
        raise UserError(f"changed since: {', '.join(changed)}; nothing was undone, move your changes away first")
    for path, record in manifest["edited"].items():
        if state(root, manifest, path) != "open":
            write(root / path, original(record))
        beside((root / path).resolve()).unlink(missing_ok=True)
    for path in manifest["added"]:
        (root / path).unlink(missing_ok=True)
        beside(root / path).unlink(missing_ok=True)
    stays = []
    for folder in manifest["folders"]:
        stays += remove_folder(root, folder)
    beside(root / MANIFEST).unlink(missing_ok=True)
    (root / MANIFEST).unlink(missing_ok=True)
    return stays


def original(record):
    return record["original"].encode("utf-8", "surrogateescape")


def state(root, manifest, path):
    """ "done", "open" (as before the plan), "torn" (half written) or "changed"."""
    record = manifest["edited"].get(path)
    if not (root / path).is_file():
        return "open" if record is None and not os.path.lexists(root / path) else "changed"
    content = (root / path).read_bytes()
    if digest(content) == (record["sha256"] if record else manifest["added"][path]):
        return "done"
    if record is None:
        return "changed"
    before = original(record)
    if content == before:
        return "open"
    # A hard link is written in place: the old content over the new, which is longer, not cut off yet.
    return "torn" if content.startswith(before) and (root / path).stat().st_nlink > 1 else "changed"


def remove_folder(root, folder):
    """A folder that swap_in made, with Python's byte code of what was in it -> the files in it that are not ours."""
    place = root / folder
    cache = place / "__pycache__"
    if cache.is_dir() and not cache.is_symlink():
        for file in cache.glob("*.pyc"):
            if not (place / f"{file.name.split('.')[0]}.py").exists():
                file.unlink()
        if not any(cache.iterdir()):
            cache.rmdir()
    if not place.is_dir():
        return []
    stays = sorted(path for path in place.rglob("*") if not path.is_dir() or path.is_symlink())
    if not any(place.iterdir()):
        place.rmdir()
    return [path.relative_to(root).as_posix() for path in stays]
