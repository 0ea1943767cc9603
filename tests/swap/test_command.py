"""swap_in.py on codebases of our own writing that imitate how members of the family differ (swap_in/skeletons.py)."""

import argparse
import importlib
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

import swap_in
from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from dassl.utils import UserError
from tests.swap_in.skeletons import VARIATIONS, make_fork, make_pictures
from trainers import family

WORKS = {"python": [3, 11, 0], "torch": "2.9.0", "file": "/somewhere/dassl/__init__.py"}


@pytest.fixture(autouse=True)
def found(monkeypatch):
    """What the probe finds, without starting a Python for it; tests may change it."""
    facts = dict(WORKS)
    monkeypatch.setattr(swap_in, "probe", lambda root: facts)
    return facts


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(*args):
    return swap_in.main([str(arg) for arg in args])


# ---- what is added and edited ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_variation_is_recognised_edited_and_restored_byte_for_byte(name, tmp_path, capsys):
    path, root = make_fork(tmp_path, name)
    (root / "train.py").chmod(0o755)
    before = contents(path)
    assert run(path) == 0
    out = capsys.readouterr().out
    assert f"{root} is {name}" in out and "--trainer SkipTuning" in out
    after = contents(path)
    assert {file for file in before if before[file] != after[file]} == {
        (root / "train.py").relative_to(path).as_posix()
    }
    assert run(path) == 0 and contents(path) == after, "a second run changes nothing"
    (root / "trainers/skiptuning/__pycache__").mkdir()
    (root / "trainers/skiptuning/__pycache__/lskip.cpython-311.pyc").write_bytes(b"as Python leaves it")
    assert run(path, "--undo") == 0
    assert contents(path) == before and not (root / "trainers/skiptuning").exists()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_keep_their_ending(ending, tmp_path):
    path, root = make_fork(tmp_path, "MMRL")
    (root / "train.py").write_bytes((root / "train.py").read_text().replace("\n", ending).encode())
    assert run(path) == 0
    edited = (root / "train.py").read_bytes().decode()
    assert edited.count(ending) == edited.count("\n")


def setup_cfg(source, trainer, opts, monkeypatch):
    """The options that an edited train.py gives `trainer`."""
    node = types.SimpleNamespace(extend_cfg=lambda cfg: cfg.TRAINER.update(SKIPTUNING="registered"))
    fakes = {"trainers.skiptuning": node, "datasets.eurosat": types.ModuleType("eurosat")}
    for name in re.findall(r"^from (trainers\.\w+) import override", source, re.M):
        fakes[name] = types.SimpleNamespace(override=lambda *names: refuse("SkipTuning" in names))
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    scope = {"__name__": "train"}
    exec(compile(source, "train.py", "exec"), scope)
    files = {"dataset_config_file": "", "config_file": ""}
    return scope["setup_cfg"](
        argparse.Namespace(root="", output_dir="out", seed=1, trainer=trainer, opts=opts, **files)
    )


def refuse(wrong):
    assert not wrong, "this merge is not for Skip Tuning"
    return ["OPTIM.MAX_EPOCH", "5"]


FORCED = {"CoPrompt": 5, "MMRL": 5, "PLOT++": 200, "TCP": 25}


@pytest.mark.parametrize("name", VARIATIONS)
def test_options_that_a_fork_forces_on_its_own_trainer_leave_skip_tunings_alone(name, tmp_path, monkeypatch):
    path, root = make_fork(tmp_path, name)
    plain = (root / "train.py").read_text()
    assert run(path) == 0
    edited = (root / "train.py").read_text()
    opts = ["DATASET.NAME", "EuroSAT", "OPTIM.MAX_EPOCH", 7]
    cfg = setup_cfg(edited, "SkipTuning", opts, monkeypatch)
    assert cfg.TRAINER.SKIPTUNING == "registered", "extend_cfg imports the trainer"
    assert cfg.OPTIM.MAX_EPOCH == 7
    assert cfg.DATALOADER.TRAIN_X.SAMPLER == "RandomSampler"
    task = ["TASK", "B2N"] if name == "MMRL" else []
    own = [setup_cfg(text, "Mine", opts[:2] + task, monkeypatch) for text in (plain, edited)]
    del own[1].TRAINER["SKIPTUNING"]
    assert own[0] == own[1], "the fork's own trainers keep all their options"
    epochs = own[1].OPTIM.MAX_EPOCH
    assert epochs == (FORCED.get(name) or get_cfg_default().OPTIM.MAX_EPOCH)


def test_presets_become_files_that_plain_yacs_reads(tmp_path):
    from yacs.config import CfgNode

    path, root = make_fork(tmp_path, "DePT")
    assert run(path) == 0
    files = sorted((root / "configs/trainers/SkipTuning").iterdir())
    assert "vit_b16.yaml" in [file.name for file in files] and not [f for f in files if "embedded" in f.name]
    for file in files:
        cfg = CfgNode(get_cfg_default())
        cfg.OPTIM.STAGED_LR = True  # DePT's default
        skip_tuning = importlib.import_module("trainers.skip_tuning")
        skip_tuning.extend_cfg(cfg)
        cfg.merge_from_file(str(file))
        ours = get_cfg_default()
        skip_tuning.extend_cfg(ours)
        ours.merge_from_file(str(swap_in.HERE / "configs/trainers/SkipTuning" / file.name))
        assert cfg.TRAINER.SKIPTUNING == ours.TRAINER.SKIPTUNING and cfg.OPTIM == ours.OPTIM
        assert file.read_text().startswith("# ")


def test_scripts_and_command_follow_the_forks_layout_and_flags(tmp_path, capsys):
    for name, expected in {
        "CLAP": "--backbone ViT-B/16",
        "DePT": "outputs/base2new/train_base/SkipTuning/eurosat/shots16/vit_b16/seed1",
        "CoOp": "output/base2new/train_base/eurosat/shots_16/SkipTuning/vit_b16/seed1",
    }.items():
        path, root = make_fork(tmp_path / name, name)
        assert run(path) == 0
        assert expected in capsys.readouterr().out
        (root / "bin").mkdir()
        python = root / "bin/python"
        python.write_text('#!/bin/sh\necho "$@"\n')
        python.chmod(0o755)
        command = ["bash", str(root / "scripts/skip/base2new_train.sh"), "eurosat", "1"]
        shown = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{root}/bin:/usr/bin:/bin"})
        assert expected in shown.stdout and "SUBSAMPLE_CLASSES base" in shown.stdout, shown.stderr
        assert "/test_new/" in (root / "scripts/skip/base2new_test.sh").read_text() or name == "DePT"
        missing = subprocess.run(command[:2], capture_output=True, text=True)
        assert missing.returncode and "DATASET SEED" in missing.stderr


# ---- what is refused ---------------------------------------------------------------------------------------


def refused(capsys, *args):
    """The error of a run that fails."""
    assert run(*args) == 1
    return capsys.readouterr().err


def test_trees_that_are_no_fork_are_refused_with_the_reason(tmp_path, capsys):
    assert "train.py, trainers, datasets, clip side by side" in refused(capsys, tmp_path)
    assert "No folder" in refused(capsys, tmp_path / "nowhere")
    assert "is this project" in refused(capsys, swap_in.HERE)
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
    assert re.search("several codebases: give one of .*plot-a, .*plot-b", refused(capsys, path))


def test_changes_that_git_does_not_have_are_refused_and_new_files_are_not(tmp_path, capsys, monkeypatch):
    path, root = make_fork(tmp_path, "CoOp")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):  # whose hooks and signatures are the user's own
        monkeypatch.setenv(name, os.devnull)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # set where a hook runs the tests
        monkeypatch.delenv(name, raising=False)
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], check=True)
    (root / "trainers/coop.py").write_text("changed = 1\n")
    assert "not committed (trainers/coop.py)" in refused(capsys, path)
    subprocess.run([*git, "commit", "-qam", "it"], check=True)
    (root / "notes.txt").write_text("of mine")
    assert run(path) == 0


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
    assert (root / "configs/trainers/SkipTuning2/vit_b16.yaml").exists()
    assert '!= "SkipTuning2"' in swap_in.edit_train(
        (make_fork(tmp_path / "p", "TCP")[1] / "train.py").read_text(), "SkipTuning2"
    )
    assert "--undo first" in refused(capsys, path, "--name", "SkipTuning3")


def test_files_in_the_way_are_not_overwritten(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    (root / "scripts/skip").mkdir(parents=True)
    (root / "scripts/skip/xd_train.sh").write_text("mine")
    before = contents(path)
    assert "xd_train.sh exists already" in refused(capsys, path)
    assert contents(path) == before


def test_undo_refuses_files_that_were_changed_since_and_names_them(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    assert "nothing to undo" in refused(capsys, path, "--undo")
    assert run(path) == 0
    for file in ("train.py", "trainers/skiptuning/cskip.py"):
        content = (root / file).read_bytes()
        (root / file).write_bytes(content + b"# mine\n")
        changed = contents(path)
        assert f"changed since: {file};" in refused(capsys, path, "--undo")
        assert contents(path) == changed
        assert f"{file} is not as swap_in left it" in refused(capsys, path)
        (root / file).write_bytes(content)
    (root / "scripts/skip/mine.sh").write_text("kept")
    assert run(path, "--undo") == 0
    assert (root / "scripts/skip/mine.sh").read_text() == "kept"


def test_dry_run_shows_the_diff_and_changes_nothing(tmp_path, capsys):
    path, _ = make_fork(tmp_path, "TCP")
    before = contents(path)
    assert run(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert '+    if cfg.TRAINER.NAME != "SkipTuning":' in out and "+    extend_skiptuning(cfg)" in out
    assert re.search(r"new file trainers/skiptuning/skip_tuning.py \(\d+ lines\)", out)
    assert contents(path) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_all_edits_are_made_or_none(error, tmp_path, monkeypatch, capsys):
    path, _ = make_fork(tmp_path, "CoOp")
    before, replace, count = contents(path), swap_in.replace, []

    def fail(*args, **kwargs):
        count.append(1)
        if len(count) == 8:
            raise error
        replace(*args, **kwargs)

    monkeypatch.setattr(swap_in, "replace", fail)
    assert run(path) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert contents(path) == before


def test_what_a_killed_run_left_can_be_undone(tmp_path, monkeypatch, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    before = contents(path)
    assert run(path) == 0
    (root / "scripts/skip/xd_train.sh").unlink()  # as if it had not come so far
    assert "--undo first" in refused(capsys, path)
    assert run(path, "--undo") == 0 and contents(path) == before


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
def test_the_engine_is_theirs_where_it_works_and_the_reason_is_given(fault, asked, engine, why, found):
    if fault:
        found[fault] = "broken"
    if engine is None:
        with pytest.raises(UserError, match=why):
            swap_in.choose_engine(found, asked)
    else:
        chosen, reason = swap_in.choose_engine(found, asked)
        assert chosen == engine and why in reason


def test_versions_and_a_clip_that_cannot_work_are_warned_of(found):
    found |= {
        "torch": "1.13.1+cu117",
        "python": [3, 8, 1],
        "clip": "ModuleNotFoundError: No module named 'pkg_resources'",
    }
    text = "\n".join(swap_in.warnings(found))
    assert "2.4" in text and "3.10" in text and "setuptools<81" in text
    assert swap_in.warnings(WORKS) == []


# ---- a whole run -------------------------------------------------------------------------------------------


def in_fork(root, *args):
    command = [sys.executable, "-W", "ignore", "train.py", "--trainer", "SkipTuning", "--seed", "1", *args]
    run = subprocess.run([str(word) for word in command], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return re.findall(r" loss ([\d.]+)", run.stdout), re.findall(r"^\* accuracy: (\S+)%", run.stdout, re.M)


def test_a_fork_trains_and_tests_and_every_loss_is_ours(tmp_path, make_clip, found):
    """CLAP's and ATPrompt's calls, DePT's defaults, a clip/ with MaPLe's, TCP's and PLOT++'s changes: all in one."""
    weights, data = tmp_path / "tiny.pt", make_pictures(tmp_path / "data")
    torch.save(make_clip(embed_dim=32).half().state_dict(), weights)
    evaluate = (
        "        trainer.load_model(args.model_dir, cfg, epoch=args.load_epoch)\n        trainer.test(is_final=True)"
    )
    VARIATIONS["all"] = VARIATIONS["DePT"] | {"evaluate": evaluate}
    path, root = make_fork(tmp_path, "all", weights)
    del VARIATIONS["all"]
    found["dassl"] = "none is installed"
    assert run(path) == 0
    flags = ["--root", data, "--config-file", "configs/trainers/SkipTuning/vit_b16.yaml"]
    flags += ["--dataset-config-file", "configs/datasets/eurosat.yaml", "--output-dir"]
    small = ["OPTIM.MAX_EPOCH", "2", "OPTIM.LR", "0.01", "INPUT.SIZE", "(32,32)", "TRAINER.SKIPTUNING.OMEGA", "1"]
    small += ["DATALOADER.NUM_WORKERS", "0", "TRAIN.PRINT_FREQ", "1"]
    losses, accuracy = in_fork(root, *flags, tmp_path / "run", *small)
    again, tested = in_fork(root, *flags, tmp_path / "test", "--eval-only", "--model-dir", tmp_path / "run", *small)
    assert len(losses) == 10 and again == [] and tested == accuracy
    ours = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OURS, root / "datasets", data, weights, tmp_path / "ours", *small],
        cwd=swap_in.HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert re.findall(r" loss ([\d.]+)", ours.stdout) == losses, ours.stderr


OURS = """
import sys
import trainers
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
folder, data, weights, output, *opts = sys.argv[1:]
sys.path.insert(0, folder)
import eurosat
cfg = get_cfg_default()
trainers.extend_cfg(cfg)
cfg.merge_from_file("configs/trainers/SkipTuning/vit_b16.yaml")
cfg.merge_from_list(["DATASET.NAME", "EuroSAT", "DATASET.ROOT", data, "OUTPUT_DIR", output, "SEED", 1, *opts])
cfg.merge_from_list(["TRAINER.NAME", "SkipTuning", "MODEL.BACKBONE.NAME", weights])
set_random_seed(1)
build_trainer(cfg).train()
"""


# ---- upstream's Dassl --------------------------------------------------------------------------------------


class Loader(family.FamilyTrainer):
    def __init__(self):
        TrainerBase.__init__(self)
        self.register_model("part", torch.nn.Linear(2, 1))


def test_checkpoints_load_on_a_dassl_that_cannot_print_them(tmp_path, monkeypatch):
    monkeypatch.delattr(TrainerBase, "fixed_options")  # as upstream's, whose own load_model is not to be called
    monkeypatch.setattr(TrainerBase, "load_model", lambda *args, **kwargs: pytest.fail("upstream's was called"))
    (tmp_path / "part").mkdir()
    for epoch in (2, 10):
        weights = {"weight": torch.full((1, 2), float(epoch)), "bias": torch.zeros(1)}
        torch.save({"state_dict": weights, "epoch": epoch}, tmp_path / f"part/model.pth.tar-{epoch}")
    trainer = Loader()
    for arguments, options, epoch in [
        ((), {}, 10),  # the last
        ((), {"epoch": 2}, 2),
        ((2,), {}, 2),
        (("CLAP's cfg",), {"epoch": 2}, 2),
    ]:
        trainer.load_model(str(tmp_path), *arguments, **options)
        assert trainer._models["part"].weight[0, 0] == epoch
    with pytest.raises(UserError, match=r"epochs \[2, 10\]"):
        trainer.load_model(str(tmp_path), epoch=5)
    (tmp_path / "part/model.pth.tar-10").rename(tmp_path / "part/model-best.pth.tar")
    trainer.load_model(str(tmp_path))
    assert trainer._models["part"].weight[0, 0] == 10


def test_the_plugin_uses_no_name_that_upstreams_dassl_lacks():
    """Of dassl it imports six names that all 18 codebases' Dassls have; UserError has a replacement."""
    text = "".join(Path(file).read_text() for file in swap_in.plugin_files())
    imported = {
        (module, name.strip())
        for module, names in re.findall(r"from (dassl\S*) import (.+)", text)
        for name in names.split(",")
    }
    assert imported == {
        ("dassl.engine", "TRAINER_REGISTRY"),
        ("dassl.engine", "TrainerX"),
        ("dassl.metrics", "compute_accuracy"),
        ("dassl.optim", "build_lr_scheduler"),
        ("dassl.optim", "build_optimizer"),
        ("dassl.utils", "UserError"),
        ("dassl.utils", "load_checkpoint"),
    }
    assert yaml.safe_load(swap_in.flat_preset(swap_in.HERE / "configs/trainers/SkipTuning/vit_b16.yaml"))
