"""A fork with the trainer in it, run: every loss, folder and result is ours. And the trainer on upstream's Dassl."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from dassl.engine import TrainerBase
from dassl.utils import UserError
from swap import fork as forks
from swap import plan
from tests.swap.skeletons import VARIATIONS, make_fork, make_images, run
from trainers.parts.trainer import CLIPTrainer

SMALL = ["OPTIM.MAX_EPOCH", "2", "OPTIM.LR", "0.01", "INPUT.SIZE", "(32,32)", "TRAINER.SKIPTUNING.OMEGA", "1"]
SMALL += ["DATALOADER.NUM_WORKERS", "0", "TRAIN.PRINT_FREQ", "1"]


# ---- a whole run -------------------------------------------------------------------------------------------


def in_fork(root, *args):
    command = [sys.executable, "-W", "ignore", "train.py", "--trainer", "SkipTuning", "--seed", "1", *args]
    run = subprocess.run([str(word) for word in command], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return re.findall(r" loss ([\d.]+)", run.stdout), re.findall(r"^\* accuracy: (\S+)%", run.stdout, re.M)


def test_a_fork_trains_and_tests_and_every_loss_is_ours(tmp_path, make_clip):
    """CLAP's and ATPrompt's calls, DePT's defaults, a clip/ with MaPLe's, TCP's and PLOT++'s changes: all in one."""
    weights, data = tmp_path / "tiny.pt", make_images(tmp_path / "data")
    torch.save(make_clip(embed_dim=32).half().state_dict(), weights)
    evaluate = (
        "        trainer.load_model(args.model_dir, cfg, epoch=args.load_epoch)\n        trainer.test(is_final=True)"
    )
    VARIATIONS["all"] = VARIATIONS["DePT"] | {"evaluate": evaluate}
    path, root = make_fork(tmp_path, "all", weights)
    del VARIATIONS["all"]
    assert run(path, "--engine", "ours") == 0
    flags = ["--root", data, "--config-file", "configs/trainers/SkipTuning/vit_b16.yaml"]
    flags += ["--dataset-config-file", "configs/datasets/eurosat.yaml", "--output-dir"]
    losses, accuracy = in_fork(root, *flags, tmp_path / "run", *SMALL)
    again, tested = in_fork(root, *flags, tmp_path / "test", "--eval-only", "--model-dir", tmp_path / "run", *SMALL)
    assert len(losses) == 10 and again == [] and tested == accuracy
    ours = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OURS, root / "datasets", data, weights, tmp_path / "ours", *SMALL],
        cwd=forks.HERE, capture_output=True, text=True,
    )  # fmt: skip
    assert re.findall(r" loss ([\d.]+)", ours.stdout) == losses, ours.stderr


OURS = """
import sys
import trainers
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
folder, data, weights, output, *opts = sys.argv[1:]
from dassl.data.datasets import DATASET_REGISTRY
DATASET_REGISTRY._objects.pop("EuroSAT", None)
sys.path.insert(0, folder)
import eurosat
cfg = get_cfg_default()
trainers.extend_cfg(cfg)
cfg.merge_from_file("configs/trainers/SkipTuning/vit_b16.yaml")
cfg.merge_from_file("configs/overlays/base2new.yaml")
cfg.merge_from_list(["DATASET.NAME", "EuroSAT", "DATASET.ROOT", data, "OUTPUT_DIR", output, "SEED", 1, *opts])
cfg.merge_from_list(["TRAINER.NAME", "SkipTuning", "MODEL.BACKBONE.NAME", weights])
set_random_seed(1)
build_trainer(cfg).train()
"""


# ---- every script --------------------------------------------------------------------------------------------

RUNS = (  # script, arguments, and the output folder below OUTPUT here
    ("base2new_train", ("eurosat", "1"), "base2new/train_base/eurosat/shots_2/SkipTuning/vit_b16/seed1"),
    ("base2new_test", ("eurosat", "1"), "base2new/test_new/eurosat/shots_2/SkipTuning/vit_b16/seed1"),
    ("few_shot", ("eurosat", "1", "2"), "few_shot/eurosat/SkipTuning/vit_b16_few_shot_2shots/seed1"),
    ("xd_train", ("1",), "imagenet/SkipTuning/vit_b16_xd_2shots/seed1"),
    ("xd_test", ("eurosat", "1"), "evaluation/SkipTuning/vit_b16_xd_2shots/eurosat/seed1"),
)
OUR_DATASETS = """
import importlib.util, sys

# The project's datasets under another name.
spec = importlib.util.spec_from_file_location("own_datasets", {path!r}, submodule_search_locations=[{folder!r}])
sys.modules["own_datasets"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["own_datasets"])
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_clip):
    """Weights, EuroSAT and ImageNet in small, and what our own scripts make of them: {script: what it printed}."""
    folder = tmp_path_factory.mktemp("world")
    images = make_images(folder / "images")
    split = json.loads((images / "split.json").read_text())
    for part, place in (("train", "train"), ("test", "val")):
        for name, label, _ in split[part]:
            target = folder / f"data/imagenet/images/{place}/n0000000{label}/{name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((images / name).read_bytes())
    names = "".join(f"n0000000{label} colour {label}\n" for label in range(5))
    (folder / "data/imagenet/classnames.txt").write_text(names)
    (folder / "data/eurosat").mkdir()
    images.rename(folder / "data/eurosat/2750")
    split = {"train": split["train"], "val": split["test"], "test": split["test"]}
    (folder / "data/eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(split))
    torch.save(make_clip(embed_dim=32).half().state_dict(), folder / "tiny.pt")
    more = ["MODEL.BACKBONE.NAME", str(folder / "tiny.pt")]
    return folder, run_scripts(forks.HERE, folder, *more, OUTPUT=str(folder / "output"))


def run_scripts(root, world, *options, **variables):
    """{script: (losses, accuracies)} of all scripts in `root`."""
    environment = {**os.environ, "PYTHON": sys.executable, "DATA": str(world / "data"), "SHOTS": "2", **variables}
    environment |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    found = {}
    for script, arguments, _ in RUNS:
        command = ["bash", f"scripts/skip/{script}.sh", *arguments, *SMALL, *options]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (script, done.stdout[-1000:] + done.stderr[-2000:])
        accuracy = re.findall(r"^\* accuracy: (\S+)%", done.stdout, re.M)
        found[script] = re.findall(r" loss ([\d.]+)", done.stdout), accuracy
    return found


@pytest.mark.parametrize("name", ["CoOp", "DePT"])
def test_every_script_runs_to_its_end_with_our_folders_and_results(name, world, tmp_path):
    folder, ours = world
    path, root = make_fork(tmp_path, name, folder / "tiny.pt")
    package = forks.HERE / "datasets"
    text = OUR_DATASETS.format(path=str(package / "__init__.py"), folder=str(package))
    (root / "datasets/eurosat.py").write_text(text)
    train = (root / "train.py").read_text()
    options = "".join(f'    cfg.DATASET.{key} = ""\n' for key in ("TEMPLATE", "IMAGES", "CLASSNAMES"))
    (root / "train.py").write_text(train.replace("\n\n\ndef setup_cfg", f"\n{options}\n\ndef setup_cfg"))
    (root / "configs/datasets/imagenet.yaml").write_text('DATASET:\n  NAME: "ImageNet"\n')
    assert run(path, "--engine", "ours") == 0
    assert run_scripts(root, folder) == ours
    assert [len(losses) > 0 for losses, _ in ours.values()] == [True, False, True, True, False]
    assert all(len(accuracy) == 1 for _, accuracy in ours.values())
    layout = forks.find(path).kind.layout
    for script, _, place in RUNS:
        if script.startswith("base2new") and name == "DePT":
            part = place.split("/")[1]
            place = layout.format(part=part, dataset="eurosat", shots=2, trainer="SkipTuning", cfg="vit_b16", seed=1)
            place = place.removeprefix("outputs/")
        assert (root / ("outputs" if name == "DePT" and "shots2" in place else "output") / place / "log.txt").exists()
        assert name == "DePT" or (folder / "output" / place / "log.txt").exists()


# ---- upstream's Dassl --------------------------------------------------------------------------------------


class Loader(CLIPTrainer):
    def __init__(self):
        TrainerBase.__init__(self)
        self.learned = None
        self.register_model("part", torch.nn.Linear(2, 1))


def test_checkpoints_load_on_a_dassl_that_cannot_print_them(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.parts.trainer.OUR_DASSL", False)
    monkeypatch.setattr(TrainerBase, "load_model", lambda *args, **kwargs: pytest.fail("upstream's was called"))
    (tmp_path / "part").mkdir()
    for epoch in (2, 10):
        weights = {"weight": torch.full((1, 2), float(epoch)), "bias": torch.zeros(1)}
        torch.save({"state_dict": weights, "epoch": epoch}, tmp_path / f"part/model.pth.tar-{epoch}")
    trainer = Loader()
    for arguments, options, epoch in [
        ((), {}, 10),  # the last
        ((), {"epoch": 2}, 2),
        ((), {"epoch": -1}, 10),  # what swap_in's scripts ask for where --load-epoch has a default
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
    text = "".join(file.read_text() for file in plan.plugin_files())
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
    names = {file.relative_to(plan.PLUGIN).as_posix() for file in plan.plugin_files()}
    assert "skip_tuning.py" in names and "parts/trainer.py" in names
    assert not {"coop.py", "frozen.py", "__init__.py", "parts/prompts.py", "parts/class_rows.py"} & names
