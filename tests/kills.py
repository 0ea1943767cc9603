"""Kills runs of train.py and looks whether the same command then ends in the same bytes: python -m tests.kills

Two kinds of kills, both by SIGKILL. Before each single file operation (a file opened to be written, renamed or removed,
a folder made) of runs that are forked from this process; and at random moments of processes of their own, some of them
with workers. Without --trials that is every operation of every run, and 20 random moments. Then three runs at once in
one folder.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import train
from clip import clip
from clip.model import CLIP
from tests.sizes import TINY

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "peak_memory_mb", "peak_rss_mb", "workers")  # what two runs of one command may differ in
WATCHED = {"open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SETTINGS = {
    "DATASET.NAME": "Custom",
    "DATALOADER.TRAIN_X.BATCH_SIZE": "4",
    "INPUT.TRANSFORMS": "['random_resized_crop', 'normalize']",
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": "0.01",
    "OPTIM.MAX_EPOCH": "2",
    "TRAIN.PRINT_FREQ": "1",
    "TRAIN.CHECKPOINT_FREQ": "1",
}
RUNS = {  # name: trainer and what it runs with
    "every epoch kept": ("SkipTuning", {"TRAINER.SKIPTUNING.OMEGA": "1"}),
    "best epoch kept": ("CoOp", {"TEST.FINAL_MODEL": "best_val"}),
    "one epoch": ("TipAdapterF", {"OPTIM.MAX_EPOCH": "1", "TRAIN.CHECKPOINT_FREQ": "0"}),
    "test only": ("ZeroshotCLIP", {}),
}


def prepare(folder):
    """Write the images and the CLIP that all runs read."""
    noise = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        colour = noise.uniform(0, 255, 3)
        for i in range(5):
            path = folder / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(noise.normal(colour, 60, (40, 40, 3)), 0, 255).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    clip.save(CLIP(**TINY), folder / "tiny.safetensors")


def command(folder, work, run, workers=0):
    """The arguments of train.py for one of RUNS, which writes to the folder `work` only."""
    trainer, settings = RUNS[run]
    given = {"DATASET.IMAGES": str(folder / "images"), "MODEL.BACKBONE.NAME": str(folder / "tiny.safetensors")}
    pairs = SETTINGS | given | {"DATALOADER.NUM_WORKERS": str(workers)} | settings
    flags = ["--trainer", trainer, "--output-dir", str(work / "run"), "--root", str(work), "--device", "cpu"]
    return [*flags, *(word for pair in pairs.items() for word in pair)]


def left(work):
    """{name: bytes} of all that a run has left in `work`, without times, logs and curves."""
    files = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if path.is_file() and "tensorboard" not in path.parts and not path.name.startswith("log.txt"):
            files[name] = path.read_bytes()
            if path.name == "result.json":
                found = json.loads(files[name])
                files[name] = json.dumps({key: found[key] for key in found if key not in TIMES}).encode()
    return files


def differences(whole, found):
    """The names whose bytes are not those of the run that nobody killed."""
    return sorted(name for name in whole | found if whole.get(name) != found.get(name))


# ---- before each file operation ----------------------------------------------------------------------------


def fork(argv, work, kill_before=None):
    """Start train.main in a child; -> its process number, and the pipe by which it tells its operations in `work`.

    kill_before: the number of the operation that is not done any more.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    done = _watch(work, kill_before)
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        code = train.main(argv)
    os.write(writing, json.dumps(done).encode())
    os._exit(code)


def ended(child, reading):
    """How a child ended, as a signal or an exit code, and its operations (None if it was killed)."""
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(told) if told else None


def forked(argv, work, kill_before=None):
    """Both in turn."""
    return ended(*fork(argv, work, kill_before))


def _watch(work, kill_before):
    """A list that gets every operation on files in `work` from now on, by Python's audit events."""
    top, done = str(work), []

    def watch(event, arguments):
        if event not in WATCHED or (event == "open" and not (arguments[2] or 0) & WRITING):
            return
        path = arguments[WATCHED[event]]
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(top):
            return
        if event != "open" or not os.path.isdir(path):  # else a file without a name, which no other run can see
            if len(done) == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(f"{event} {os.path.relpath(os.fsdecode(path), top)}")

    sys.addaudithook(watch)
    return done


def undisturbed(folder):
    """{run: (what it leaves, its operations, its seconds)} of RUNS that nobody kills."""
    found = {}
    for run in RUNS:
        work, begun = folder / run, time.monotonic()  # as deep as the folders of killed runs: the same operations
        code, operations = forked(command(folder, work, run), work)
        if code:
            raise SystemExit(f"train.py ends with {code} before anything is killed: {run}")
        found[run] = left(work), operations, time.monotonic() - begun
    return found


def before_operations(folder, whole, trials):
    """Kill before `trials` operations of all runs together (None: before each); yields (what was done, names).

    names: what has other bytes afterwards.
    """
    places = [(run, number, what) for run in RUNS for number, what in enumerate(whole[run][1])]
    chosen = range(len(places)) if trials is None else np.linspace(0, len(places) - 1, trials).round().astype(int)
    for run, number, what in (places[i] for i in chosen):
        work = folder / "killed"
        code, _ = forked(command(folder, work, run), work, kill_before=number)
        told = f"{run}: killed before operation {number}, {what}"
        if code != -signal.SIGKILL:
            yield f"{told}: it was not, but ended with {code}", ["-"]
        else:
            code, _ = forked(command(folder, work, run), work)
            yield told, differences(whole[run][0], left(work)) if not code else [f"then exit code {code}"]
        shutil.rmtree(work, ignore_errors=True)  # a kill before the first operation leaves none


def at_once(folder, whole):
    """The same command, and one with another option, while a run is at work; yields as before_operations."""
    run, work = "every epoch kept", folder / "at once"
    argv = command(folder, work, run)
    children = [fork(argv, work)]
    while not (work / "run/.lock").exists():
        time.sleep(0.005)
    children += [fork(words, work) for words in (argv, [*argv, "OPTIM.LR", "0.5"])]
    codes = [ended(*child)[0] for child in children]
    wrong = differences(whole[run][0], left(work)) if codes == [0, 0, 1] else ["-"]
    yield f"one command twice and another at once: exit codes {codes}", wrong


# ---- at random moments ---------------------------------------------------------------------------------------


def started(argv):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CLIP_CACHE": os.devnull}
    words = [sys.executable, str(ROOT / "train.py"), *argv]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path, process):
    """Until there is `path`, or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


def at_random(folder, whole, trials, draw):
    """Kill `trials` processes between their first file and their end, each up to three times; as before_operations."""
    run = "every epoch kept"
    files, _, seconds = whole[run]
    for trial in range(trials):
        work = folder / f"random{trial}"
        argv, moments = command(folder, work, run, workers=trial % 2), []
        for _ in range(1 + trial % 3):
            process = started(argv)
            wait_for(work / "run", process)
            moments.append(draw.uniform(0, seconds))
            time.sleep(moments[-1])
            process.kill()
            process.wait()
        code = started(argv).wait()
        told = f"killed {', '.join(f'{moment:.2f} s' for moment in moments)} after its first file"
        yield told, differences(files, left(work)) if not code else [f"then exit code {code}"]
        shutil.rmtree(work)


# ---- the command ---------------------------------------------------------------------------------------------


def main(argv=None):
    """Exit code: 1 if some run ended in other bytes than the one that nobody killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, metavar="N", help="N operations and N / 6 moments instead of all and 20")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a fork has one thread
    number = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        prepare(folder)
        whole = undisturbed(folder)
        moments = 20 if args.trials is None else -(-args.trials // 6)
        draw = random.Random(args.seed)
        trials = (before_operations(folder, whole, args.trials), at_random(folder, whole, moments, draw))
        for kind in (*trials, at_once(folder, whole)):
            for told, names in kind:
                number += 1
                wrong += bool(names)
                print(f"{told}: {'other bytes: ' + ', '.join(names) if names else 'the same bytes'}", flush=True)
    print(f"{number} trials, {number - wrong} with the same bytes at the end")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
