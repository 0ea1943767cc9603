"""What will be written into a codebase, checked completely before the first byte."""

import difflib
import json
import keyword
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from dassl.utils import UserError

from . import fork as forks
from . import imports, probe, recipes, undo
from .edit import edit_train, remove_edit
from .fork import HERE, Fork

PLUGIN = HERE / "trainers"  # skip_tuning.py and what it imports from its own folder
INSTALLS = {"pkg_resources": "'setuptools<81'", "cv2": "opencv-python", "sklearn": "scikit-learn", "yaml": "pyyaml"}
NO_WARM_UP = "OPTIM.WARMUP_EPOCH -1"
SECONDS = 600  # for what the codebase's files do when they are imported


class Plan(NamedTuple):
    fork: Fork
    name: str  # under which the trainer is registered
    engine: str  # whose Dassl: "ours" or "theirs"
    options: str  # KEY VALUE pairs that every run needs
    changes: dict  # path in the codebase: (bytes before or None, bytes after)

    def facts(self):
        fork = self.fork
        parts = {"train": fork.train, "trainers": fork.trainers, "clip": fork.clip}
        return {"name": self.name, "engine": self.engine, "options": self.options, **parts}

    def show(self):
        for path, (before, after) in self.changes.items():
            if before is None:
                print(f"new file {path} ({len(after.splitlines())} lines)")
                continue
            lines = (text.decode("utf-8", "replace").splitlines(keepends=True) for text in (before, after))
            for line in difflib.unified_diff(*lines, path, path):
                print(line.rstrip("\r\n"))


def package_of(fork, name):
    return f"{fork.trainers.replace('/', '.')}.{name.lower()}"


def make(fork, name, engine, options=""):
    """A plan whose paths are free and inside the codebase. Nothing of the codebase is run for it."""
    changes = {path: (None, content) for path, content in additions(fork, name, engine, options).items()}
    for path in [*changes, fork.train]:
        if not undo.inside(fork.root, path):
            raise UserError(f"{fork.root / path} is outside of {fork.root}, to which a link leads: write there by hand")
    for path in changes:
        if os.path.lexists(fork.root / path):
            hint = "choose another --name, or --undo if an earlier swap_in wrote it"
            if path.startswith("dassl/"):
                hint = "--engine theirs uses it"
            raise UserError(f"{fork.root / path} exists already: {hint}")
    train = (fork.root / fork.train).read_bytes()
    changes[fork.train] = (train, edit_train(train, name, package_of(fork, name), fork.train))
    return Plan(fork, name, engine, options, changes)


def additions(fork, name, engine, options):
    """{path in the codebase: bytes} of all new files."""
    package = f"{fork.trainers}/{name.lower()}"
    files = {}
    for file in plugin_files():
        files[f"{package}/{file.relative_to(PLUGIN).as_posix()}"] = adapt(file.read_bytes(), fork, name)
    files[f"{package}/__init__.py"] = b"from .skip_tuning import extend_cfg  # registers the trainer as well\n"
    files |= recipes.recipes(name)
    files |= recipes.scripts(fork, name, options)
    if engine == "ours":
        for file in sorted((HERE / "dassl").rglob("*.py")):
            files[file.relative_to(HERE).as_posix()] = file.read_bytes()
    return files


def plugin_files():
    return imports.reachable(PLUGIN, PLUGIN / "skip_tuning.py")


def adapt(source, fork, name):
    """A file of the plugin: the trainer, and its options, under its name; Dassl and clip by what they are called."""
    source = source.replace(b"class SkipTuning(", f"class {name}(".encode())
    source = source.replace(b"TRAINER.SKIPTUNING", f"TRAINER.{name.upper()}".encode())
    for package, theirs in (("dassl", fork.dassl), ("clip", fork.clip.replace("/", "."))):
        pattern = rf"^(\s*(?:from|import)) {package}\b".encode()
        source = re.sub(pattern, rf"\1 {theirs}".encode(), source, flags=re.M)
    return source


def check_name(fork, name):
    """UserError if `name` is no class name, is registered already, or is that of another module."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or keyword.iskeyword(name.lower()):
        raise UserError(f"--name {name}: a trainer's name is a Python identifier, such as SkipTuning2")
    own = fork.root / fork.trainers / name.lower()
    if (own / "skip_tuning.py").exists():
        return  # an earlier swap_in's, of which `make` speaks
    for file in forks.trainer_files(fork):
        if name in forks.registered(file):
            where = file.relative_to(fork.root)
            raise UserError(f"{where} registers a trainer called {name} already: choose another --name")
    for path in sorted((fork.root / fork.trainers).iterdir()):
        module = path.suffix == ".py" or any(path.glob("*.py"))
        if module and path.name.split(".")[0].lower() == name.lower():
            raise UserError(f"{path} is a module of this name: choose another --name")


# ---- what is tried in the codebase -------------------------------------------------------------------------------


def run_probe(folder, task):
    """What probe.py finds in `folder`. UserError if this Python can't run it."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "found.json"
        command = [sys.executable, "-W", "ignore", probe.__file__, str(result)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = dict(input=json.dumps(task), capture_output=True, text=True)
        try:
            run = subprocess.run(command, cwd=folder, env=environment, timeout=SECONDS, **pipes)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"the codebase's files take more than {SECONDS} seconds to import: see what they do"
            ) from error
        if run.returncode or not result.exists():
            lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
            raise UserError(f"this Python can't run the codebase: {lines[-1]}")
        return json.loads(result.read_text(encoding="utf-8"))


def look(fork):
    """-> what works in the codebase as it is, and which names its files import that our Dassl lacks."""
    reachable = imports.reachable(fork.root, fork.root / fork.train, outside=(fork.dassl.split(".")[0],))
    used = imports.names_of(fork.dassl.split(".")[0], reachable, fork.root)
    needed = imports.names_of("dassl", plugin_files(), PLUGIN)
    names = [[name.module, name.name] for name in used]
    names += [[fork.dassl + name.module.removeprefix("dassl"), name.name] for name in needed]
    modules = [forks.module_of(fork, file) for file in forks.trainer_files(fork)]
    task = {"dassl": fork.dassl, "names": names, "modules": modules, "schedules": True, "file": fork.train}
    where = {(name.module, name.name): name.where for name in used}
    ours = probe.missing([[name.module, name.name] for name in used]) if fork.dassl == "dassl" else []
    return run_probe(fork.root, task), [spell(module, name, where) for module, name in ours]


def spell(module, name, where=()):
    text = f"{module}.{name}" if name else module
    return f"{text} ({where[module, name]})" if (module, name) in where else text


def choose_engine(fork, found, lacking, asked):
    """-> (engine, why, options that every run needs). lacking: names that the codebase imports and ours has not.

    Errors: UserError if neither Dassl, or not the one asked for, has all that the codebase imports.
    """
    theirs = problem_of_theirs(fork, found)
    ours = f"our dassl/ lacks {', '.join(lacking)}" if lacking else ""
    if (fork.root / "dassl").exists() or fork.dassl != "dassl":
        ours = f"the codebase brings its own {fork.dassl}"
    if theirs and (ours or asked == "theirs"):
        raise UserError(f"{theirs}{'; ' + ours if ours else ', or use --engine ours'}")
    if ours and asked == "ours":
        raise UserError(f"{ours}: use --engine theirs")
    if theirs:
        return "ours", f"{theirs}; dassl/ beside {fork.train} comes first", ""
    where = f"with PyTorch {found['torch'].split('+')[0]} and the Dassl in {Path(found['file']).parent}"
    fault = ""
    if found.get("warm-up"):
        fault = f"{where} warm-up schedules crash ({found['warm-up']})"
    elif found.get("checkpoint"):
        fault = f"{where} checkpoints of runs with a warm-up don't load ({found['checkpoint']})"
    if not fault:
        return asked or "theirs", f"{where} all is well", ""
    if asked != "theirs" and not ours:
        return "ours", f"{fault}; dassl/ beside {fork.train} comes first", ""
    reason = ours or "you asked for it"
    return "theirs", f"{reason}, but {fault}: add {NO_WARM_UP} to commands; the scripts do", NO_WARM_UP


def problem_of_theirs(fork, found):
    """Why the codebase's own Dassl can't be used, and what to install; "" if it can."""
    if error := found.get("dassl"):
        if f"No module named '{fork.dassl.split('.')[0]}'" in error:
            folder = forks.sub_folder_dassl(fork)
            hint = (
                f"its Dassl lies in {folder}: pip install -e {folder} makes it importable" if folder else "install it"
            )
        else:
            hint = remedy(fork, error)
        return f"no Dassl can be imported there ({error}): {hint}"
    if found.get("missing"):
        lacks = ", ".join(spell(module, name) for module, name in found["missing"])
        return f"the Dassl in {Path(found['file']).parent} lacks {lacks}: install the one this codebase was written for"
    return ""


def missing_module(error):
    match = re.search(r"No module named '(\w+)", error)
    return match[1] if match else None


def remedy(fork, error):
    module = missing_module(error)
    if not module:
        return "repair it"
    if (fork.root / module).exists():
        return "a file of the codebase's own is missing"
    return f"pip install {INSTALLS.get(module, module)}"


def rehearse(plan, before):
    """Import the edited train.py and all trainers where the plan is carried out: a folder of links to the codebase.

    before: what `look` found. -> one line for each trainer of the codebase. UserError if train.py can't be imported.
    """
    fork = plan.fork
    train = fork.train.removesuffix(".py").replace("/", ".")
    package = package_of(fork, plan.name)
    modules = [train, package, *before["modules"]]
    with tempfile.TemporaryDirectory() as folder:
        link(fork.root.resolve(), Path(folder), "", plan.changes)
        clip = fork.clip.replace("/", ".")
        names = [[f"{clip}.clip", name] for name in ("tokenize", "_download", "_MODELS", "build_model")]
        task = {"dassl": fork.dassl, "names": names, "modules": modules, "schedules": False, "file": fork.train}
        found = run_probe(folder, task)
    if error := found["modules"][train]:
        raise UserError(
            f"{fork.train} could not be imported afterwards ({error}): {remedy(fork, error)}; nothing was changed"
        )
    if error := found["modules"][package]:
        raise UserError(
            f"the trainer could not be imported there ({error}): {remedy(fork, error)}; nothing was changed"
        )
    if found.get("missing"):
        lacks = ", ".join(spell(module, name) for module, name in found["missing"])
        raise UserError(f"this codebase's clip lacks {lacks}, which the trainer needs; nothing was changed")
    lines = []
    for module, error in before["modules"].items():
        after = found["modules"][module]
        if not after:
            lines.append(f"{module} still imports" if not error else f"{module} imports, which it did not before")
        else:
            lines.append(f"{module} does not import{', nor did it before' if error else ' any more'} ({after})")
    return lines


def link(source, target, inner, changes):
    """Fill the folder `target` with links to what is in `source`, and with the plan's files."""
    below = {path.removeprefix(inner): pair for path, pair in changes.items() if path.startswith(inner)}
    folders = {path.split("/")[0] for path in below if "/" in path}
    if source.is_dir():
        for entry in source.iterdir():
            if entry.name not in folders and entry.name not in below:
                (target / entry.name).symlink_to(entry)
    for name in folders:
        (target / name).mkdir()
        link(source / name, target / name, f"{inner}{name}/", changes)
    for path, (_, after) in below.items():
        if "/" not in path:
            (target / path).write_bytes(after)


def warnings(found):
    """What else would break."""
    lines = []
    if tuple(map(int, found["torch"].split("+")[0].split(".")[:2])) < (2, 4):
        lines.append(f"PyTorch {found['torch']} is older than the 2.4 that the trainer needs")
    if tuple(found["python"]) < (3, 10):
        lines.append("Python is older than the 3.10 that the trainer needs")
    return lines


# ---- a codebase whose manifest is gone -----------------------------------------------------------------------------


def recover(fork, name):
    """A manifest for what an earlier swap_in left, recognised by its content; None if nothing is."""
    root = fork.root
    train = (root / fork.train).read_bytes()
    original = remove_edit(train, name, package_of(fork, name), fork.train)
    added = {}
    for options in ("", NO_WARM_UP):
        for path, content in additions(fork, name, "ours", options).items():
            if (root / path).is_file() and (root / path).read_bytes() == content:
                added[path] = undo.digest(content)
    edited = {}
    if original is not None and original != train:
        text = original.decode("utf-8", "surrogateescape")
        edited[fork.train] = {"original": text, "sha256": undo.digest(train)}
    if not added and not edited:
        return None
    own = (f"{fork.trainers}/{name.lower()}/", f"configs/trainers/{name}/", "scripts/skip/", "dassl/")
    folders = {parent.as_posix() for path in added for parent in Path(path).parents} - {"."}
    for folder in list(folders):
        files = [path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if not path.is_dir()]
        if not f"{folder}/".startswith(own) and not set(files) <= set(added):
            folders.remove(folder)  # the codebase's own
    return {
        **{"name": name, "engine": "ours", "train": fork.train, "trainers": fork.trainers},
        **{"added": added, "edited": edited, "folders": sorted(folders, reverse=True)},
    }


def names_there(fork):
    """Names of trainers that an earlier swap_in may have left, by train.py and by folders."""
    text = (fork.root / fork.train).read_text("utf-8", "replace")
    names = re.findall(r'if \w+\.trainer == "(\w+)":  # added by swap_in', text)
    for folder in sorted((fork.root / "configs/trainers").glob("*/vit_b16.yaml")):
        if (fork.root / fork.trainers / folder.parent.name.lower() / "skip_tuning.py").exists():
            names.append(folder.parent.name)
    return list(dict.fromkeys(names))
