"""swap_in.py on real codebases of the family, each in a copy: put in, trained, tested, taken out.

    python -m tests.upstream.drive FOLDER [--dassl /path/to/Dassl.pytorch] [--five 5] [--write]

Every folder in FOLDER is a clone. Weights are a small random ViT in place of the download, images are coloured noise in
the layouts of EuroSAT and ImageNet; everything runs on the CPU. With --dassl, that Dassl is used (--engine theirs).
One JSON line a codebase goes to the standard output and to FOLDER/rows.jsonl, which remembers what is done already;
--write makes docs/results/forks.json of it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from clip.model import CLIP
from dassl.utils import UserError, write_atomic
from results.figures import figure_text
from swap import fork as forks
from tests.swap.skeletons import make_images

RUN = """
import importlib, runpy, sys
weights, clip, *sys.argv = sys.argv[1:]
sys.path[0] = ""
importlib.import_module(clip + ".clip")._download = lambda *args, **options: weights
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Upstream's Dassl augments with the global generator, and its schedules crash on current PyTorch: neither is compared.
OPTIONS = """INPUT.SIZE (32,32) INPUT.TRANSFORMS ["normalize"] OPTIM.MAX_EPOCH 2 OPTIM.LR 0.01 OPTIM.WARMUP_EPOCH -1
DATALOADER.NUM_WORKERS 0 TRAIN.PRINT_FREQ 1 TRAINER.SKIPTUNING.OMEGA 1"""
SCRIPTS = {
    "base2new_train": "eurosat 1",
    "base2new_test": "eurosat 1",
    "few_shot": "eurosat 1 2",
    "xd_train": "1",
    "xd_test": "eurosat 1",
}
NAMES = {  # of files and folders, where they are others
    "CEWu+PTNL": ["--train", "upl_train.py"],
    "tonyhuang2022+UPL": ["--train", "upl_train.py"],
    "Syuling+AttriPrompt": ["--clip", "clip1"],
    "llllx505+MAP": ["--train", "train_b2n.py"],
}
COLUMNS = [
    ["codebase", "codebase", "text"],
    ["commit", "commit", "text"],
    ["engine", "engine", "text"],
    ["scripts", "scripts", "text"],
    ["losses", "losses", "text"],
    ["accuracy", "accuracy", "text"],
    ["undone", "undone", "text"],
    ["note", "replaced, or why not", "text"],
]


def make_world(folder):
    """Weights, EuroSAT and ImageNet in small."""
    images = make_images(folder / "images")
    split = json.loads((images / "split.json").read_text())
    for part, place in (("train", "train"), ("test", "val")):
        for name, label, _ in split[part]:
            target = folder / f"data/imagenet/images/{place}/n0000000{label}/{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(images / name, target)
    names = "".join(f"n0000000{label} colour {label}\n" for label in range(5))
    (folder / "data/imagenet/classnames.txt").write_text(names)
    (folder / "data/eurosat").mkdir()
    images.rename(folder / "data/eurosat/2750")
    split = {"train": split["train"], "val": split["test"], "test": split["test"]}
    (folder / "data/eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(split))
    torch.manual_seed(0)
    sizes = dict(embed_dim=32, image_resolution=32, vision_layers=3, vision_width=128, vision_patch_size=16)
    model = CLIP(
        context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3, **sizes
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(model.half().state_dict(), folder / "ViT-B-16.pt")


def run_script(root, world, script, python, *options, **variables):
    """-> (losses, accuracies) that a script prints. UserError with its last line if it fails."""
    environment = {**os.environ, "PYTHON": str(python), "DATA": str(world / "data"), "SHOTS": "2", **variables}
    command = ["bash", f"scripts/skip/{script}.sh", *SCRIPTS[script].split(), *OPTIONS.split(), *options]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    losses = re.findall(r" loss ([\d.]+)", done.stdout)
    accuracy = re.findall(r"^\* accuracy: (\S+?)%", done.stdout, re.M)
    if done.returncode or not accuracy:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing printed"]
        raise UserError(f"{script}: {lines[-1].strip()[:200]}")
    return list(map(float, losses)), [f"{float(value):.1f}" for value in accuracy]


def hashes(folder):
    """What is in every file, and where every link leads; byte code of the codebase's own files left out."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[path.relative_to(folder)] = os.readlink(path)
        elif path.is_file() and "__pycache__" not in path.parts:
            found[path.relative_to(folder)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def swap_in(python, *words):
    command = [python, "-W", "ignore", str(forks.HERE / "swap_in.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("Error: ")[:300])
    return done.stdout


def drive(name, root, scratch, world, ours, args, five):
    """One codebase -> its row. ours: {script: what it prints here}, filled as needed."""
    row = {"codebase": name.replace("+", "/"), "commit": "", "engine": "", "scripts": "", "losses": "", "accuracy": ""}
    row |= {"undone": "", "note": ""}
    git = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    row["commit"] = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    copy = scratch / "fork"
    shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    before = hashes(copy)
    names = NAMES.get(name.split(" ")[0], [])
    flags = dict(zip([word.lstrip("-") for word in names[::2]], names[1::2], strict=True))
    try:
        out = swap_in(args.python, copy, *names, *(["--engine", "theirs"] if args.dassl else []))
        row["engine"] = re.search(r"^Engine: (\w+)", out, re.M)[1]
        python = scratch / "python"
        words = [args.python, "-W", "ignore", "-c", RUN, str(world / "ViT-B-16.pt"), flags.get("clip", "clip")]
        python.write_text("#!/bin/sh\nexec " + " ".join(map(quoted, words)) + ' "$@"\n')
        python.chmod(0o755)
        fork = forks.find(copy, **flags)
        scripts, largest, accuracies = list(SCRIPTS)[: 5 if five else 2], 0.0, []
        for script in scripts:
            losses, accuracy = run_script(fork.root, world, script, python)
            if script not in ours:
                more = ["MODEL.BACKBONE.NAME", str(world / "ViT-B-16.pt")]
                ours[script] = run_script(forks.HERE, world, script, args.python, *more, OUTPUT=str(world / "ours"))
            if len(losses) != len(ours[script][0]):
                raise UserError(f"{script}: {len(losses)} losses, {len(ours[script][0])} here")
            largest = max([largest, *(abs(a - b) for a, b in zip(losses, ours[script][0], strict=True))])
            if accuracy != ours[script][1]:
                raise UserError(f"{script}: accuracy {accuracy}, {ours[script][1]} here")
            accuracies += accuracy
            row |= {"losses": f"{largest:.4f}", "accuracy": " / ".join(accuracies)}
            row["scripts"] = str(scripts.index(script) + 1)
        row["note"] = "`clip._download`"
    except (UserError, subprocess.TimeoutExpired) as error:
        row["note"] = " ".join(str(error).replace(str(copy), ".").replace("|", "/").split())
    if row["engine"]:
        try:
            row["undone"] = "yes" if "everything is as before" in swap_in(args.python, copy, *names, "--undo") else "no"
        except UserError as error:
            row["undone"] = str(error)
        after = {path: value for path, value in hashes(copy).items() if path in before or "skip" in str(path).lower()}
        changed = [str(path) for path, value in before.items() if after.get(path) != value]
        left = [str(path) for path in after if path not in before and "output" not in path.parts[:-1] and made(path)]
        if changed or left:
            row["undone"] = f"no: {', '.join([*changed, *left][:3])}"
    shutil.rmtree(copy)
    return row


def made(path):
    """Whether a path is one that swap_in makes, and not an output of the runs."""
    return not {"output", "outputs"} & set(path.parts)


def quoted(word):
    return "'" + word.replace("'", "'\\''") + "'"


def roots(folder):
    """[(name, codebase)] of all clones."""
    for clone in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            forks.find(clone)
            yield clone.name, clone
        except UserError as error:
            if "several codebases" not in str(error):
                yield clone.name, clone
                continue
            for train in sorted([*clone.glob("*/train.py"), *clone.glob("*/*/train.py")]):
                if (train.parent / "trainers").is_dir():
                    yield f"{clone.name} {train.parent.name}", train.parent


def write(rows, args):
    """docs/results/forks.json, of which docs/SWAP_IN.md has its table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=forks.HERE, capture_output=True, text=True)
    table = {"title": "", "columns": COLUMNS, "rows": rows}
    figure = {
        "command": ["make forks FORKS=folder"],
        "machine": f"CPU; PyTorch {torch.__version__.split('+')[0]}, Python {sys.version.split()[0]}",
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "made_by": "forks",
        "style": "markdown",
        "notes": [],
        "tables": [table],
    }
    write_atomic(forks.HERE / "docs/results/forks.json", figure_text(figure).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of clones")
    parser.add_argument("--dassl", help="a clone of Dassl, to be used instead of ours")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the codebases")
    parser.add_argument("--five", type=int, default=5, help="in how many codebases all five scripts are run")
    parser.add_argument("--only", help="a part of the names of the codebases to run")
    parser.add_argument("--write", action="store_true", help="write docs/results/forks.json of all rows so far")
    args = parser.parse_args()
    if args.dassl:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [args.dassl, os.environ.get("PYTHONPATH")]))
    file = args.folder / ("rows_theirs.jsonl" if args.dassl else "rows.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done, ours = {row["codebase"] for row in rows}, {}
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch) / "world"
        world.mkdir()
        make_world(world)
        for name, root in roots(args.folder):
            if name.replace("+", "/") in done or (args.only or "") not in name or "Dassl.pytorch" in name:
                continue
            five = sum(row["scripts"] == "5" for row in rows) < args.five
            row = drive(name, root, Path(scratch), world, ours, args, five)
            rows.append(row)
            print(json.dumps(row), flush=True)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
    if args.write:
        write(rows, args)


if __name__ == "__main__":
    main()
