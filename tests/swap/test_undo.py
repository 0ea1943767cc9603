"""A plan is carried out completely or not at all, and undone from the manifest alone."""

import json
import os
import sys

import pytest

from swap import fork as forks
from swap import plan, undo
from tests.swap.skeletons import VARIATIONS, contents, folders, make_fork, refused, run


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_variation_is_recognised_edited_and_restored_byte_for_byte(name, tmp_path, capsys):
    path, root = make_fork(tmp_path, name)
    (root / "train.py").chmod(0o755)
    before, there = contents(path), folders(path)
    assert run(path) == 0
    out = capsys.readouterr().out
    assert f"{root} is {name}" in out or name in ("augmented", "early return", "one line")
    assert "--trainer SkipTuning" in out
    after = contents(path)
    assert {file for file in before if before[file] != after[file]} == {
        (root / "train.py").relative_to(path).as_posix()
    }
    assert run(path) == 0 and contents(path) == after, "a second run changes nothing"
    (root / "trainers/skiptuning/__pycache__").mkdir()
    (root / "trainers/skiptuning/__pycache__/skip_tuning.cpython-311.pyc").write_bytes(b"as Python leaves it")
    assert run(path, "--undo") == 0
    assert contents(path) == before and folders(path) == there
    assert "Undone: everything is as before" in capsys.readouterr().out


def test_undo_refuses_files_that_were_changed_since_and_names_them(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    assert "nothing to undo" in refused(capsys, path, "--undo")
    assert run(path) == 0
    for file in ("train.py", "trainers/skiptuning/skip_tuning.py"):
        content = (root / file).read_bytes()
        (root / file).write_bytes(content + b"# mine\n")
        changed = contents(path)
        assert f"changed since: {file};" in refused(capsys, path, "--undo")
        assert contents(path) == changed
        assert f"{file} is not as swap_in left it" in refused(capsys, path)
        (root / file).write_bytes(content)


def test_undo_leaves_what_is_not_ours_names_it_and_finishes(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    before = contents(path)
    assert run(path) == 0
    cache = root / "trainers/skiptuning/__pycache__"
    cache.mkdir()
    mine = {
        "scripts/skip/mine.sh": b"kept",
        "trainers/skiptuning/notes.txt": b"kept",
        "trainers/skiptuning/__pycache__/a.nbi": b"kept",
    }
    for name, content in mine.items():
        (root / name).write_bytes(content)
    (cache / "skip_tuning.cpython-311.pyc").write_bytes(b"")
    assert run(path, "--undo") == 0
    out = capsys.readouterr().out
    assert "everything is as before" not in out and all(name in out for name in mine)
    assert {name: content for name, (content, _) in contents(path).items() if name in mine} == mine
    assert {name: pair for name, pair in contents(path).items() if name not in mine} == before
    assert run(path) == 0, "and the trainer can be put in again"


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_to_train_are_written_through(kind, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "shared").mkdir()
    other = root / "shared/train.py"
    (root / "train.py").rename(other)
    (root / "train.py").symlink_to("shared/train.py") if kind == "symbolic" else os.link(other, root / "train.py")
    before = contents(path)
    assert run(path) == 0
    assert "extend_skiptuning" in other.read_text()
    assert (root / "train.py").is_symlink() == (kind == "symbolic") and other.samefile(root / "train.py")
    assert run(path, "--undo") == 0
    assert contents(path) == before and other.samefile(root / "train.py")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1"])
def test_bytes_that_are_no_utf_8_come_back(encoding, tmp_path):
    path, root = make_fork(tmp_path, "CoOp")
    text = "# coding: latin-1\n" if encoding == "latin-1" else ""
    (root / "train.py").write_bytes((text + "# é\n" + (root / "train.py").read_text()).encode(encoding))
    before = contents(path)
    assert run(path) == 0 and contents(path) != before
    assert run(path, "--undo") == 0 and contents(path) == before


# ---- at every moment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_all_edits_are_made_or_none(error, tmp_path, monkeypatch, capsys):
    path, _ = make_fork(tmp_path, "CoOp")
    before, there, write, count = contents(path), folders(path), undo.write, []

    def fail(*args, **kwargs):
        count.append(1)
        if len(count) == 8:
            raise error
        write(*args, **kwargs)

    monkeypatch.setattr(undo, "write", fail)
    assert run(path) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "nothing was changed" in capsys.readouterr().err
    assert contents(path) == before and folders(path) == there


EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")


def killed_at(number, root, function):
    """Whether `function`, in a process that dies before its file operation `number` in `root`, came so far."""
    child = os.fork()
    if not child:
        left = [number]

        def hook(event, args):
            if event in EVENTS and str(args[0]).startswith(str(root)) and (event != "open" or args[1] != "r"):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(hook)
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("hard_link", [False, True])
def test_what_a_run_left_that_was_killed_at_any_moment_can_be_undone(hard_link, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    if hard_link:
        os.link(root / "train.py", root / "other.py")
    before, there = contents(path), folders(path)
    todo = plan.make(forks.find(path), "SkipTuning", "theirs")
    some = (
        "train.py",
        "trainers/skiptuning/skip_tuning.py",
        "trainers/skiptuning/__init__.py",
        "scripts/skip/xd_test.sh",
    )
    todo = todo._replace(changes={path: todo.changes[path] for path in some})
    moments = 0
    while killed_at(moments, root, lambda: undo.apply(todo)):
        if contents(path) != before:
            assert run(path, "--undo") == 0, moments
        assert contents(path) == before and folders(path) == there, moments
        moments += 1
    assert moments > 3 * len(todo.changes)
    done = contents(path)
    moments = 0
    while killed_at(moments, root, lambda: undo.undo(root, undo.read_manifest(root))):
        if contents(path) != before:
            assert run(path, "--undo") == 0, moments
        assert contents(path) == before and folders(path) == there, moments
        undo.apply(todo)
        assert contents(path) == done
        moments += 1
    assert moments > len(todo.changes)


def test_a_killed_run_is_undone_before_the_next(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    before = contents(path)
    assert run(path) == 0
    (root / "scripts/skip/xd_train.sh").unlink()  # as if it had not come so far
    assert "--undo first" in refused(capsys, path)
    assert run(path, "--undo") == 0 and contents(path) == before


# ---- manifests -----------------------------------------------------------------------------------------------


def broken(manifest):
    text = json.dumps(manifest, indent=1)
    yield "empty", ""
    yield "cut", text[: len(text) // 2]
    yield "conflict", text.replace('"engine"', '<<<<<<< HEAD\n "engine"')
    yield "list", "[]"
    yield "table", "{}"
    yield "number", "3"
    yield "bytes", b"\xff\xfe"
    for key in ("name", "engine", "added", "edited", "folders"):
        yield f"without {key}", json.dumps({k: v for k, v in manifest.items() if k != key})
        yield f"{key} is null", json.dumps({**manifest, key: None})
    sha = "0" * 64
    for place in ("../victim", "/tmp/victim", "trainers/skiptuning/../../../victim", "train.py", "", "README.md"):
        yield f"added {place}", json.dumps({**manifest, "added": {place: sha}})
        yield f"folder {place}", json.dumps({**manifest, "folders": [place]})
        if place != "train.py":
            record = {"original": "evil", "sha256": sha}
            yield f"edited {place}", json.dumps({**manifest, "edited": {place: record}})
    yield "no hash", json.dumps({**manifest, "added": {"trainers/skiptuning/a.py": 3}})
    yield "hostile name", json.dumps({**manifest, "name": "../x"})
    yield "through a link", json.dumps({**manifest, "added": {"trainers/skiptuning/out/victim": sha}})


def test_a_manifest_that_is_not_as_it_was_written_is_one_line_and_touches_nothing(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (tmp_path / "victim").write_text("safe")
    assert run(path) == 0
    (root / "trainers/skiptuning/out").symlink_to(tmp_path)
    manifest = json.loads((root / undo.MANIFEST).read_text())
    for name, content in broken(manifest):
        (root / undo.MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
        before = contents(tmp_path)
        for option in ([], ["--undo"]):
            assert "is not as swap_in wrote it" in refused(capsys, path, *option), name
        assert contents(tmp_path) == before, name


@pytest.mark.parametrize("engine", ["ours", "theirs"])
def test_without_its_manifest_undo_recognises_what_is_ours(engine, tmp_path, capsys):
    path, root = make_fork(tmp_path, "PLOT++")
    before, there = contents(path), folders(path)
    for name in ("SkipTuning", "Other"):
        assert run(path, "--engine", engine, "--name", name) == 0
        (root / undo.MANIFEST).unlink()
        assert "or --undo if an earlier swap_in wrote it" in refused(capsys, path, "--name", name)
        assert run(path, "--undo") == 0
        assert contents(path) == before and folders(path) == there
    assert run(path) == 0
    (root / undo.MANIFEST).unlink()
    changed = root / "scripts/skip/xd_train.sh"
    changed.write_text("mine")
    assert run(path, "--undo") == 0
    assert "scripts/skip/xd_train.sh" in capsys.readouterr().out and changed.read_text() == "mine"
    changed.unlink()
    changed.parent.rmdir()
    changed.parent.parent.rmdir()
    assert contents(path) == before
    assert "nothing to undo" in refused(capsys, path, "--undo")
