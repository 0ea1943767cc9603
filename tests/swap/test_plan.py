"""What is refused before the first byte, which Dassl is taken, and what is tried in the codebase."""

import os
import subprocess

import pytest

import swap_in
from dassl.utils import UserError
from swap import fork as forks
from swap import imports, plan, probe
from tests.swap.conftest import WORKS
from tests.swap.skeletons import VARIATIONS, contents, make_fork, refused, run


def test_trees_that_are_no_fork_are_refused_with_the_reason(tmp_path, capsys):
    assert "train.py, trainers, datasets, clip side by side" in refused(capsys, tmp_path)
    assert "No folder" in refused(capsys, tmp_path / "nowhere")
    assert "is this project" in refused(capsys, forks.HERE)
    path, root = make_fork(tmp_path, "CoOp")
    source = (root / "train.py").read_text()
    (root / "train.py").write_text(source.replace("def extend_cfg", "def extend"))
    assert "no function extend_cfg" in refused(capsys, path)
    (root / "train.py").write_text(source + "def (:")
    assert "doesn't parse" in refused(capsys, path)
    make_fork(tmp_path / "fork", "PLOT++")
    (path / "train.py").unlink()
    make_fork(path / "b", "CoOp")
    (path / "c").mkdir()
    (path / "b" / "fork").rename(path / "plot-b")
    (path / "fork").rename(path / "plot-a")
    error = refused(capsys, path)
    assert "several codebases: give one of" in error and "plot-a" in error and "plot-b" in error


@pytest.fixture
def git(tmp_path, monkeypatch):
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):  # whose hooks and signatures are the user's own
        monkeypatch.setenv(name, os.devnull)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # set where a hook runs the tests
        monkeypatch.delenv(name, raising=False)

    def call(path, *command):
        subprocess.run(["git", "-C", path, "-c", "user.name=a", "-c", "user.email=a@b", *command], check=True)

    return call


def test_changes_that_git_does_not_have_are_refused_and_new_files_are_not(tmp_path, capsys, git):
    path, root = make_fork(tmp_path, "CoOp")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        git(path, *command)
    (root / "trainers/coop.py").write_text("changed = 1\n")
    assert "not committed (trainers/coop.py)" in refused(capsys, path)
    git(path, "commit", "-qam", "it")
    (root / "notes.txt").write_text("of mine")
    assert run(path) == 0


def test_a_tree_of_which_git_says_nothing_is_refused(tmp_path, capsys, git, monkeypatch):
    path, root = make_fork(tmp_path, "CoOp")
    git(path, "init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own test switch for dubious ownership
    before = contents(path)
    assert "git does not say whether" in refused(capsys, path)
    assert contents(path) == before


def test_a_trainer_of_the_same_name_asks_for_another(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp", trainer="SkipTuning")
    before = contents(path)
    assert "trainers/coop.py registers a trainer called SkipTuning already: choose another --name" in refused(
        capsys, path
    )
    assert contents(path) == before
    assert "identifier" in refused(capsys, path, "--name", "Skip Tuning")
    assert run(path, "--name", "SkipTuning2") == 0
    assert "class SkipTuning2(" in (root / "trainers/skiptuning2/skip_tuning.py").read_text()
    assert "SKIPTUNING2:" in (root / "configs/trainers/SkipTuning2/vit_b16.yaml").read_text()
    assert '.trainer == "SkipTuning2"' in (root / "train.py").read_text()
    assert "--undo first" in refused(capsys, path, "--name", "SkipTuning3")


@pytest.mark.parametrize("name", ["class", "Class", "None", "", "Coop", "COOP", "_Init__", "a.b", "../a", "Skíp", "1a"])
def test_a_name_is_an_identifier_no_keyword_and_no_module_of_the_forks(name, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "trainers/_Init__").mkdir()
    (root / "trainers/_Init__/__init__.py").touch()
    before = contents(path)
    error = refused(capsys, path, "--name", name)
    assert "identifier" in error or "is a module of this name" in error
    assert contents(path) == before


def test_files_in_the_way_are_not_overwritten(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "scripts/skip").mkdir(parents=True)
    (root / "scripts/skip/xd_train.sh").write_text("mine")
    before = contents(path)
    assert "xd_train.sh exists already" in refused(capsys, path)
    assert contents(path) == before


@pytest.mark.parametrize("place", ["trainers", "configs", "train.py"])
def test_nothing_is_written_through_a_link_to_outside(place, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / place).rename(tmp_path / "elsewhere")
    (root / place).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    assert "is outside of" in refused(capsys, path)
    assert contents(tmp_path) == before


def test_dry_run_shows_the_diff_and_changes_nothing(tmp_path, capsys):
    path, _ = make_fork(tmp_path, "TCP")
    before = contents(path)
    assert run(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert '+    if args.trainer == "SkipTuning":' in out and "+        extend_skiptuning(cfg)" in out
    assert "new file trainers/skiptuning/skip_tuning.py (" in out
    assert "Importing its Dassl, clip and trainers" in out, "that its code is run is said"
    assert contents(path) == before
    assert "also with --dry-run" in swap_in.__doc__


# ---- which Dassl -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "asked", "engine", "why"),
    [
        (None, None, "theirs", "all is well"),
        (None, "ours", "ours", "all is well"),
        ("dassl", None, "ours", "no Dassl can be imported there (broken)"),
        ("warm-up", None, "ours", "warm-up schedules crash (broken)"),
        ("checkpoint", None, "ours", "checkpoints of runs with a warm-up don't load (broken)"),
        ("warm-up", "theirs", "theirs", "add OPTIM.WARMUP_EPOCH -1"),
        ("dassl", "theirs", None, "use --engine ours"),
    ],
)
def test_the_engine_is_theirs_where_it_works_and_the_reason_is_given(fault, asked, engine, why, found, tmp_path):
    fork = forks.find(make_fork(tmp_path, "CoOp")[0])
    if fault:
        found[fault] = "broken"
    if engine is None:
        with pytest.raises(UserError, match=why):
            plan.choose_engine(fork, found, [], asked)
    else:
        chosen, reason, options = plan.choose_engine(fork, found, [], asked)
        assert chosen == engine and why in reason
        assert options == ("OPTIM.WARMUP_EPOCH -1" if (fault, engine) == ("warm-up", "theirs") else "")


def test_the_engine_has_all_names_that_the_codebase_imports(found, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "trainers/coop.py").write_text("from dassl.utils import wanted\nimport dassl.more as m\n")
    with (root / "train.py").open("a") as file:
        file.write("\ntry:\n    import dassl.optional\nexcept ImportError:\n    pass\nfrom trainers import coop\n")
    before = contents(path)
    wanted = "dassl.utils.wanted (trainers/coop.py:1), dassl.more (trainers/coop.py:2)"
    assert f"our dassl/ lacks {wanted}: use --engine theirs" in refused(capsys, path, "--engine", "ours")
    found["warm-up"] = "broken"
    assert run(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "Engine: theirs" in out and '"$@"' not in out and "OPTIM.WARMUP_EPOCH -1" in out
    found["missing"] = [["dassl.utils", "wanted"]]
    error = refused(capsys, path)
    assert "lacks dassl.utils.wanted" in error and f"our dassl/ lacks {wanted}" in error
    assert contents(path) == before


def test_a_module_that_is_missing_is_named_with_the_command_that_installs_it(found, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "dassl").mkdir()
    (root / "dassl/__init__.py").touch()
    found["dassl"] = "ModuleNotFoundError: No module named 'tensorboard'"
    for engine in ([], ["--engine", "theirs"], ["--engine", "ours"]):
        assert "pip install tensorboard" in refused(capsys, path, *engine)
    found["dassl"] = "ModuleNotFoundError: No module named 'dassl.modeling'"
    assert "a file of the codebase's own is missing" in refused(capsys, path)


def test_a_dassl_in_a_sub_folder_is_named(found, tmp_path, capsys):
    path, root = make_fork(tmp_path, "KgCoOp")  # the codebase is in a sub-folder, too
    found["dassl"] = "ModuleNotFoundError: No module named 'dassl'"
    for place in (root, path):
        (place / "Dassl.pytorch/dassl").mkdir(parents=True)
        (place / "Dassl.pytorch/dassl/__init__.py").touch()
        assert f"pip install -e {place}/Dassl.pytorch" in refused(capsys, path, "--engine", "theirs")
        (place / "Dassl.pytorch").rename(tmp_path / f"moved from {place.name}")


def test_versions_that_cannot_work_are_warned_of(found):
    found |= {"torch": "1.13.1+cu117", "python": [3, 8, 1]}
    text = "\n".join(plan.warnings(found))
    assert "2.4" in text and "3.10" in text
    assert plan.warnings(WORKS) == []


# ---- what is tried -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("real_probe")
def test_what_the_edited_codebase_cannot_import_is_refused_and_trainers_are_reported(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    with (root / "train.py").open("a") as file:
        file.write("\nfrom helpers import absent\n")
    (root / "helpers.py").write_text("print('noise on stdout')\nimport no_such_module_at_all\n")
    (root / "trainers/broken.py").write_text("from dassl.engine import TRAINER_REGISTRY\nraise RuntimeError('as ever')")
    before = contents(path)
    assert "No module named 'no_such_module_at_all'): pip install no_such_module_at_all" in refused(capsys, path)
    assert contents(path) == before
    (root / "helpers.py").write_text("from trainers.absent import absent\n")
    assert "(ModuleNotFoundError: No module named 'trainers.absent'): a file of the codebase's own" in refused(
        capsys, path
    )
    (root / "helpers.py").write_text("absent = 1\n")
    before = contents(path)
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "trainers.coop imports, which it did not before" in out, "it had no Dassl"
    assert "trainers.broken does not import, nor did it before (RuntimeError: as ever)" in out
    assert run(path, "--undo") == 0
    assert contents(path) == before, "nor does trying leave byte code behind"


def test_a_trainer_that_stops_importing_is_reported(tmp_path, found):
    fork = forks.find(make_fork(tmp_path, "CoOp")[0])
    before = {"modules": {"trainers.a": None, "trainers.b": "old", "trainers.c": None}}
    found["modules"] = {"train": None, "trainers.skiptuning": None, "trainers.a": "new", "trainers.b": "old"}
    found["modules"]["trainers.c"] = None
    assert plan.rehearse(plan.make(fork, "SkipTuning", "ours"), before) == [
        "trainers.a does not import any more (new)",
        "trainers.b does not import, nor did it before (old)",
        "trainers.c still imports",
    ]


def test_a_folder_of_links_is_the_codebase_after_the_plan(tmp_path):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "data").mkdir()
    (root / "data/x").write_text("x")
    target = tmp_path / "links"
    target.mkdir()
    plan.link(root, target, "", {"train.py": (b"", b"new"), "trainers/a/b.py": (None, b"b"), "c/d.py": (None, b"d")})
    assert (target / "train.py").read_bytes() == b"new" and (target / "data").is_symlink()
    assert (target / "trainers/coop.py").is_symlink() and (target / "trainers/a/b.py").read_bytes() == b"b"
    assert not (target / "trainers").is_symlink() and (target / "c/d.py").exists() and not (root / "c").exists()


def test_names_that_cannot_be_imported_are_found():
    asked = [["dassl", ""], ["dassl.utils", "UserError"], ["dassl", "optim"], ["dassl.utils", "*"]]
    assert probe.missing(asked) == []
    asked = [["dassl.none", ""], ["dassl.utils", "none"], ["dassl.none", "x"]]
    assert probe.missing(asked) == asked


def test_imports_are_followed_by_reading(tmp_path):
    files = {
        "train.py": "import a.b\nfrom c import d\nfrom dassl.x import y\ndef f():\n    from dassl.z import *\n",
        "a/__init__.py": "",
        "a/b.py": "from . import e\nfrom ..a.g import h\n",
        "a/e.py": "import dassl.w, os\n",
        "a/g.py": "import train\nthis is no python",
        "c/d.py": "",
        "c/not_imported.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imports.reachable(tmp_path, tmp_path / "train.py", outside=("dassl",))
    assert sorted(file.relative_to(tmp_path).as_posix() for file in found) == sorted(set(files) - {"c/not_imported.py"})
    assert imports.names_of("dassl", found, tmp_path) == [
        ("dassl.x", "y", "train.py:3"),
        ("dassl.z", "*", "train.py:5"),
        ("dassl.w", "", "a/e.py:1"),
    ]


# ---- what its users should know ------------------------------------------------------------------------------


def test_a_codebase_is_not_taken_for_the_one_it_was_made_from(tmp_path):
    for name in VARIATIONS:
        path, root = make_fork(tmp_path / name, name)
        fork = forks.find(path)
        if fork.kind is not forks.UNKNOWN:
            marker = fork.kind.marker
            assert fork.describe() == f"{root} is {name} or derived from it: it has trainers/{marker}"


def test_files_and_folders_of_other_names_are_given(tmp_path, capsys, found):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "train.py").rename(root / "upl_train.py")
    (root / "trainers").rename(root / "methods")
    (root / "clip").rename(root / "clip_w_local")
    assert "--train, --trainers and --clip say how they are called" in refused(capsys, path)
    before = contents(path)
    names = ["--train", "upl_train.py", "--trainers", "methods", "--clip", "clip_w_local"]
    assert run(path, *names) == 0
    assert "python upl_train.py" in capsys.readouterr().out
    text = "".join(file.read_text() for file in (root / "methods/skiptuning").rglob("*.py"))
    assert "from clip_w_local import clip" in text and "from clip import" not in text
    assert "from methods.skiptuning import extend_cfg" in (root / "upl_train.py").read_text()
    assert " upl_train.py " in (root / "scripts/skip/xd_train.sh").read_text()
    assert run(path, *names) == 0 and "there already" in capsys.readouterr().out
    assert run(path, *names, "--undo") == 0
    assert contents(path) == before


def test_a_name_may_begin_with_a_dot_and_end_with_a_slash(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    before = contents(path)
    assert run(path, "--train", "./train.py", "--trainers", "./trainers/", "--clip", "./clip/") == 0
    assert (root / "trainers/skiptuning/skip_tuning.py").is_file() and " train.py " in capsys.readouterr().out
    assert run(path, "--undo") == 0 and contents(path) == before


@pytest.mark.parametrize("flag", ["--train", "--trainers", "--clip"])
@pytest.mark.parametrize("name", ["/somewhere/methods", "../methods", "a/../..", ""])
def test_a_name_outside_of_the_codebase_is_refused(flag, name, tmp_path, capsys):
    path, _ = make_fork(tmp_path, "CoOp")
    assert f"{flag} {name}: name it as seen from the codebase's folder" in refused(capsys, path, flag, name)


def test_a_dassl_of_another_name_is_what_the_trainer_imports(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    text = (root / "train.py").read_text()
    (root / "train.py").write_text(text.replace("from dassl.", "from my_dassl."))
    assert run(path) == 0
    assert "Note: its Dassl is the package my_dassl" in capsys.readouterr().out
    text = "".join(file.read_text() for file in (root / "trainers/skiptuning").rglob("*.py"))
    assert "from my_dassl.engine import" in text and "from dassl" not in text
    assert run(path, "--undo") == 0
    assert "the codebase brings its own my_dassl: use --engine theirs" in refused(capsys, path, "--engine", "ours")


def test_what_a_fork_does_otherwise_is_said_when_the_trainer_is_put_in(tmp_path, capsys, found):
    path, root = make_fork(tmp_path, "CoOp")
    text = (root / "train.py").read_text()
    text = text.replace('"--load-epoch", type=int', '"--load-epoch", type=int, default=10')
    (root / "train.py").write_text(text.replace('    cfg.DATASET.SUBSAMPLE_CLASSES = "all"\n', ""))
    (root / "dassl/evaluation").mkdir(parents=True)
    (root / "dassl/__init__.py").touch()
    (root / "dassl/evaluation/evaluator.py").write_text("print(cfg.TRAINER.MINE.N)")
    found["file"] = str(root / "dassl/__init__.py")
    assert run(path) == 0
    out = capsys.readouterr().out
    assert "Note: train.py tests epoch 10 unless --load-epoch says another" in out
    assert "train.py has no DATASET.SUBSAMPLE_CLASSES" in out and "SUBSAMPLE_CLASSES base" not in out
    assert "SUBSAMPLE_CLASSES" not in (root / "scripts/skip/xd_train.sh").read_text()
    assert "its evaluator reads the options of a trainer of its own, TRAINER.MINE" in out
    for script in ("base2new_test", "xd_test"):
        assert "--load-epoch -1 " in (root / f"scripts/skip/{script}.sh").read_text()
    assert "--load-epoch" not in (root / "scripts/skip/xd_train.sh").read_text()
