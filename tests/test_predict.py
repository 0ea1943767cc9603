"""predict.py: its probabilities are the trainer's, for a trainer of each kind; names, files, prompts, bad input."""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import predict
import train
from clip import clip
from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from dassl.utils import read_image
from tests.small_runs import CLASSES, train_once, write_images

ROOT = Path(__file__).parents[1]
TRAINERS = [  # one of each kind: nothing learned, CLIP itself in two ways, texts, features
    *("ZeroshotCLIP", "FinetuneCLIP", "SkipTuning", "CoOp", "CLIPAdapter"),
    *("TwoSFS", "LPpp", "MMRL"),  # and those for which the classes of the training are others than new ones
]
SMALL = {
    "TwoSFS": ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.MAX_EPOCH", "2"],  # one for each stage
    "MMRL": ["TRAINER.MMRL.FIRST_LAYER", "7", "TRAINER.MMRL.REP_DIM", "8"],  # of eight blocks
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for this file's runs, with images in three class folders."""
    place = tmp_path_factory.mktemp("predict")
    write_images(place / "pics")
    return place


@pytest.fixture
def trained(place, make_clip):
    """trained(trainer, *pairs, to="run"): the folder of a finished run on the images, made when first asked for."""
    weights = place / "tiny.safetensors"
    if not weights.exists():
        clip.save(make_clip(embed_dim=32, vision_layers=8, transformer_layers=8), weights)

    def trained(trainer, *pairs, to="run"):
        return train_once(trainer, place / "pics", weights, place / trainer / to, *SMALL.get(trainer, []), *pairs)

    return trained


@pytest.fixture
def run(place, capfd, monkeypatch):
    """Runs predict.py in this process: its exit code and what it wrote."""
    monkeypatch.setenv("DATA", str(place))

    def run(*argv):
        capfd.readouterr()
        code = predict.main([str(word) for word in argv])
        written = capfd.readouterr()
        return SimpleNamespace(code=code, out=written.out, err=written.err)

    return run


@pytest.fixture
def probabilities(run, tmp_path):
    """probabilities(RUN, *argv): what predict.py finds, as {path: {class: probability}}."""

    def probabilities(model_dir, *argv):
        file = tmp_path / "found.json"
        done = run("--model-dir", model_dir, "--json", file, "--force", "--top", 99, *argv)
        assert done.code == 0, done.err
        rows = json.loads(file.read_text())["images"]
        return {row["path"]: {each["class"]: each["probability"] for each in row["classes"]} for row in rows}

    return probabilities


def table(found, classes):
    """As a tensor (N, C)."""
    return torch.tensor([[row[name] for name in classes] for row in found.values()])


def images_of(cfg, paths):
    return torch.stack([build_transform(cfg, is_train=False)(read_image(path)) for path in paths])


def zero_shot(place, cfg, paths, prompts):
    """Plain CLIP, without any trainer: probabilities (N, C)."""
    model, _ = clip.load(str(place / "tiny.safetensors"), device="cpu")
    with torch.no_grad():
        return model(images_of(cfg, paths), clip.tokenize(prompts))[0].softmax(dim=-1)


def configuration(folder):
    return train.configure(train.parse(["--config-file", str(folder / "config.yaml")]))[0]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- trainers of each kind ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", TRAINERS)
def test_probabilities_are_the_softmax_of_what_the_trainer_infers(trainer, trained, probabilities, place):
    folder = trained(trainer)
    found = probabilities(folder, place / "pics/ant", "--batch-size", 4)
    assert list(found) == [f"{place}/pics/ant/{i}.png" for i in range(6)]
    cfg = configuration(folder)
    model = build_trainer(cfg)  # with its dataset
    model.load_model(str(folder))
    model.test()
    with torch.no_grad():
        expected = model.model_inference(images_of(cfg, found).to(model.device)).float().softmax(dim=-1).cpu()
    torch.testing.assert_close(table(found, CLASSES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_classes_may_come_in_another_order_be_fewer_or_new_ones(trainer, trained, probabilities, place, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(reversed(CLASSES)))
    folder, images = trained(trainer), place / "pics/zebra"
    before, after = probabilities(folder, images), probabilities(folder, images, "--classes", names)
    torch.testing.assert_close(table(after, CLASSES), table(before, CLASSES), rtol=1e-4, atol=1e-5)
    names.write_text("zebra\nsea_lion")  # as the folder is called
    fewer, both = probabilities(folder, images, "--classes", names), table(before, ["zebra", "sea lion"])
    expected = both / both.sum(dim=1, keepdim=True)
    torch.testing.assert_close(table(fewer, ["zebra", "sea_lion"]), expected, rtol=1e-4, atol=1e-5)
    names.write_text("a teapot\nzebra\n\n  snow \n")
    new = probabilities(folder, images, "--classes", names)
    assert all(sorted(row) == ["a teapot", "snow", "zebra"] for row in new.values())
    torch.testing.assert_close(table(new, ["a teapot", "snow", "zebra"]).sum(1), torch.ones(6))


# ---- classes and prompts -----------------------------------------------------------------------------------


def test_new_classes_and_prompts_reach_the_text_tower(trained, probabilities, place, tmp_path):
    names = tmp_path / "names.yaml"
    names.write_text("n01: teapot\nn02: no\n")
    folder = trained("ZeroshotCLIP")
    found = probabilities(folder, place / "pics", "--classes", names, "--template", "a sketch of {}!")
    expected = zero_shot(place, configuration(folder), found, ["a sketch of teapot!", "a sketch of no!"])
    torch.testing.assert_close(table(found, ["teapot", "no"]), expected, rtol=1e-3, atol=1e-4)


def test_a_template_is_for_trainers_with_their_own_template_option_too(trained, probabilities, place):
    folder = trained("SkipTuning", "TRAINER.SKIPTUNING.TEMPLATE", "x {} x", to="own_template")
    images = place / "pics/ant"
    as_trained = probabilities(folder, images)
    assert probabilities(folder, images, "--template", "x {} x") == as_trained
    assert probabilities(folder, images, "--template", "y {} y") != as_trained


def test_a_run_on_base_classes_knows_them_and_a_test_on_new_classes_those(trained, probabilities, place):
    def trained_on(part, *evaluation):
        return trained("SkipTuning", "DATASET.SUBSAMPLE_CLASSES", part, *evaluation, to=part)

    base = trained_on("base")
    evaluation = ["EVAL.ONLY", "True", "EVAL.MODEL_DIR", str(base)]
    image = str(place / "pics/zebra/0.png")
    halves = [probabilities(run, image)[image] for run in (base, trained_on("new", *evaluation))]
    whole = probabilities(trained_on("all", *evaluation), image)[image]
    assert [sorted(half) for half in halves] == [CLASSES[:2], CLASSES[2:]]
    for half in halves:  # the same weights: classes keep their odds
        one, other = half
        assert half[one] / half[other] == pytest.approx(whole[one] / whole[other], rel=1e-3)


def test_a_run_may_have_two_classes_of_one_name_as_imagenet_has(trained, run, place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained("SkipTuning"), folder)
    record = json.loads((folder / "result.json").read_text())
    record["classnames"] = ["missile", "missile", "ant", "bee"]
    (folder / "result.json").write_text(json.dumps(record))
    done = run("--model-dir", folder, place / "pics/ant/0.png")
    assert done.code == 0 and done.out.count("%  missile") == 2


def test_a_run_predicts_where_its_dataset_is_gone(trained, probabilities, place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained("ZeroshotCLIP"), folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(f"{place}/pics", f"{tmp_path}/gone"))
    image = place / "pics/ant/0.png"
    assert probabilities(folder, image) == probabilities(trained("ZeroshotCLIP"), image)


# ---- what is printed and written ---------------------------------------------------------------------------


def test_the_most_probable_classes_are_printed_under_each_image(trained, run, probabilities, place):
    folder, image = trained("SkipTuning"), place / "pics/ant/0.png"
    best = sorted(probabilities(folder, image)[str(image)].items(), key=lambda pair: -pair[1])[:2]
    done = run("--model-dir", folder, image, "--top", 2)
    assert done.code == 0
    assert done.out.splitlines() == [str(image), *(f"  {value:7.2%}  {name}" for name, value in best)]


def test_csv_and_json_hold_the_same_rows(trained, run, place, tmp_path):
    files = tmp_path / "new/found.csv", tmp_path / "found.json"
    images = place / "pics/ant", place / "pics/zebra/0.png"
    done = run("--model-dir", trained("SkipTuning"), *images, "--top", 2, "--csv", files[0], "--json", files[1])
    assert done.code == 0 and done.out == f"7 images: {files[0]} and {files[1]}\n"
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    written = json.loads(files[1].read_text())
    assert list(rows[0]) == ["path", "rank", "class", "probability"] and len(rows) == 14
    assert [row["rank"] for row in rows] == ["1", "2"] * 7
    assert [(row["path"], row["class"], float(row["probability"])) for row in rows] == [
        (each["path"], best["class"], best["probability"]) for each in written["images"] for best in each["classes"]
    ]
    assert written["unreadable"] == [] and written["model_dir"] == str(trained("SkipTuning"))


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_a_hyphen_is_the_screen_which_shows_what_the_file_would_hold(flag, trained, run, place, tmp_path, monkeypatch):
    argv = ["--model-dir", trained("SkipTuning"), place / "pics/ant/0.png", "--top", 2, flag]
    file = tmp_path / "found"
    assert run(*argv, file).code == 0
    monkeypatch.chdir(tmp_path)
    done = run(*argv, "-")
    assert done.code == 0 and done.out == file.read_text() and os.listdir() == ["found"]


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_a_file_is_overwritten_only_by_force(flag, trained, run, place, tmp_path):
    file = tmp_path / "found"
    file.write_text("precious")
    argv = ["--model-dir", trained("SkipTuning"), place / "pics/ant/0.png", flag, file]
    done = run(*argv)
    assert done.code == 1 and "--force" in done.err and file.read_text() == "precious"
    assert run(*argv, "--force").code == 0 and "ant/0.png" in file.read_text()


def test_a_place_that_cannot_be_written_is_found_before_the_work(fails, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "predict", None)
    (tmp_path / "file").touch()
    assert "file" in fails("--csv", tmp_path / "file/found.csv")
    assert "exists; name another file" in fails("--csv", tmp_path, "--force")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"Can't write to {tmp_path}" in fails("--csv", tmp_path / "found.csv")


def test_the_run_is_left_as_it_was_and_so_is_the_dataset_of_this_process(trained, run, place):
    folder = trained("SkipTuning")
    before, dataset = contents(folder), DATASET_REGISTRY.get("Custom")
    assert run("--model-dir", folder, place / "pics/ant/0.png").code == 0
    assert contents(folder) == before and DATASET_REGISTRY.get("Custom") is dataset


# ---- images ----------------------------------------------------------------------------------------------


def test_folders_and_patterns_are_searched_with_all_below_and_each_image_is_taken_once(trained, probabilities, place):
    arguments = [place / "pics/ant/3.png", f"{place}/pics/**/[01].png", place / "pics/ant"]
    found = [path.removeprefix(f"{place}/pics/") for path in probabilities(trained("SkipTuning"), *arguments)]
    matches = [f"{name}/{i}.png" for name in ("ant", "bee", "sea_lion", "zebra") for i in (0, 1)]
    assert found == ["ant/3.png", *matches, "ant/2.png", "ant/4.png", "ant/5.png"]


def test_broken_images_are_named_and_skipped_and_the_exit_code_says_so(trained, run, place, tmp_path):
    (tmp_path / "mine").mkdir()
    shutil.copy(place / "pics/ant/0.png", tmp_path / "mine/good.PNG")
    (tmp_path / "mine/broken.jpg").write_bytes((place / "pics/ant/0.png").read_bytes()[:90])
    file = tmp_path / "found.json"
    done = run("--model-dir", trained("SkipTuning"), tmp_path / "mine", "--json", file)
    written = json.loads(file.read_text())
    assert done.code == 1 and f'Cannot read the image "{tmp_path}/mine/broken.jpg"' in done.err
    assert [each["path"] for each in written["images"]] == [f"{tmp_path}/mine/good.PNG"]
    assert written["unreadable"] == [f"{tmp_path}/mine/broken.jpg"]
    done = run("--model-dir", trained("SkipTuning"), tmp_path / "mine/broken.jpg", "--csv", tmp_path / "found.csv")
    assert done.code == 1 and done.err.count("Error: ") == 1 and "broken.jpg" in done.err
    assert not (tmp_path / "found.csv").exists()


# ---- bad input ---------------------------------------------------------------------------------------------


@pytest.fixture
def fails(trained, run, place, tmp_path):
    """fails(*argv): the one line that an error leaves, of a call with the SkipTuning run and one image."""

    def fails(*argv, model_dir=None):
        done = run("--model-dir", model_dir or trained("SkipTuning"), place / "pics/ant/0.png", *argv)
        error = done.err.split("\r")[-1].strip().splitlines()[-1]  # behind the progress bar
        assert done.code == 1 and error.startswith("Error: ") and done.out == "" and "Traceback" not in done.err
        return error

    return fails


@pytest.mark.parametrize("text, count", [("", "0 class names, 0"), ("a\n", "1 class names, 1"), ("a\nb\nA", "3 class")])
def test_class_names_must_be_two_or_more_and_different(text, count, fails, tmp_path):
    (tmp_path / "names.txt").write_text(text)
    assert f"names.txt has {count}" in fails("--classes", tmp_path / "names.txt")


def test_a_folder_without_images_is_named(fails, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert f"No images at {tmp_path}" in fails(tmp_path)


def test_a_folder_that_is_no_run_is_refused_and_the_run_below_it_suggested(fails, trained, tmp_path):
    assert f"No config.yaml in {tmp_path}; name the output folder" in fails(model_dir=tmp_path)
    assert "No config.yaml in /nowhere" in fails(model_dir="/nowhere")
    folder = trained("ZeroshotCLIP")
    assert f"do you mean {folder}?" in fails(model_dir=folder.parent)


def test_an_unfinished_run_is_refused(fails, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained("SkipTuning"), folder)
    (folder / "result.json").unlink()
    assert f"The run in {folder} has no result.json, it is not finished" in fails(model_dir=folder)


def test_weights_of_another_backbone_are_refused(fails, trained, place, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained("SkipTuning"), folder)
    shutil.copy(place / "tiny.safetensors", tmp_path / "other.safetensors")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace(f"{place}/tiny", f"{tmp_path}/other"))
    assert f"was trained with the backbone {place}/tiny.safetensors" in fails(model_dir=folder)


def test_weights_that_were_deleted_are_missed(fails, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained("SkipTuning"), folder)
    for path in folder.glob("*/model.pth.tar-*"):
        path.unlink()
    assert "No model at" in fails(model_dir=folder)


def test_ctrl_c_leaves_nothing_and_exit_code_130(trained, run, place, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict", interrupt)
    done = run("--model-dir", trained("SkipTuning"), place / "pics/ant/0.png", "--csv", tmp_path / "found.csv")
    assert done.code == 130 and "nothing was written" in done.err and not (tmp_path / "found.csv").exists()


def test_help_shows_every_flag_and_a_command(capsys):
    with pytest.raises(SystemExit) as end:
        predict.main(["--help"])
    text = capsys.readouterr().out
    flags = ["model-dir", "top", "classes", "template", "csv", "json", "force", "device", "batch-size"]
    assert end.value.code == 0 and all(f"--{flag} " in text for flag in flags)
    assert "python predict.py --model-dir" in text


def test_the_command_line_knows_no_method_by_name():
    text = (ROOT / "predict.py").read_text()
    for name in TRAINERS:
        assert name not in text.replace("few_shot/emoji/SkipTuning/embedded", "")  # a path in the help
