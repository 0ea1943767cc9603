"""Put the SkipTuning trainer into a codebase of the CoOp family, and take it out again without a trace.

What is copied: the trainer and its parts into `trainers/skiptuning/`, the presets (each as one plain yacs file) into
`configs/trainers/SkipTuning/`, five scripts into `scripts/skip/`; with --engine ours also `dassl/`. What is edited, by
parsing train.py: its `extend_cfg` imports the trainer and takes its options, and settings that its `setup_cfg` forces
on every trainer are kept from this one. `.swap_in.json` in the codebase remembers what was there before.
"""

import argparse
import ast
import difflib
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import yaml

from dassl.config.config import read_files
from dassl.utils import Parser, UserError, write_atomic

HERE = Path(__file__).resolve().parent
MANIFEST = ".swap_in.json"
EPILOG = """
examples:
  python swap_in.py ../CoOp --dry-run        # what would be added and edited
  python swap_in.py ../CoOp                  # do it, and print the command that trains EuroSAT there
  python swap_in.py ../CoOp --undo           # every byte as before
"""

# ---- the family ----------------------------------------------------------------------------------------------

COOP = "output/base2new/{part}/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}"
DEPT = "outputs/base2new/{part}/{trainer}/{dataset}/shots{shots}/{cfg}/seed{seed}"
VAL_IS_TEST = "validation images are the test images here: leave TEST.FINAL_MODEL at last_step"


class Fork(NamedTuple):
    """One codebase: the module in trainers/ that no earlier row has, and where it departs from CoOp's customs."""

    name: str
    marker: str  # in trainers/, without .py
    layout: str = COOP  # output folder of a base-to-new run
    flags: str = ""  # that every call of train.py needs
    note: str = ""  # what its users should know


FORKS = (  # a codebase that was made from another one has that one's modules too, so it stands first
    Fork("SkipTuning's release", "_base_", DEPT, note="it deletes an output folder whose log has no accuracy line"),
    Fork("DePT", "elp_coop", DEPT),
    Fork("ATPrompt", "coop_atp", note="its own Dassl ends the process after training, without an exit code"),
    Fork("DPC", "sple_coop", COOP.replace("seed{", "seed_{"), note=VAL_IS_TEST),
    Fork("PromptKD", "promptkd", COOP.replace("seed{", "seed_{"), note=VAL_IS_TEST),
    Fork("CoPrompt", "coprompt", COOP.replace("base2new", "skip")),
    Fork("CLAP", "adapters", flags="--backbone ViT-B/16"),  # its train.py would choose RN50
    Fork("MMRL", "mmrl"),
    Fork("MMA", "mmadapter", COOP.replace("{cfg}/", "")),
    Fork("ProMetaR", "prometar"),
    Fork("PLOT++", "plotpp"),
    Fork("PLOT", "plot"),
    Fork("TCP", "tcp"),
    Fork("KgCoOp", "kgcoop"),
    Fork("ProGrad", "prograd"),
    Fork("PromptSRC", "promptsrc"),
    Fork("MaPLe", "maple"),
    Fork("CoOp", "coop"),
)
UNKNOWN = Fork("an unknown codebase of the CoOp family", "")


def find_root(path):
    """The folder at or below `path` (two levels) with train.py, trainers/, datasets/ and clip/."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"No folder {path}: give the folder of a codebase of the CoOp family")
    needed = ("train.py", "trainers", "datasets", "clip")
    for pattern in ("", "*/", "*/*/"):
        roots = sorted(p.parent for p in path.glob(f"{pattern}train.py"))
        roots = [root for root in roots if all((root / name).exists() for name in needed)]
        if len(roots) > 1:
            raise UserError(f"{path} holds several codebases: give one of {', '.join(map(str, roots))}")
        if roots and roots[0].resolve() == HERE:
            raise UserError(f"{path} is this project, which has the trainer: give another codebase's folder")
        if roots:
            return roots[0]
    raise UserError(f"{path} is no codebase of the CoOp family: nowhere in it are {', '.join(needed)} side by side")


def recognise(root):
    for fork in FORKS:
        if any((root / "trainers" / f"{fork.marker}{suffix}").exists() for suffix in (".py", "/__init__.py")):
            return fork
    return UNKNOWN


def check_clean(root):
    """UserError if git knows of changes to the codebase's files. Files that git does not know are never touched."""
    command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "."]
    with suppress(FileNotFoundError):  # no git: nothing to ask
        status = subprocess.run(command, capture_output=True, text=True)
        if status.returncode == 0 and status.stdout:
            changed = [line[3:] for line in status.stdout.splitlines()]
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UserError(f"{root} has changes that are not committed ({', '.join(changed[:3])}{more}): commit first")


# ---- edits of train.py, found by parsing -----------------------------------------------------------------------

REGISTER = """
from trainers.{package} import extend_cfg as extend_{package}

extend_{package}({cfg})
"""


def edit_train(source, name):
    """train.py's text with the edits that the trainer called `name` needs.

    Errors: UserError where the file has no `extend_cfg(cfg)` and `setup_cfg(args)` as the family's have.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"train.py doesn't parse ({error}): repair it first") from error
    extend, setup = (_function(tree, wanted) for wanted in ("extend_cfg", "setup_cfg"))
    lines = source.splitlines(keepends=True)
    edits = [_registration(extend, name), *_guards(setup, name), *_evaluation(tree, name)]
    newline = "\r\n" if lines[0].endswith("\r\n") else "\n"
    for first, last, change in sorted(
        edits, key=lambda e: e[:2], reverse=True
    ):  # from the end: earlier lines keep their numbers
        lines[first:last] = change([line.rstrip("\r\n") for line in lines[first:last]], newline)
    edited = "".join(lines)
    _check_edit(tree, ast.parse(edited))
    return edited


def _function(tree, name):
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found or not found[0].args.args:
        raise UserError(f"train.py has no function {name}(...), which the family's have: add the trainer by hand")
    return found[0]


def _span(statement):
    """Its lines as a slice."""
    return statement.lineno - 1, statement.end_lineno


def _registration(extend, name):
    """At the end of extend_cfg: import the trainer, which registers it, and add its options."""
    last = extend.body[-1]
    text = REGISTER.format(package=name.lower(), cfg=extend.args.args[0].arg)
    at = last.lineno - 1 if isinstance(last, ast.Return) else last.end_lineno
    block = [f"{' ' * last.col_offset}{line}".rstrip() for line in text.rstrip().split("\n")]
    return _insertion(at, block)


def _insertion(at, block):
    return at, at, lambda _, newline: [line + newline for line in block]


def _guards(setup, name):
    """What setup_cfg forces on the options of every trainer is put behind an if."""
    cfg = next((s.targets[0].id for s in setup.body if isinstance(s, ast.Assign) and "cfg" in ast.unparse(s)), "cfg")
    condition = f'if {cfg}.TRAINER.NAME != "{name}":'

    def guard(lines, newline):
        indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
        block = [indent + condition, *(f"    {line}" if line.strip() else line for line in lines)]
        return [line + newline for line in block]

    return [(*_span(statement), guard) for statement in setup.body if _forces(statement, cfg)]


def _forces(statement, cfg):
    """Whether a statement of setup_cfg assigns to an option, or merges a list that isn't the command line's."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Assign) and any(ast.unparse(t).startswith(f"{cfg}.") for t in node.targets):
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{cfg}.merge_from_list":
            return not (node.args and ast.unparse(node.args[0]) == "args.opts")
    return False


def _evaluation(tree, name):
    """Where `if args.eval_only:` tests without loading a model (PLOT++), it loads this trainer's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "args.eval_only":
            if "load_model" in ast.unparse(node):
                return []
            first = node.body[0]
            at, indent = first.lineno - 1, " " * first.col_offset
            block = [
                f'{indent}if trainer.cfg.TRAINER.NAME == "{name}":',
                f"{indent}    trainer.load_model(args.model_dir, epoch=args.load_epoch)",
            ]
            return [_insertion(at, block)]
    return []


def _check_edit(before, after):
    """UserError unless each simple statement of the old file is found again, word by word, in the new one."""
    old, new = (
        Counter(ast.dump(node) for node in ast.walk(tree) if isinstance(node, ast.stmt) and not hasattr(node, "body"))
        for tree in (before, after)
    )
    if old - new:
        raise UserError("train.py can't be edited safely: a text over several lines stands where an if is needed")


# ---- what is added ---------------------------------------------------------------------------------------------

SCRIPTS = {  # script: (arguments, SUBSAMPLE_CLASSES, suffix of the preset, part of base-to-new)
    "base2new_train": ("DATASET SEED", "base", "", "train_base"),
    "base2new_test": ("DATASET SEED", "new", "", "test_new"),
    "few_shot": ("DATASET SEED SHOTS", "all", "_few_shot", ""),
    "xd_train": ("SEED", "all", "_xd", ""),
    "xd_test": ("DATASET SEED", "all", "_xd", ""),
}
SCRIPT = """#!/usr/bin/env bash
# usage: [DATA=...] [PRESET=paper|official] [SHOTS=16] bash scripts/skip/{script}.sh {arguments}
set -eu
cd "$(dirname "$0")/../.."
{read}
SHOTS=${{SHOTS:-16}}
CFG=${{CFG:-vit_b16${{PRESET:+_$PRESET}}{suffix}}}
exec python train.py --root "${{DATA:-./data}}" --seed "$SEED" --trainer {trainer} {flags}\\
  --dataset-config-file "configs/datasets/$DATASET.yaml" --config-file "configs/trainers/{trainer}/$CFG.yaml" \\
  --output-dir "{output}" {model}\\
  DATASET.NUM_SHOTS "$SHOTS" DATASET.SUBSAMPLE_CLASSES {classes}
"""
FEW_SHOT = "output/few_shot/{dataset}/{trainer}/{cfg}_{shots}shots/seed{seed}"
XD_TRAIN = "output/imagenet/{trainer}/{cfg}_{shots}shots/seed{seed}"
XD_TEST = "output/evaluation/{trainer}/{cfg}_{shots}shots/{dataset}/seed{seed}"


def additions(fork, name, engine):
    """{path in the codebase: bytes} of all new files."""
    package = f"trainers/{name.lower()}"
    files = {f"{package}/{file.name}": rename(file.read_bytes(), name) for file in plugin_files()}
    files[f"{package}/__init__.py"] = b"from .skip_tuning import extend_cfg  # registers the trainer as well\n"
    for preset in sorted((HERE / "configs/trainers/SkipTuning").glob("vit_b16*.yaml")):
        files[f"configs/trainers/{name}/{preset.name}"] = flat_preset(preset)
    for script in SCRIPTS:
        files[f"scripts/skip/{script}.sh"] = write_script(script, fork, name)
    if engine == "ours":
        for file in sorted((HERE / "dassl").rglob("*.py")):
            files[file.relative_to(HERE).as_posix()] = file.read_bytes()
    return files


def plugin_files():
    """trainers/skip_tuning.py and what it imports from its own folder."""
    found = [HERE / "trainers/skip_tuning.py"]
    for file in found:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                part = file.with_name(f"{node.module}.py")
                if part not in found:
                    found.append(part)
    return found


def rename(source, name):
    """The plugin's source with the trainer's class, by whose name it is registered, called `name`."""
    return source.replace(b"class SkipTuning(", f"class {name}(".encode())


def flat_preset(path):
    """A preset and what it is based on as one YAML file: upstream's yacs has no _BASE_."""
    text, merged = path.read_text(encoding="utf-8"), {}
    for _, tree in read_files(path):
        _merge(merged, tree)
    merged["OPTIM"]["STAGED_LR"] = False  # DePT's default is True, for layers of its own
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    return (header + yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)).encode()


def _merge(tree, update):
    for key, value in update.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def write_script(script, fork, name):
    arguments, classes, suffix, part = SCRIPTS[script]
    words = {"dataset": "$DATASET", "shots": "$SHOTS", "trainer": name, "cfg": "$CFG", "seed": "$SEED"}
    layouts = {"few_shot": FEW_SHOT, "xd_train": XD_TRAIN, "xd_test": XD_TEST}
    trained = {"base2new_test": fork.layout.format(part="train_base", **words), "xd_test": XD_TRAIN.format(**words)}
    reads = [f"{word}=${{{i}:?{arguments}}}" for i, word in enumerate(arguments.split(), 1)]
    text = SCRIPT.format(
        script=script,
        arguments=arguments,
        read="\n".join(reads + ["DATASET=imagenet"] * (script == "xd_train")),
        suffix=suffix,
        trainer=name,
        flags=f"{fork.flags} " if fork.flags else "",
        output=layouts.get(script, fork.layout).format(part=part, **words),
        model=f'--eval-only --model-dir "{trained[script]}" ' if script in trained else "",
        classes=classes,
    )
    return text.encode()


def train_command(fork, name):
    """The command that trains EuroSAT's base classes, to be given in the codebase's root."""
    words = {"part": "train_base", "dataset": "eurosat", "shots": 16, "trainer": name, "cfg": "vit_b16", "seed": 1}
    return (
        f"python train.py --root PATH/TO/DATASETS --seed 1 --trainer {name} {fork.flags}".rstrip()
        + f" --dataset-config-file configs/datasets/eurosat.yaml --config-file configs/trainers/{name}/vit_b16.yaml"
        + f" --output-dir {fork.layout.format(**words)} DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base"
    )


def check_name(root, name):
    """UserError if `name` is no class name or is registered already."""
    if not name.isidentifier():
        raise UserError(f"--name {name}: a trainer's name is a Python identifier, such as SkipTuning2")
    for file in sorted((root / "trainers").rglob("*.py")):
        with suppress(SyntaxError):
            for node in ast.walk(ast.parse(file.read_bytes())):
                if (
                    isinstance(node, ast.ClassDef)
                    and node.name == name
                    and "register" in ast.unparse(node).split("class ")[0]
                ):
                    where = file.relative_to(root)
                    raise UserError(f"{where} registers a trainer called {name} already: choose another --name")


# ---- which Dassl -------------------------------------------------------------------------------------------------

PROBE = """
import io, json, sys
found = {"python": sys.version_info[:3]}
def attempt(step, function):
    try:
        return function()
    except Exception as error:
        found[step] = f"{type(error).__name__}: {error}".split("\\n")[0][:160]
def upstream():
    import dassl.engine
    found["file"] = dassl.__file__
    return dassl.engine
def warm_up():
    from dassl.optim.lr_scheduler import ConstantWarmupScheduler
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return ConstantWarmupScheduler(sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 2), 1, 1e-5)
def checkpoint():
    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    torch.load(file)
def towers():
    from clip import clip
import torch
found["torch"] = str(torch.__version__)
if attempt("dassl", upstream):
    schedule = attempt("warm-up", warm_up)
    if schedule:
        attempt("checkpoint", checkpoint)
attempt("clip", towers)
print(json.dumps(found))
"""


def probe(root):
    """What works in the codebase with this Python: versions, and for each step that fails its error."""
    run = subprocess.run([sys.executable, "-c", PROBE], cwd=root, capture_output=True, text=True)
    if run.returncode:
        raise UserError(f"this Python can't run the codebase: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout.splitlines()[-1])


def choose_engine(found, asked):
    """-> (engine, why)."""
    if "dassl" in found:
        problem, remedy = f"no Dassl can be imported there ({found['dassl']})", None
    else:
        where = f"with PyTorch {found['torch'].split('+')[0]} and the Dassl in {Path(found['file']).parent}"
        remedy = "add OPTIM.WARMUP_EPOCH -1 to commands, or use --engine ours"
        if "warm-up" in found:
            problem = f"{where} warm-up schedules crash ({found['warm-up']})"
        elif "checkpoint" in found:
            problem = f"{where} checkpoints of runs with a warm-up don't load ({found['checkpoint']})"
        else:
            return asked or "theirs", f"{where} all is well"
    if asked != "theirs":
        return "ours", f"{problem}; dassl/ beside train.py comes first"
    if not remedy:
        raise UserError(f"{problem}: use --engine ours")
    return "theirs", f"you asked for it, but {problem}: {remedy}"


def warnings(found):
    """What else would break."""
    lines = []
    if tuple(map(int, found["torch"].split("+")[0].split(".")[:2])) < (2, 4):
        lines.append(f"PyTorch {found['torch']} is older than the 2.4 that the trainer needs")
    if tuple(found["python"]) < (3, 10):
        lines.append("Python is older than the 3.10 that the trainer needs")
    if "clip" in found:
        remedy = ": pip install 'setuptools<81'" if "pkg_resources" in found["clip"] else ""
        lines.append(f"this codebase's clip/ can't be imported ({found['clip']}){remedy}")
    return lines


# ---- doing and undoing -------------------------------------------------------------------------------------------


def digest(content):
    return hashlib.sha256(content).hexdigest()


def make_plan(root, fork, name, engine):
    """{path: (bytes before or None, bytes after)} of all files that change; UserError if one is in the way."""
    train = (root / "train.py").read_bytes()
    plan = {"train.py": (train, edit_train(train.decode(), name).encode())}
    for path, content in additions(fork, name, engine).items():
        plan[path] = (None, content)
    taken = sorted(path for path, (before, _) in plan.items() if before is None and os.path.lexists(root / path))
    if taken:
        hint = "--engine theirs uses it" if taken[0].startswith("dassl/") else "choose another --name"
        raise UserError(f"{root / taken[0]} exists already: {hint}")
    return plan


def apply(root, plan, facts):
    """All of the plan or, after an error or Ctrl-C, none of it."""
    folders = {parent.as_posix() for path in plan for parent in Path(path).parents if not (root / parent).exists()}
    manifest = {
        **facts,
        "added": {path: digest(after) for path, (before, after) in plan.items() if before is None},
        "edited": {
            path: {"original": before.decode(), "sha256": digest(after)}
            for path, (before, after) in plan.items()
            if before is not None
        },
        "folders": sorted(folders, reverse=True),  # inner ones first
    }
    write_atomic(root / MANIFEST, json.dumps(manifest, indent=1).encode())  # first: a killed run can be undone
    try:
        for path, (_, after) in plan.items():
            replace(root / path, after, executable=path.endswith(".sh"))
    except BaseException:
        undo(root, manifest)
        raise


def replace(path, content, executable=False):
    """Write a file, keeping the permissions of one that was there."""
    mode = path.stat().st_mode if path.exists() else None
    write_atomic(path, content)
    if mode is not None:
        path.chmod(mode)
    elif executable:
        path.chmod(path.stat().st_mode | 0o111)


def undo(root, manifest):
    """Everything as before the plan, however much of it was carried out. UserError if a file was changed since."""
    files = (*manifest["added"], *manifest["edited"])
    if changed := [path for path in files if state(root, manifest, path) == "changed"]:
        raise UserError(f"changed since: {', '.join(changed)}; nothing was undone, move your changes away first")
    for path in manifest["added"]:
        (root / path).unlink(missing_ok=True)
    for path, record in manifest["edited"].items():
        if state(root, manifest, path) == "done":
            replace(root / path, record["original"].encode())
    for folder in manifest["folders"]:
        remove_folder(root / folder)
    (root / MANIFEST).unlink(missing_ok=True)


def state(root, manifest, path):
    """ "done", "open" (as before the plan) or "changed"."""
    record = manifest["edited"].get(path)
    content = (root / path).read_bytes() if (root / path).is_file() else None
    if content is not None and digest(content) == (record["sha256"] if record else manifest["added"][path]):
        return "done"
    return "open" if content == (record["original"].encode() if record else None) else "changed"


def remove_folder(folder):
    """A folder that swap_in made, unless something of the user's is in it. Python's byte code goes with it."""
    if (folder / "__pycache__").is_dir():
        for file in (folder / "__pycache__").glob("*.pyc"):
            file.unlink()
        (folder / "__pycache__").rmdir()
    with suppress(OSError):
        folder.rmdir()


def already_there(root, manifest, asked):
    """UserError unless the codebase holds just what was asked for."""
    for option in ("name", "engine"):
        if getattr(asked, option) not in (None, manifest[option]):
            raise UserError(f"the trainer is there with --{option} {manifest[option]}: --undo first")
    open_ = [path for path in (*manifest["added"], *manifest["edited"]) if state(root, manifest, path) != "done"]
    if open_:
        raise UserError(f"the trainer is there, but {open_[0]} is not as swap_in left it: --undo first")
    new = additions(recognise(root), manifest["name"], manifest["engine"])
    if {path: digest(content) for path, content in new.items()} != manifest["added"]:
        raise UserError("the trainer is there in another version: --undo first, then give this command again")


# ---- command line ------------------------------------------------------------------------------------------------


def show(plan):
    for path, (before, after) in plan.items():
        if before is None:
            print(f"new file {path} ({len(after.splitlines())} lines)")
            continue
        lines = (text.decode().splitlines(keepends=True) for text in (before, after))
        for line in difflib.unified_diff(*lines, path, path):
            print(line.rstrip("\r\n"))


def explain(root, fork, name):
    if fork.note:
        print(f"Note: {fork.note}")
    print(f"Train it on EuroSAT:\n  cd {shlex.quote(str(root))}\n  {train_command(fork, name)}")
    print("or, with the datasets in $DATA: bash scripts/skip/base2new_train.sh eurosat 1")


def swap_in(args):
    root = find_root(args.path)
    fork = recognise(root)
    print(f"{root} is {fork.name}")
    manifest = json.loads((root / MANIFEST).read_text()) if (root / MANIFEST).exists() else None
    if args.undo:
        if manifest is None:
            raise UserError(f"{root} has no {MANIFEST}: there is nothing to undo")
        undo(root, manifest)
        print("Undone: everything is as before")
        return
    if manifest:
        already_there(root, manifest, args)
        print(f"{manifest['name']} is there already; nothing changed")
        explain(root, fork, manifest["name"])
        return
    name = args.name or "SkipTuning"
    check_clean(root)
    check_name(root, name)
    found = probe(root)
    engine, why = choose_engine(found, args.engine)
    plan = make_plan(root, fork, name, engine)
    for line in [f"Engine: {engine}; {why}", *(f"Warning: {line}" for line in warnings(found))]:
        print(line)
    if args.dry_run:
        show(plan)
        return
    apply(root, plan, {"name": name, "engine": engine})
    print(f"Added {sum(before is None for before, _ in plan.values())} files, edited train.py")
    explain(root, fork, name)


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python swap_in.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("path", help="folder of the codebase, or one above it")
    parser.add_argument("--engine", choices=("ours", "theirs"), help="whose dassl (default: theirs if it works)")
    parser.add_argument("--name", help="name under which the trainer is registered (default: SkipTuning)")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
    parser.add_argument("--undo", action="store_true", help="restore every byte")
    try:
        swap_in(parser.parse_args(argv))
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was changed", file=sys.stderr)
        return 130
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error}; nothing was changed"
    print("Error:", message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
