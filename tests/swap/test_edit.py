"""The edit of train.py, on files of our own writing that imitate the family's and what people do to them."""

import argparse
import re
import sys
import types

import pytest

from dassl.config import get_cfg_default
from dassl.utils import UserError
from swap.edit import edit_train, remove_edit
from tests.swap.skeletons import PLAIN, TRAIN, VARIATIONS

PACKAGE = "trainers.skiptuning"


def source(name="CoOp", **changes):
    parts = PLAIN | VARIATIONS[name] | changes
    return TRAIN.format(**parts).lstrip()[: None if parts.get("last_newline", True) else -1]


def edited(text, name="SkipTuning"):
    return edit_train(text.encode(), name, PACKAGE).decode()


def configure(text, trainer, opts, monkeypatch, function="setup_cfg"):
    """The options that a train.py gives `trainer`."""
    node = types.SimpleNamespace(extend_cfg=lambda cfg: cfg.TRAINER.update(SKIPTUNING="registered"))
    fakes = {PACKAGE: node, "datasets.eurosat": types.ModuleType("eurosat")}
    for name in re.findall(r"^from (trainers\.\w+) import override", text, re.M):
        fakes[name] = types.SimpleNamespace(override=lambda *names: refuse("SkipTuning" in names))
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    scope = {"__name__": "train"}
    exec(compile(text, "train.py", "exec"), scope)
    args = argparse.Namespace(root="", output_dir="out", seed=1, trainer=trainer, opts=opts, eval_only=True)
    args.dataset_config_file = args.config_file = ""
    return scope[function](args)


def refuse(wrong):
    assert not wrong, "this merge is not for Skip Tuning"
    return ["OPTIM.MAX_EPOCH", "5"]


FORCED = {"CoPrompt": 5, "MMRL": 5, "PLOT++": 200, "TCP": 25, "augmented": 15, "one line": 5}


@pytest.mark.parametrize("name", VARIATIONS)
def test_options_that_a_fork_forces_on_its_own_trainer_leave_skip_tunings_alone(name, monkeypatch):
    plain = source(name)
    text = edited(plain)
    opts = ["DATASET.NAME", "EuroSAT", "OPTIM.MAX_EPOCH", 7]
    cfg = configure(text, "SkipTuning", opts, monkeypatch)
    assert cfg.TRAINER.SKIPTUNING == "registered", "the branch imports the trainer"
    assert cfg.TRAINER.NAME == "SkipTuning" and cfg.SEED == 1 and cfg.is_frozen(), "reset_cfg was called"
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all" or name == "early return", "extend_cfg was called"
    assert cfg.OPTIM.MAX_EPOCH == 7
    assert cfg.OPTIM.LR == get_cfg_default().OPTIM.LR and cfg.OPTIM.MOMENTUM == get_cfg_default().OPTIM.MOMENTUM
    assert cfg.DATALOADER.TRAIN_X.SAMPLER == "RandomSampler"
    task = ["TASK", "B2N"] if name == "MMRL" else []
    own = [configure(text, "Mine", opts[:2] + task, monkeypatch) for text in (plain, text)]
    assert own[0] == own[1], "the fork's own trainers keep all their options, and get no more"
    assert (FORCED.get(name) or get_cfg_default().OPTIM.MAX_EPOCH) == own[1].OPTIM.MAX_EPOCH
    assert remove_edit(text.encode(), "SkipTuning", PACKAGE) == plain.encode()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_keep_their_ending(ending):
    text = edit_train(source("MMRL").replace("\n", ending).encode(), "SkipTuning", PACKAGE).decode()
    if ending != "\r":
        assert text.count(ending) == text.count("\n")
    assert "extend_skiptuning(cfg)" in text


FIRST = "def setup_cfg(args):\n    cfg = get_cfg_default()\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (FIRST, FIRST.replace("    cfg", "    args.x = 1\n    cfg")),
        (FIRST, "def setup_cfg(args):\n    args.x = 1; cfg = get_cfg_default()\n"),
        (FIRST, FIRST.replace("()\n", "(); cfg.A = 1\n")),
        (FIRST, '# \x0c form feed, \u2028 separator, \x85 and \x1c\n"""\x0c\u2028"""\n' + FIRST),
        (FIRST, "def setup_cfg(args):\n    '''ä€𝄞'''; cfg = get_cfg_default()  # ä€𝄞\n"),
        ("    ", "\t"),
        ("setup_cfg", "setup_config"),
        ("setup_cfg(args)", "setup_cfg(args, more=None)"),
        ("    extend_cfg(cfg)\n", "    extend_cfg(cfg); cfg.X = 3\n"),
        ("    cfg.SEED = args.seed\n", "    cfg.SEED = args.seed\n    if args.eval_only: cfg.eval_only = 1\n"),
    ],
    ids=["assigned", "second", "first", "separators", "columns", "tabs", "name", "more", "after", "if"],
)
def test_the_ways_in_which_people_write_python(old, new, monkeypatch):
    plain = source().replace(old, new)
    assert plain != source()
    text = edited(plain)
    function = "setup_config" if "setup_config" in plain else "setup_cfg"
    cfg = configure(text, "SkipTuning", ["OPTIM.MAX_EPOCH", 7], monkeypatch, function)
    assert cfg.TRAINER.SKIPTUNING == "registered" and cfg.OPTIM.MAX_EPOCH == 7
    mine = [configure(text, "Mine", [], monkeypatch, function) for text in (plain, text)]
    assert mine[0] == mine[1]
    assert set(plain.splitlines()) <= set(text.splitlines()) or old == FIRST, "old lines stand as they stood"


def test_one_line_functions_become_several_lines(monkeypatch):
    comment = '    """\n    Add options, for example cfg.TRAINER.MINE.N = 1\n    """\n'
    plain = source().replace(comment, "    pass\n\n\ndef other(cfg):\n")
    plain = plain.replace("def extend_cfg(cfg):\n    pass\n", "def extend_cfg(cfg): cfg.A = 1\n")
    assert "def extend_cfg(cfg): cfg.A = 1" in plain
    start, end = plain.index("def setup_cfg"), plain.index("def main")
    short = "def setup_cfg(args): cfg = get_cfg_default(); extend_cfg(cfg); reset_cfg(cfg, args); "
    plain = plain[:start] + short + "cfg.merge_from_list(args.opts); return cfg\n\n\n" + plain[end:]
    cfg = configure(edited(plain), "SkipTuning", ["OPTIM.MAX_EPOCH", 7], monkeypatch)
    assert cfg.TRAINER.SKIPTUNING == "registered" and cfg.OPTIM.MAX_EPOCH == 7 and cfg.A == 1
    assert configure(edited(plain), "Mine", [], monkeypatch) == configure(plain, "Mine", [], monkeypatch)


@pytest.mark.parametrize(
    ("encoding", "first"),
    [("utf-8-sig", ""), ("latin-1", "# -*- coding: latin-1 -*-\n"), ("cp1252", "#!/usr/bin/python\n# coding=cp1252\n")],
)
def test_a_file_keeps_its_encoding_and_byte_order_mark(encoding, first):
    plain = (first + source() + "# é\n").encode(encoding)
    changed = edit_train(plain, "SkipTuning", PACKAGE)
    compile(changed, "train.py", "exec")
    kept = [line for line in changed.splitlines(keepends=True) if line in plain.splitlines(keepends=True)]
    assert b"".join(kept).startswith(plain[:20]) and changed.endswith("# é\n".encode(encoding.removesuffix("-sig")))
    assert remove_edit(changed, "SkipTuning", PACKAGE) == plain


@pytest.mark.parametrize(
    "data", [b"# \xe9\n", b"# coding: klingon\n", b"\0", b"def (:", "x = '\ud800'".encode("utf-8", "surrogatepass")]
)
def test_what_python_cannot_read_is_one_line(data):
    with pytest.raises(UserError, match=r"^train.py doesn't parse .*repair it first$"):
        edit_train(source().encode() + data if b"cod" not in data else data + source().encode(), "SkipTuning", PACKAGE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("get_cfg_default()", "other()", "no function that calls get_cfg_default"),
        ("def extend_cfg", "def extend", "has no function extend_cfg"),
        ("args.trainer", "args.method", "there is no args.trainer"),
        ("cfg.merge_from_list(args.opts)", "merge(cfg)", r"line \d+: setup_cfg merges no args.opts"),
        (
            "    cfg = get_cfg_default()",
            "    cfg: object = get_cfg_default()",
            r"line \d+: the configuration is not made",
        ),
        ("    return cfg\n", "    yield cfg\n", r"line \d+: setup_cfg returns no configuration"),
        ("reset_cfg(cfg, args)\n    ", "more = 3\n    reset_cfg(cfg, more)\n    ", r"line \d+: setup_cfg uses more"),
    ],
)
def test_what_cannot_be_edited_is_one_line_that_says_where_and_what_to_add(old, new, message):
    text = source().replace(old, new)
    assert text != source()
    with pytest.raises(UserError, match=message) as error:
        edited(text)
    assert "\n" not in str(error.value)


EVALUATE = "        trainer.test()"
LOADS = 'if args.eval_only and args.trainer == "SkipTuning":'


def test_an_evaluation_that_loads_nothing_loads_this_trainers_model_once_it_is_built():
    text = edited(source(evaluate=EVALUATE))
    assert re.search(r"trainer = build_trainer\(cfg\)\n    " + re.escape(LOADS) + r".*\n +trainer.load_model\(", text)
    assert LOADS not in edited(source())


@pytest.mark.parametrize(
    "main",
    [
        "    if args.eval_only:\n        args.no_train = True\n    trainer = build_trainer(cfg)\n    trainer.test()\n",
        "    if args.eval_only:\n        trainer = build_trainer(cfg)\n        trainer.test()\n        return\n",
        "    trainer = build_trainer(cfg); trainer.test() if args.eval_only else None\n    if args.eval_only: return\n",
    ],
    ids=["before", "inside", "one line"],
)
def test_the_model_is_loaded_where_the_trainer_is_bound(main):
    """Also where `if args.eval_only:` stands before the trainer is built."""
    plain = source()
    plain = (
        plain[: plain.index("    trainer = build_trainer(cfg)\n")] + main + "\n" + plain[plain.index("if __name__") :]
    )
    calls = []

    class Trainer:
        load_model = test = lambda self, *args, **kwargs: calls.append(len(args) + len(kwargs))

    for name in ("SkipTuning", "Mine"):
        scope = {"__name__": "train"}
        exec(compile(re.sub(r"^import datasets.*", "", edited(plain), flags=re.M), "train.py", "exec"), scope)
        scope |= {"build_trainer": lambda cfg: Trainer(), "setup_cfg": lambda args: get_cfg_default()}
        scope |= {"set_random_seed": print, "setup_logger": lambda folder: None}
        args = argparse.Namespace(eval_only=True, trainer=name, model_dir="there", load_epoch=None)
        scope["main"](args)
    assert calls == [2, 0, 0], "loaded, then tested; the fork's own trainer is only tested"
