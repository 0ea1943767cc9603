"""Every file that a command reads, damaged in every way: one line that names it."""

import pytest

import predict
import train
from tests.bad_input.conftest import start
from tests.bad_input.damage import BINARY, JSON, TEXT, YAML


def begun(top, *argv):
    """The command that trains, with what comes last winning."""
    return [train.main, *start(top, "--output-dir", top.parent / "out"), *argv]


def recipe(place, healthy):
    top = place("recipe.yaml")
    return top / "recipe.yaml", [train.main, "--output-dir", top.parent / "out", "--config-file", top / "recipe.yaml"]


def dataset_file(place, healthy):
    top = place("dataset.yaml")
    flag = "--dataset-config-file"
    return top / "dataset.yaml", [train.main, "--output-dir", top.parent / "out", flag, top / "dataset.yaml"]


def class_names(place, healthy):
    top = place("pics", "names.yaml", "tiny.safetensors")
    return top / "names.yaml", begun(top, "DATASET.CLASSNAMES", top / "names.yaml")


def listed_images(place, healthy):
    top = place("pics", "list.csv", "tiny.safetensors")
    return top / "list.csv", begun(top, "DATASET.IMAGES", top / "list.csv")


def published_split(place, healthy):
    top = place("data", "tiny.safetensors")
    argv = begun(top, "DATASET.NAME", "EuroSAT", "DATASET.ROOT", top / "data", "DATASET.NUM_SHOTS", 1)
    return top / "data/eurosat/split_zhou_EuroSAT.json", argv


def kept_split(place, healthy):
    top = place("tiny.safetensors", "kept")
    (path,) = (top / "kept/custom").glob("*/split.json")
    return path, begun(top, "DATASET.IMAGES", healthy / "pics")


def backbone(place, healthy):
    top = place("tiny.safetensors")
    return top / "tiny.safetensors", begun(top, "DATASET.IMAGES", healthy / "pics", "DATASET.ROOT", healthy / "kept")


def checkpoint(place, healthy):
    top = place("run")
    flags = ["--output-dir", top.parent / "out", "--eval-only", "--model-dir", top / "run"]
    return top / "run/learned/model.pth.tar-1", [train.main, *start(healthy, *flags)]


def resume_file(place, healthy):
    top = place("unfinished")
    return top / "unfinished/resume.pt", [train.main, *start(healthy, "--output-dir", top / "unfinished")]


def record_of_options(place, healthy):
    top = place("run")
    return top / "run/config.yaml", [predict.main, "--model-dir", top / "run", healthy / "pics/ant/0.png"]


def record_of_results(place, healthy):
    top = place("run")
    return top / "run/result.json", [predict.main, "--model-dir", top / "run", healthy / "pics/ant/0.png"]


def weights_to_predict_with(place, healthy):
    top = place("run")
    return top / "run/learned/model.pth.tar-1", [predict.main, "--model-dir", top / "run", healthy / "pics/ant/0.png"]


def names_one_a_line(place, healthy, suffix="txt"):
    path = place(f"names.{suffix}") / f"names.{suffix}"
    return path, [predict.main, "--model-dir", healthy / "run", healthy / "pics/ant/0.png", "--classes", path]


def names_in_csv(place, healthy):
    return names_one_a_line(place, healthy, "csv")


def names_in_yaml(place, healthy):
    return names_one_a_line(place, healthy, "yaml")


def new_image(place, healthy):
    top = place("pics/ant/0.png")
    argv = [predict.main, "--model-dir", healthy / "run", top / "pics/ant/0.png", "--csv", top / "found.csv"]
    return top / "pics/ant/0.png", argv


READERS = {
    recipe: (YAML, {"empty", "twice"}),
    dataset_file: (YAML, {"empty", "twice"}),
    class_names: (YAML, {}),
    listed_images: (TEXT, {}),
    published_split: (JSON, {}),
    kept_split: (JSON, {"missing", "link to nothing", "link to itself"}),
    backbone: (BINARY, {}),
    checkpoint: (BINARY, {}),
    resume_file: (BINARY, {"missing"}),
    record_of_options: (YAML, {}),
    record_of_results: (JSON, {}),
    weights_to_predict_with: (BINARY, {}),
    names_one_a_line: (TEXT, {}),
    names_in_csv: (TEXT, {}),
    names_in_yaml: (YAML, {"list"}),
    new_image: (BINARY, {"huge", "without its end"}),  # which lacks nothing but the mark of its end
}
CASES = [
    pytest.param(reader, damage, id=f"{reader.__name__}-{format_name}".replace("_", " "))
    for reader, (format, harmless) in READERS.items()
    for format_name, damage in format.items()
    if format_name not in harmless
]


@pytest.mark.parametrize(("reader", "damage"), CASES)
def test_a_damaged_file_is_named(reader, damage, place, healthy, refused):
    path, (main, *argv) = reader(place, healthy)
    damage(path)
    shown = path.name if path.exists() else path.parent.name  # a checkpoint is looked for in its folder
    refused(main, *argv, names=[shown])
