"""A small world of healthy files, and the judge of how a command ends that was given a bad one."""

import contextlib
import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from clip import clip
from dassl.utils import write_json
from datasets.splits import Item
from tests import kills
from tests.datasets.conftest import world  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
# The next step, in the imperative.
ADVICE = re.compile(
    r"\b(add|can|check|choose|convert|copy|correct|delete|download|free|get|give|install|leave|look|make|move|must|name"
    r"|needs?|put|raise|remove|rename|repeat|replace|run|save|says?|see|set|take|there are|train|turn|unpack|use|write"
    r"|do you mean|did you mean)\b",
    re.I,
)
CLASSES = ("ant", "bee", "cat", "dog")


def image(path, noise=np.random.default_rng(0)):  # noqa: B008 (every image is another one)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="session")
def healthy(tmp_path_factory):
    """The folder with images, weights, a finished run, an unfinished one, and files of every format that is read."""
    top = tmp_path_factory.mktemp("healthy")
    for name in CLASSES:
        for i in range(4):
            image(top / "pics" / name / f"{i}.png")
            image(top / "data/eurosat/2750" / name / f"{i}.png")
    split = {"train": (0, 1), "val": (2,), "test": (3,)}
    rows = {part: [Item(f"{c}/{i}.png", n, c) for n, c in enumerate(CLASSES) for i in split[part]] for part in split}
    write_json(rows, top / "data/eurosat/split_zhou_EuroSAT.json")
    torch.manual_seed(0)
    clip.save(kills.CLIP(**kills.TINY), top / "tiny.safetensors")
    (top / "names.yaml").write_text("".join(f"{name}: the {name}\n" for name in CLASSES))
    (top / "names.txt").write_text("\n".join(CLASSES))
    (top / "names.csv").write_text("id,class\n" + "".join(f"{i},{name}\n" for i, name in enumerate(CLASSES)))
    rows = [f"pics/{name}/{i}.png,{name}" for name in CLASSES for i in range(4)]
    (top / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (top / "recipe.yaml").write_text("OPTIM:\n  MAX_EPOCH: 2\n")
    (top / "dataset.yaml").write_text("DATASET:\n  NAME: Custom\n")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        assert train.main(start(top, "--output-dir", top / "run")) == 0
        assert train.main(start(top, "--output-dir", top / "lora", trainer="CLIPLoRA")) == 0
        patch.setattr(train, "write_result", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train.main(start(top, "--output-dir", top / "unfinished")) == 130
    return top


def start(top, *flags, trainer="CoOp"):
    """The arguments that train on the images, as texts, with more flags; KEY VALUE pairs may follow."""
    settings = {
        "DATASET.NAME": "Custom",
        "DATASET.IMAGES": top / "pics",
        "MODEL.BACKBONE.NAME": top / "tiny.safetensors",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "INPUT.TRANSFORMS": "['normalize']",
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.01,
        "OPTIM.MAX_EPOCH": 1,
    }
    pairs = [str(word) for pair in settings.items() for word in pair]
    return [*map(str, flags), "--trainer", trainer, "--root", str(top / "kept"), "--device", "cpu", *pairs]


@pytest.fixture
def place(healthy, tmp_path):
    """place(name, ...): the test's own folder with copies of these healthy files and folders."""

    def copied(*names):
        for name in names:
            source, target = healthy / name, tmp_path / "in" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (tmp_path / "in").mkdir(exist_ok=True)
        return tmp_path / "in"

    return copied


def state(folder):
    """{path: what it is} of all that lies in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[path] = about.st_mode, about.st_size, about.st_mtime_ns if path.is_file() else 0
    return found


@pytest.fixture
def refused(tmp_path, capfd, monkeypatch):
    """refused(main, *argv, names=(...)): the only line of an error that names what is wrong and the next step.

    Nothing is written: what there was is as before, and an output folder holds no more than the record of its start.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def refused(main, *argv, names=(), code=1):
        before = state(tmp_path)
        capfd.readouterr()
        try:
            ended = main([str(word) for word in argv])
        except SystemExit as left:
            ended = left.code
        written = capfd.readouterr()
        lines = [line for line in re.split(r"[\r\n]+", written.err) if line.strip() and "it/s]" not in line]
        errors = [line for line in lines if re.search(r"\b[Ee]rror: ", line)]
        told = SimpleNamespace(line=errors[-1] if errors else "", out=written.out, err=written.err)
        assert ended == code, (ended, written.err, written.out[-2000:])
        assert len(errors) == 1, written.err
        assert "Traceback" not in written.out + written.err and "unexpected" not in told.line, written.out[-3000:]
        assert ADVICE.search(told.line), told.line
        for name in names:
            assert str(name) in told.line, (name, told.line)
        assert len(told.line) < 1500 and "tensor(" not in told.line, told.line
        after = state(tmp_path)
        assert {path: after.get(path) for path in before if path.name not in STARTED} == {
            path: about for path, about in before.items() if path.name not in STARTED
        }
        new = {path.name for path in after.keys() - before.keys() if path.is_file()}
        assert {name for name in new if not name.startswith(STARTED)} == set()
        return told.line

    return refused


STARTED = ("config.yaml", "log.txt", "resume.pt", "split.json", "out", "shot_", ".lock")  # what a run leaves that began
