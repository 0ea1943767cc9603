"""export.py: what it writes is read by the packages it is for, in processes of their own, with the run's own logits."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import clip
import export
import train
from clip.origins import PIXEL_MEAN, PIXEL_STD
from clip.writing import write_folder
from dassl.data.transforms import build_transform
from dassl.utils import read_image
from tests.readers import ONNX, OPEN_CLIP, TRANSFORMERS
from tests.small_runs import CLASSES, train_once, write_images
from trainers.prolip import ProLIP

ROOT = Path(__file__).parents[1]
TUNED = ["SkipTuning", "FinetuneCLIP", "CLIPLoRA", "ZeroshotCLIP", "CLIPSVD", "ProLIP", "TwoSFS"]
OTHERS = ["CoOp", "MaPLe", "TipAdapter", "DePT"]  # learned texts, images with prompts, other logits, a head
PAIRS = [  # pixels as CLIP's, and a cut that a tower of three blocks has
    *("INPUT.INTERPOLATION", "bicubic", "INPUT.PIXEL_MEAN", str(list(PIXEL_MEAN))),
    *("INPUT.PIXEL_STD", str(list(PIXEL_STD)), "TRAINER.SKIPTUNING.OMEGA", "1"),
]
SMALL = {
    "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "2"],  # of three blocks
    "TwoSFS": ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", "2"],  # one for each stage
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_clip):
    """A folder for this file's runs, with images of four classes and a CLIP of three blocks a tower."""
    place = tmp_path_factory.mktemp("export")
    write_images(place / "images")
    clip.save(make_clip(embed_dim=32, vision_heads=4, activation="gelu"), place / "tiny.safetensors")
    clip.save(make_clip(embed_dim=32), place / "openai.safetensors")  # follows OpenAI's conventions
    bigg = make_clip(vision_width=208, vision_heads=2, vision_mlp=1024, vision_patch_size=8, activation="gelu")
    (place / "bigg.safetensors").mkdir()  # a folder, with bigG-14's head width and MLP ratio
    write_folder(bigg, place / "bigg.safetensors")
    return place


@pytest.fixture(scope="module")
def trained(place):
    """trained(trainer, backbone): the folder of a finished run, made when first asked for."""

    def make(trainer, backbone="tiny"):
        folder = place / "runs" / backbone / trainer
        weights = place / f"{backbone}.safetensors"
        return train_once(trainer, place / "images", weights, folder, *PAIRS, *SMALL.get(trainer, []))

    return make


@pytest.fixture
def run(capfd):
    """Runs export.py in this process: its exit code and what it wrote."""

    def run(*argv):
        capfd.readouterr()
        code = export.main([str(word) for word in argv])
        written = capfd.readouterr()
        return SimpleNamespace(code=code, out=written.out, err=written.err)

    return run


@pytest.fixture(scope="module")
def exported(place, trained):
    """exported(trainer, target, *flags): the folder that export.py wrote, once for all tests."""

    def make(trainer, target, *flags, backbone="tiny"):
        backbone = "openai" if target == "openai" else backbone
        folder = place / "exported" / "-".join([trainer, target, backbone, *flags])
        if not folder.exists():
            words = ["--model-dir", str(trained(trainer, backbone)), "--to", target, "--out", str(folder), *flags]
            assert export.main(words) == 0
        return folder

    return make


@pytest.fixture(scope="module")
def expected(place, trained):
    """expected(trainer): all images' paths, their pixels in a file, the run's own logits (N, C) and its prompt."""

    def logits(name, backbone="tiny"):
        trainer = train.load_trainer(trained(name, backbone), None, "cpu")
        transform = build_transform(trainer.cfg, is_train=False)
        paths = sorted((place / "images").rglob("*.png"))
        pixels = torch.stack([transform(read_image(path)) for path in paths])
        np.save(place / "pixels.npy", pixels.numpy())
        prompt = trainer.template() if name in TUNED else ""
        return SimpleNamespace(
            paths=paths, pixels=place / "pixels.npy", logits=trainer.logits(pixels), prompt=prompt, trainer=trainer
        )

    return logits


def in_a_child(code, cwd, *argv, python=sys.executable):
    """What `code` prints as JSON, in a process that knows nothing of this project."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", code, *map(str, argv)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(found, logits):
    found = torch.tensor(found)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(dim=-1), logits.argmax(dim=-1))


# ---- one folder for open_clip and transformers ----


def assert_a_child_gives_the_runs_logits(code, runs, cwd):
    """runs: {exported folder: its `expected`}."""
    first = next(iter(runs.values()))
    folders = json.dumps([[str(folder), run.prompt] for folder, run in runs.items()])
    found = in_a_child(code, cwd, first.pixels, json.dumps([str(path) for path in first.paths]), folders)
    for (by_pixels, by_files), run in zip(found, runs.values(), strict=True):
        assert_same(by_pixels, run.logits)
        by_files = torch.tensor(by_files)  # resized and rounded by other code
        torch.testing.assert_close(by_files, run.logits, atol=0.1, rtol=0)
        assert torch.equal(by_files.argmax(dim=-1), run.logits.argmax(dim=-1))


def test_open_clip_gives_the_runs_logits(exported, expected, tmp_path):
    targets = {"SkipTuning": "hf", "FinetuneCLIP": "hf", "CLIPLoRA": "open_clip", "ZeroshotCLIP": "open_clip"}
    targets |= {"CLIPSVD": "hf", "ProLIP": "hf"}
    runs = {exported(trainer, target): expected(trainer) for trainer, target in targets.items()}
    runs[exported("SkipTuning", "hf", backbone="bigg")] = expected("SkipTuning", "bigg")
    assert_a_child_gives_the_runs_logits(OPEN_CLIP, runs, tmp_path)


def test_transformers_gives_the_runs_logits(exported, expected, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    targets = {"SkipTuning": "hf", "FinetuneCLIP": "hf", "CLIPLoRA": "open_clip"}
    runs = {exported(trainer, target): expected(trainer) for trainer, target in targets.items()}
    runs[exported("SkipTuning", "hf", backbone="bigg")] = expected("SkipTuning", "bigg")
    assert_a_child_gives_the_runs_logits(TRANSFORMERS, runs, tmp_path)


def test_the_tokenizer_is_clips(exported):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from datasets.emoji import Emoji  # noqa: F401  (names of many kinds lie beside it)

    folder = exported("SkipTuning", "hf")
    names = [line for path in sorted((ROOT / "configs").rglob("*.yaml")) for line in path.read_text().splitlines()][
        :500
    ]
    names += ["", "  two   spaces ", "Don't CRY, it's 42nd!", "café naïve", "日本語", "emoji 😀", "a_b-c/d (e)"]
    for tokenizer in (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.CLIPTokenizer.from_pretrained(folder),
    ):
        for name in names:
            ids = tokenizer(name, truncation=True, max_length=77).input_ids
            assert ids == [token for token in clip.tokenize(name, truncate=True)[0].tolist() if token], name


def test_the_code_on_the_card_runs(exported, expected):
    folder, run = exported("SkipTuning", "hf"), expected("SkipTuning")
    Image.open(run.paths[0]).save(folder / "image.png")
    text = (folder / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    installed = importlib.util.find_spec("transformers")
    for snippet in snippets if installed else snippets[:1]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", snippet], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == CLASSES[int(run.logits[0].argmax())]
    (folder / "image.png").unlink()


def test_the_facts_on_the_card_are_those_of_result_json(trained, exported, tmp_path, run):
    result = json.loads((trained("SkipTuning") / "result.json").read_text())
    other = result | {"subsample": "new", "accuracy": 12.345, "total": 99, "classnames": ["x", "y"]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    out = tmp_path / "out"
    done = run("--model-dir", trained("SkipTuning"), "--to", "hf", "--out", out, "--results", tmp_path / "other.json")
    assert done.code == 0, done.err
    text = (out / "README.md").read_text()
    assert f"| all | 4 | {result['total']} | {result['accuracy']:.2f}% |" in text
    assert "| new | 2 | 99 | 12.35% |" in text or "| new | 2 | 99 | 12.34% |" in text
    assert f"Learned parameters: {result['learned_parameters']:,}" in text and "seed 1" in text
    assert "library_name: open_clip" in text and "pipeline_tag: zero-shot-image-classification" in text
    assert "Activation gelu, 4 + 1 heads, images of 32 pixels" in text
    changed, lost = map(float, re.search(r"fp32\. ([\d.]+)% of .* back ([\d.]+)% of", text, re.DOTALL).groups())
    before, after = (clip.load(each, device="cpu")[0].state_dict().values() for each in (result["backbone"], out))
    before, after = (torch.cat([value.flatten() for value in values]) for values in (before, after))
    moved = before != after
    gone = moved & (before.half() == after.half())
    assert changed == pytest.approx(100 * float(moved.float().mean()), abs=0.06)
    assert lost == pytest.approx(100 * int(gone.sum()) / int(moved.sum()), abs=0.06)


def test_an_accuracy_with_what_is_not_in_the_files_is_not_on_the_card(trained, run, tmp_path):
    result = json.loads((trained("TwoSFS") / "result.json").read_text())
    new = result | {"subsample": "new", "accuracy": 12.5, "total": 99, "classnames": ["x", "y"]}
    (tmp_path / "new.json").write_text(json.dumps(new))
    for more in ([], ["--results", tmp_path / "new.json"]):
        out = tmp_path / f"out{len(more)}"
        assert run("--model-dir", trained("TwoSFS"), "--to", "hf", "--out", out, *more).code == 0
        text = (out / "README.md").read_text()
        assert "\nOn all classes it was tested with a classifier that is not in these files.\n" in text
        assert "| all |" not in text and "Not tested." not in text
        assert ("| new | 2 | 99 | 12.50% |" in text) == bool(more)


def test_of_several_prompts_the_card_has_all_and_its_code_the_first(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ProLIP, "template", lambda self: ["art of the {}.", "a {} in a video game."])
    assert run("--model-dir", trained("ProLIP"), "--to", "hf", "--out", tmp_path / "out").code == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "prompts `art of the {}.`, `a {} in a video game.`. What was tested is the mean" in text
    assert text.count('"art of the {}."') == 2 and text.count("video game") == 1


def test_zero_shot_weights_are_said_to_be_untouched(exported):
    assert "No weight differs from the model" in (exported("ZeroshotCLIP", "hf") / "README.md").read_text()


# ---- OpenAI's file ----


@pytest.fixture
def tuned(trained):
    """The tuned CLIP of the run that is exported in OpenAI's forms."""
    return train.load_trainer(trained("SkipTuning", "openai"), None, "cpu").tuned_clip().eval()


def test_the_plain_state_dict_has_openais_keys_and_all_weights_in_fp32(exported, tuned):
    found, expected = torch.load(exported("SkipTuning", "openai") / "clip.pt", weights_only=True), tuned.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)
    model, _ = clip.load(exported("SkipTuning", "openai"), device="cpu")  # with the facts beside it
    assert model.facts == tuned.facts and torch.equal(model.visual.proj, tuned.visual.proj)


def test_the_archive_is_what_openais_loader_reads(exported, tuned):
    path = exported("SkipTuning", "openai", "--torchscript") / "clip.pt"
    code = """
import json, sys, torch
found = torch.jit.load(sys.argv[1], map_location="cpu").eval().state_dict()  # as in OpenAI's clip.py
scalars = [int(found.pop(key)) for key in ("input_resolution", "context_length", "vocab_size")]
print(json.dumps([scalars, sorted(found), found["logit_scale"].dim()]))
"""
    scalars, keys, dimensions = in_a_child(code, path.parent, path)
    assert scalars == [32, 77, 49408] and keys == sorted(tuned.state_dict()) and dimensions == 0
    found = clip.clip.read_state_dict(path)
    assert all(torch.equal(found[key], value) for key, value in tuned.state_dict().items())


@pytest.mark.skipif("OTHER_CLIP" not in os.environ, reason="needs OTHER_CLIP=python with OpenAI's clip installed")
def test_openais_own_package_reads_both(exported, tuned, tmp_path):
    """The plain state dict into a model that is there, without loss; the archive by its path, rounded to fp16."""
    code = """
import json, sys, numpy, torch, clip
archive, plain, pixels = sys.argv[1:]
images, texts = torch.from_numpy(numpy.load(pixels)), clip.tokenize(["a photo of a dog.", "a cat"])
model, _ = clip.load(archive, device="cpu", jit=False)
with torch.no_grad():
    rounded = model(images, texts)[0].tolist()
    model.load_state_dict(torch.load(plain))
    print(json.dumps([clip.__file__, rounded, model(images, texts)[0].tolist()]))
"""
    archive, plain = (exported("SkipTuning", "openai", *more) / "clip.pt" for more in (["--torchscript"], []))
    images = torch.randn(5, 3, 32, 32)
    np.save(tmp_path / "images.npy", images.numpy())
    python = os.environ["OTHER_CLIP"]
    file, rounded, exact = in_a_child(code, tmp_path, archive, plain, tmp_path / "images.npy", python=python)
    assert ROOT not in Path(file).parents
    with torch.no_grad():
        logits, _ = tuned(images, clip.tokenize(["a photo of a dog.", "a cat"]))
    assert_same(exact, logits)
    torch.testing.assert_close(torch.tensor(rounded), logits, atol=0.1, rtol=0)


def test_a_model_that_openais_package_would_run_wrongly_is_refused(trained, run, tmp_path):
    done = run("--model-dir", trained("SkipTuning"), "--to", "openai", "--out", tmp_path / "out")
    assert done.code == 1 and "OpenAI's package takes QuickGELU, 64 channels a head" in done.err
    assert list(tmp_path.iterdir()) == []


# ---- ONNX ----


@pytest.fixture
def onnx():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.parametrize("trainer", ["SkipTuning", "TwoSFS", *OTHERS])
def test_onnxruntime_gives_the_runs_logits_at_every_batch_size(onnx, trainer, exported, expected, trained, tmp_path):
    folder = exported(trainer, "onnx")
    run = train.load_trainer(trained(trainer), None, "cpu")
    images = torch.randn(64, 3, 32, 32)
    np.save(tmp_path / "images.npy", images.numpy())
    for found in in_a_child(ONNX, tmp_path, folder / "classifier.onnx", tmp_path / "images.npy"):
        assert_same(found, run.logits(images[: len(found)]))
    assert (folder / "classes.txt").read_text().splitlines() == CLASSES


def test_the_image_tower_gives_clips_features(onnx, exported, trained, tmp_path):
    model = train.load_trainer(trained("SkipTuning"), None, "cpu").tuned_clip().eval()
    images = torch.randn(64, 3, 32, 32)
    np.save(tmp_path / "images.npy", images.numpy())
    path = exported("SkipTuning", "onnx") / "image_tower.onnx"
    for found in in_a_child(ONNX, tmp_path, path, tmp_path / "images.npy"):
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found), model.encode_image(images[: len(found)]), atol=1e-5, rtol=0)


def test_the_script_needs_three_packages_and_classifies_images_as_the_run(onnx, exported, expected, tmp_path):
    folder = exported("SkipTuning", "onnx")
    script = (folder / "classify.py").read_text()
    imports = set(re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE))
    assert imports == {"sys", "pathlib", "numpy", "onnxruntime", "PIL"} and len(script.splitlines()) <= 25
    found = expected("SkipTuning")
    paths, logits = found.paths, found.logits
    done = subprocess.run(
        [sys.executable, folder / "classify.py", *paths], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    rows = [line.removeprefix(f"{path} ") for path, line in zip(paths, done.stdout.splitlines(), strict=True)]
    probabilities = logits.softmax(dim=-1).max(dim=-1)
    for row, value, label in zip(rows, *probabilities, strict=True):
        name, _, number = row.rpartition(" ")
        assert name == CLASSES[int(label)] and float(number) == pytest.approx(float(value), abs=2e-3)


# ---- the class features alone ----


@pytest.mark.parametrize("trainer", ["CoOp", "ZeroshotCLIP"])
def test_the_head_gives_the_runs_logits_from_the_backbones_features(trainer, exported, expected, place):
    run, head = expected(trainer), load_file(exported(trainer, "head") / "head.safetensors")["weight"]
    backbone, _ = clip.load(place / "tiny.safetensors", device="cpu")
    with torch.no_grad():
        features = torch.nn.functional.normalize(backbone.encode_image(torch.from_numpy(np.load(run.pixels))), dim=-1)
    assert_same((features @ head.t()).tolist(), run.logits)
    assert (exported(trainer, "head") / "classes.txt").read_text().splitlines() == CLASSES


@pytest.mark.parametrize("trainer", ["SkipTuning", "MaPLe", "TipAdapter"])
def test_a_head_that_would_not_be_exact_is_refused(trainer, trained, run, tmp_path):
    done = run("--model-dir", trained(trainer), "--to", "head", "--out", tmp_path / "out")
    assert done.code == 1 and f"{trainer} changes the image features or their comparison" in done.err
    assert list(tmp_path.iterdir()) == []


# ---- what is refused ----


@pytest.mark.parametrize("trainer", ["CoOp", "TipAdapter"])
@pytest.mark.parametrize("target", ["hf", "open_clip", "openai"])
def test_methods_that_learn_beside_clip_have_no_clip_to_give(trainer, target, trained, run, tmp_path):
    done = run("--model-dir", trained(trainer), "--to", target, "--out", tmp_path / "out")
    assert done.code == 1 and f"{trainer} leaves CLIP's weights alone" in done.err and "--to onnx" in done.err
    assert not (tmp_path / "out").exists() and done.err.count("\n") == 1


def test_class_features_that_depend_on_the_image_cant_be_baked_in(onnx, trained, run, tmp_path):
    done = run("--model-dir", trained("CoCoOp"), "--to", "onnx", "--out", tmp_path / "out")
    assert done.code == 1 and "CoCoOp computes other class features for every image" in done.err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(trained, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    (tmp_path / "file").touch()
    for out in ("out", "file"):
        done = run("--model-dir", trained("SkipTuning"), "--to", "hf", "--out", tmp_path / out)
        assert done.code == 1 and f"{tmp_path / out} exists; name another folder" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_what_can_not_be_written_is_refused_before_anything_is_loaded(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load", None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    model = ["--model-dir", trained("SkipTuning").resolve(), "--to"]
    done = run(*model, "hf", "--out", ".")
    assert done.code == 1 and done.err == "Error: --out . is a folder that is there already; name a new one\n"
    done = run(*model, "hf", "--out", "out", "--results", "missing.json")
    assert done.code == 1 and "missing.json" in done.err and done.err.count("\n") == 1
    done = run(*model, "onnx", "--out", "out", "--results", "missing.json")
    assert done.code == 1 and "which --to onnx doesn't write; leave it out" in done.err


def test_a_dry_run_writes_nothing(trained, run, tmp_path):
    done = run("--model-dir", trained("SkipTuning"), "--to", "hf", "--out", tmp_path / "out", "--dry-run")
    assert done.code == 0 and "Would write to" in done.out and "open_clip_model.safetensors" in done.out
    assert list(tmp_path.iterdir()) == []
    done = run("--model-dir", trained("CoOp"), "--to", "hf", "--out", tmp_path / "out", "--dry-run")
    assert done.code == 1


def test_what_does_not_load_as_it_was_is_not_left(trained, run, tmp_path, monkeypatch):
    def write(model, folder, *_):
        clip.writing.write_folder(model, folder)
        model.visual.proj.data += 1

    monkeypatch.setattr(export, "write_folder", write)
    done = run("--model-dir", trained("SkipTuning"), "--to", "hf", "--out", tmp_path / "out")
    assert done.code == 1 and "doesn't load as it was (visual.proj)" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_finished_run_is_one_line(trained, run, tmp_path):
    done = run("--model-dir", tmp_path, "--to", "hf", "--out", tmp_path / "out")
    assert done.code == 1 and f"No config.yaml in {tmp_path}" in done.err
    (tmp_path / "config.yaml").touch()
    done = run("--model-dir", tmp_path, "--to", "hf", "--out", tmp_path / "out")
    assert done.code == 1 and "is not finished" in done.err


def test_what_pytorch_cant_export_is_one_line(onnx, trained, run, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Could not guard on data-dependent expression\nadvice")

    monkeypatch.setattr(torch.onnx, "export", fail)
    done = run("--model-dir", trained("SkipTuning"), "--to", "onnx", "--out", tmp_path / "out")
    assert done.code == 1 and "PyTorch can't write image_tower.onnx (Could not guard on" in done.err
    assert done.err.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(trained, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = run("--model-dir", trained("SkipTuning"), "--to", "onnx", "--out", tmp_path / "out")
    assert done.code == 1 and "onnxruntime: pip install" in done.err
