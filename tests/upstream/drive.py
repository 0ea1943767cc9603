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
from swap import undo
from tests.swap.skeletons import make_world, our_weights, write_python

# Upstream's Dassl augments with the global generator, and its schedules crash on current PyTorch: neither is compared.
OPTIONS = """INPUT.SIZE (32,32) INPUT.TRANSFORMS ["normalize"] OPTIM.MAX_EPOCH 2 OPTIM.LR 0.01 OPTIM.WARMUP_EPOCH -1
DATALOADER.NUM_WORKERS 0 TRAIN.PRINT_FREQ 1 TRAINER.{node}.OMEGA 1"""
SCRIPTS = {
    "base2new_train": "eurosat 1",
    "base2new_test": "eurosat 1",
    "few_shot": "eurosat 1 4",
    "xd_train": "1",
    "xd_test": "eurosat 1",
}
NAMES = {  # of files and folders, where they are others
    "Koorye+SkipTuning": ["--name", "SkipTuning2"],
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


def make_weights():
    """A small ViT with every parameter random."""
    torch.manual_seed(0)
    vision = dict(image_resolution=32, vision_layers=3, vision_width=128, vision_patch_size=16)
    text = dict(context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3)
    model = CLIP(embed_dim=32, **vision, **text)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def run_script(root, world, script, python, *options, node="SKIPTUNING", **variables):
    """-> (losses, accuracies) that a script prints, or writes to a log. UserError with its last line if it fails."""
    for cache in [*world.glob("data/*/split_fewshot"), *world.glob("data/*/*.pkl")]:  # what another codebase drew
        shutil.rmtree(cache) if cache.is_dir() else cache.unlink()
    environment = {**os.environ, "PYTHON": str(python), "DATA": str(world / "data"), "SHOTS": "4", **variables}
    command = ["bash", f"scripts/skip/{script}.sh", *SCRIPTS[script].split(), *options]
    command += OPTIONS.format(node=node).split()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    text = done.stdout
    if "* accuracy" not in text:  # DePT's logger does not print
        logs = sorted(root.glob("out*/**/log*.txt"), key=os.path.getmtime)
        text = logs[-1].read_text() if logs else ""
    losses = re.findall(r" loss ([\d.]+)", text)
    accuracy = re.findall(r"^\* accuracy: (\S+?)%", text, re.M)
    if done.returncode or not accuracy:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or ["nothing printed"]
        raise UserError(f"{script}: {lines[-1].strip()[:200]}")
    return list(map(float, losses)), [f"{float(accuracy[-1]):.1f}"]  # HiCroPL's Dassl tests in every epoch


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
        weights = world / "ViT-B-16.pt"
        python = write_python(scratch / "theirs", weights, flags.get("clip", "clip"), args.python)
        node = flags.pop("name", "SkipTuning").upper()
        fork = forks.find(copy, **flags)
        scripts, largest, accuracies = list(SCRIPTS)[: 5 if five else 2], 0.0, []
        for script in scripts:
            losses, accuracy = run_script(fork.root, world, script, python, node=node)
            if script not in ours:
                output = str(world / "ours")
                ours[script] = run_script(forks.HERE, world, script, args.python, *our_weights(weights), OUTPUT=output)
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
        row["undone"] = take_out(copy, names, before, args)
    shutil.rmtree(copy)
    return row


def take_out(copy, names, before, args):
    """ "yes" if --undo restores every file, but for what the codebase's own runs wrote."""
    manifest = next(copy.rglob(undo.MANIFEST))
    own = json.loads(manifest.read_text())
    root = manifest.parent.relative_to(copy)
    ours = {root / path for path in (*own["added"], *own["edited"])}
    ran = {path: value for path, value in hashes(copy).items() if path not in ours}
    try:
        out = swap_in(args.python, copy, *names, "--undo")
    except UserError as error:
        return str(error)
    ran.pop(root / undo.MANIFEST)
    expected = ran | {path: before[path] for path in ours if path in before}
    after = hashes(copy)
    wrong = [str(path) for path in expected.keys() | after.keys() if expected.get(path) != after.get(path)]
    if "Undone: everything" not in out or wrong:
        return f"no: {', '.join(sorted(wrong)[:3])}"
    return "yes"


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


def write(rows):
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
    os.environ["WANDB_MODE"] = "disabled"  # the codebases' own logging stays at home
    file = args.folder / ("rows_theirs.jsonl" if args.dassl else "rows.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done, ours = {row["codebase"] for row in rows}, {}
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch) / "world"
        world.mkdir()
        make_world(world, make_weights())
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
        write(rows)


if __name__ == "__main__":
    main()
