"""A codebase of the CoOp family: where it is, what its folders are called, where it departs from CoOp's customs."""

import ast
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dassl.utils import UserError

from . import imports

HERE = Path(__file__).resolve().parents[1]
COOP = "output/base2new/{part}/{dataset}/shots_{shots}/{trainer}/{cfg}/seed{seed}"
DEPT = "outputs/base2new/{part}/{trainer}/{dataset}/shots{shots}/{cfg}/seed{seed}"
VAL_IS_TEST = "validation images are the test images here: leave TEST.FINAL_MODEL at last_step"


class Kind(NamedTuple):
    """One published codebase: the module in trainers/ that no earlier row has, and its customs."""

    name: str
    marker: str  # in trainers/, without .py
    layout: str = COOP  # output folder of a base-to-new run
    flags: str = ""  # that every call of train.py needs
    note: str = ""  # what its users should know


KINDS = (  # a codebase that was made from another one has that one's modules too, so it stands first
    Kind("SkipTuning's release", "_base_", DEPT, note="it deletes an output folder whose log has no accuracy line"),
    Kind("DePT", "elp_coop", DEPT),
    Kind("ATPrompt", "coop_atp", note="its own Dassl ends the process after training, without an exit code"),
    Kind("DPC", "sple_coop", COOP.replace("seed{", "seed_{"), note=VAL_IS_TEST),
    Kind("PromptKD", "promptkd", COOP.replace("seed{", "seed_{"), note=VAL_IS_TEST),
    Kind("CoPrompt", "coprompt", COOP.replace("base2new", "skip")),
    Kind("CLAP", "adapters", flags="--backbone ViT-B/16"),  # its train.py would choose RN50
    Kind("MMRL", "mmrl"),
    Kind("MMA", "mmadapter", COOP.replace("{cfg}/", "")),
    Kind("ProMetaR", "prometar"),
    Kind("PLOT++", "plotpp"),
    Kind("PLOT", "plot"),
    Kind("TCP", "tcp"),
    Kind("KgCoOp", "kgcoop"),
    Kind("ProGrad", "prograd"),
    Kind("PromptSRC", "promptsrc"),
    Kind("MaPLe", "maple"),
    Kind("CoOp", "coop"),
)
FLAGS = ("root", "seed", "trainer", "dataset-config-file", "config-file", "output-dir", "eval-only", "model-dir")
SYNONYMS = {"root": ("dataset-root",), "dataset-config-file": ("dataset-config",), "config-file": ("trainer-config",)}
UNKNOWN = Kind("an unknown codebase of the CoOp family", "")


class Fork(NamedTuple):
    """A codebase as it is found; its files are named relative to `root`."""

    root: Path
    kind: Kind
    train: str = "train.py"
    trainers: str = "trainers"
    clip: str = "clip"

    @property
    def dassl(self):
        """The package whose engine builds the trainers: dassl, but for a few codebases."""
        for module, names, _ in imports.imported(self.root / self.train, self.root):
            if "build_trainer" in names and module.endswith(".engine"):
                return module.removesuffix(".engine")
        return "dassl"

    @property
    def text(self):
        """Of train.py, to look for words in it."""
        return (self.root / self.train).read_text("utf-8", "replace")

    def flag(self, name):
        """A flag of CoOp's train.py as this one spells it; None if it has none that is like it."""
        flags = re.findall(r"""["'](--[\w-]+)["']""", self.text)
        for wanted in (name, *SYNONYMS.get(name, ())):
            for flag in flags:
                if flag.replace("_", "-") == f"--{wanted}":
                    return flag
        return None

    @property
    def load_epoch(self):
        """The default of train.py's --load-epoch, as written there; "None" if it has none."""
        pattern = r"""["']--load[-_]epoch["'][^)]*?\bdefault\s*=\s*(-?\w+)"""
        match = re.search(pattern, self.text)
        return match[1] if match else "None"

    @property
    def splits_classes(self):
        """Whether it has CoOp's option that splits a dataset's classes into base and new."""
        return "SUBSAMPLE_CLASSES" in self.text

    def describe(self):
        """Told by one file, this can't tell a codebase from one that was made from it."""
        if self.kind is UNKNOWN:
            return f"{self.root} is {UNKNOWN.name}"
        return f"{self.root} is {self.kind.name} or derived from it: it has {self.trainers}/{self.kind.marker}"


def find(path, train="train.py", trainers="trainers", clip="clip"):
    """The codebase at or below `path` (two levels). UserError if there is none, or more than one."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"No folder {path}: give the folder of a codebase of the CoOp family")
    train, trainers, clip = map(inner, ("--train", "--trainers", "--clip"), (train, trainers, clip))
    needed = (train, trainers, "datasets", clip)
    for pattern in ("", "*/", "*/*/"):
        roots = sorted(p.parents[len(Path(train).parts) - 1] for p in path.glob(f"{pattern}{train}"))
        roots = [root for root in roots if all((root / name).exists() for name in needed)]
        if len(roots) > 1:
            raise UserError(f"{path} holds several codebases: give one of {', '.join(map(str, roots))}")
        if roots and roots[0].resolve() == HERE:
            raise UserError(f"{path} is this project, which has the trainer: give another codebase's folder")
        if roots:
            return Fork(roots[0], recognise(roots[0] / trainers), train, trainers, clip)
    raise UserError(
        f"{path} is no codebase of the CoOp family: nowhere in it are {', '.join(needed)} side by side; "
        "--train, --trainers and --clip say how they are called"
    )


def inner(flag, name):
    """A path in the codebase without what changes nothing, such as ./ before it. UserError if it leads elsewhere."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UserError(f"{flag} {name}: name it as seen from the codebase's folder, without ..")
    return path.as_posix()


def recognise(trainers):
    for kind in KINDS:
        if any((trainers / f"{kind.marker}{suffix}").exists() for suffix in (".py", "/__init__.py")):
            return kind
    return UNKNOWN


def check_clean(root):
    """UserError if git knows of changes to the codebase's files, or refuses to say."""
    command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "."]
    try:
        status = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git: nothing to ask
        return
    if status.returncode and "not a git repository" not in status.stderr:
        reason = status.stderr.strip().split("\n")[0]
        raise UserError(f"git does not say whether {root} has changes that are not committed ({reason}): repair that")
    if status.returncode == 0 and status.stdout:
        changed = [line[3:] for line in status.stdout.splitlines()]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"{root} has changes that are not committed ({', '.join(changed[:3])}{more}): commit first")


def trainer_files(fork):
    """The codebase's own files that register a trainer."""
    for file in sorted((fork.root / fork.trainers).rglob("*.py")):
        if file.is_file() and b"TRAINER_REGISTRY" in file.read_bytes():
            yield file


def module_of(fork, file):
    parts = file.relative_to(fork.root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def registered(file):
    """The names of the trainers that a file registers."""
    return [
        node.name
        for node in ast.walk(imports.parse(file))
        if isinstance(node, ast.ClassDef) and any("register" in ast.unparse(line) for line in node.decorator_list)
    ]


def dataset_file(root, name):
    """The configuration file of a dataset, relative to `root`; None if there is none of this name."""
    found = [
        path for path in (root / "configs").rglob(f"*{name}.yaml") if path.parts[len(root.parts) + 1] != "trainers"
    ]
    found.sort(key=lambda path: (path.name != f"{name}.yaml", path.parent != root / "configs/datasets", path))
    return found[0].relative_to(root).as_posix() if found else None


def notes(fork, engine_file):
    """What its users should know; engine_file: the `__init__.py` of the Dassl that is used, if it is theirs."""
    lines = [fork.kind.note] if fork.kind.note else []
    if fork.load_epoch != "None":
        lines.append(
            f"{fork.train} tests epoch {fork.load_epoch} unless --load-epoch says another; the scripts ask for the last"
        )
    used = fork.text
    lacking = [f"--{flag}" for flag in FLAGS if not fork.flag(flag) and f".{flag.replace('-', '_')}" not in used]
    if lacking:
        lines.append(f"{fork.train} has no {', '.join(lacking)}: take them out of the command and the scripts")
    if not fork.splits_classes:
        lines.append(f"{fork.train} has no DATASET.SUBSAMPLE_CLASSES: base-to-new runs use all classes")
    if fork.dassl != "dassl":
        lines.append(f"its Dassl is the package {fork.dassl}: the trainer's files import that")
    for file in sorted(Path(engine_file).parent.rglob("evaluation/*.py")) if engine_file else ():
        own = re.search(r"TRAINER\.([A-Z]\w+)\.", file.read_text("utf-8", "replace"))
        if own:
            lines.append(f"its evaluator reads the options of a trainer of its own, TRAINER.{own[1]} ({file})")
    return lines


def sub_folder_dassl(fork):
    """A Dassl that lies in the codebase, or beside it, but not where Python finds it."""
    for folder in (fork.root, fork.root.parent):
        for file in sorted(folder.glob("*/dassl/__init__.py")):
            return file.parents[1]
    return None
