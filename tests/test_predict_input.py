"""predict.py where something is odd: numbers that aren't finite, devices, other consoles, names in a CSV file.

The trainer is a stand-in; tests/test_predict.py has real ones.
"""

import io
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train
from dassl.config import get_cfg_default
from dassl.data import ClassNames


class Brightness:
    """Class 0 is dark, the last is bright: logits are the mean pixel at the front and the end."""

    def __init__(self, names):
        self.dm = SimpleNamespace(dataset=ClassNames(names).dataset)
        self.cfg = get_cfg_default()
        self.cfg.INPUT.SIZE = (8, 8)
        self.value = 1.0

    def set_model_mode(self, mode):
        assert mode == "eval"

    def class_features(self):
        return torch.linspace(-self.value, self.value, len(self.dm.dataset.classnames))[:, None]

    def logits(self, images, class_features):
        return (images.mean(dim=(1, 2, 3))[:, None] - 0.5) @ class_features.t()


@pytest.fixture
def trainer(monkeypatch):
    """The stand-in that load_trainer returns; `asked` holds what it was asked for."""
    made = Brightness(["night", "日本語"])

    def load_trainer(folder, classnames=None, device="auto", options=()):
        made.asked = SimpleNamespace(folder=folder, classnames=classnames, device=device, options=options)
        if classnames:
            made.dm.dataset = ClassNames(classnames).dataset
        return made

    monkeypatch.setattr(train, "load_trainer", load_trainer)
    return made


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (8, 8), (250, 250, 250)).save(tmp_path / "white.png")
    return tmp_path / "white.png"


def run(*argv):
    return predict.main(["--model-dir", "run", *map(str, argv)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error_and_nothing_is_written(value, trainer, image, tmp_path, capsys):
    trainer.value = value
    assert run(image, "--csv", tmp_path / "found.csv") == 1
    captured = capsys.readouterr()
    assert "Error: The model's logits are infinite or not a number" in captured.err
    assert captured.out == "" and not (tmp_path / "found.csv").exists()


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_only_a_regular_file_is_ever_replaced(flag, trainer, image, tmp_path, capsys):
    for odd in ("/dev/full", "/dev/null", tmp_path):
        assert run(image, flag, odd, "--force") == 1
        assert f"{odd} exists; name another file: it is a folder or a device" in capsys.readouterr().err
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert run(image, flag, tmp_path / "link", "--force") == 0
    assert (tmp_path / "link").is_symlink() and "white.png" in (tmp_path / "real").read_text()


def test_two_outputs_are_two_files(trainer, image, tmp_path, capsys):
    assert run(image, "--csv", tmp_path / "a", "--json", tmp_path / "b" / ".." / "a") == 1
    assert "--csv and --json both name" in capsys.readouterr().err


def test_a_tilde_stands_for_the_home_folder_in_every_path(trainer, image, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    (tmp_path / "names.txt").write_text("a\nb\n")
    argv = ["--model-dir=~/run", "--classes=~/names.txt", "--json=~/found.json", "~/white.png", "~/*.png"]
    assert predict.main(argv) == 0
    assert [each["path"] for each in json.loads((tmp_path / "found.json").read_text())["images"]] == [str(image)]
    assert trainer.asked.folder == str(tmp_path / "run") and trainer.asked.classnames == ["a", "b"]


@pytest.mark.parametrize(
    "text, names",
    [
        ("a,1\nb,2\n", ["a", "b"]),
        ("a\n\nb\n", ["a", "b"]),
        ("id,class\n1, red fox \n2,owl\n", ["red fox", "owl"]),
        ('\ufeffname;x,NAME\r\n1,"b, c"\r\n2,d\r\n', ["b, c", "d"]),
    ],
)
def test_class_names_may_come_from_a_csv_file(text, names, trainer, image, tmp_path):
    (tmp_path / "names.csv").write_text(text)
    assert run(image, "--classes", tmp_path / "names.csv") == 0
    assert trainer.asked.classnames == names


@pytest.mark.parametrize("template", ["a photo", "", "{x}", "{} and {}", "a {", "a }", "{0}", "{!r}", "{:d}"])
def test_a_template_has_one_place_for_the_name(template, trainer, image, capsys):
    assert run(image, f"--template={template}") == 1
    assert f"--template is {template!r}: it needs {{}} where the class name goes, once" in capsys.readouterr().err
    assert run(image, "--template={}") == 0
    assert trainer.asked.options == ["DATASET.TEMPLATE", "{}"]


def test_a_console_that_cannot_show_a_class_name_shows_its_number(trainer, image, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    assert run(image, "--top", 1) == 0
    assert written.getvalue().decode("ascii").endswith("  \\u65e5\\u672c\\u8a9e\n")


def test_a_file_name_that_is_no_utf_8_is_predicted_and_printed(trainer, image, tmp_path, capfdbinary):
    odd = tmp_path / b"caf\xe9.png".decode(errors="surrogateescape")
    image.rename(odd)
    assert run(tmp_path, "--top", 1) == 0
    assert b"caf\\udce9.png" in capfdbinary.readouterr().out
    assert run(tmp_path, "--csv", tmp_path / "found.csv") == 0
    assert b"caf\xe9.png,1," in (tmp_path / "found.csv").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "link to nowhere"])
def test_what_is_no_file_is_no_image(kind, trainer, tmp_path, capsys):
    path = tmp_path / "odd.png"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/nowhere")
    assert run(path) == 1
    assert f"No images at {path}" in capsys.readouterr().err


def test_images_are_taken_in_batches_and_broken_ones_do_not_shift_the_others(trainer, tmp_path, capsys):
    for i in range(5):
        Image.new("RGB", (8, 8), (250 * (i % 2),) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    assert run(tmp_path, "--batch-size", 2, "--top", 1) == 1
    captured = capsys.readouterr()
    best = dict(zip(captured.out.splitlines()[::2], captured.out.splitlines()[1::2], strict=True))
    assert [best[f"{tmp_path}/{i}.png"].split()[1] for i in (0, 1, 3, 4)] == ["night", "日本語", "日本語", "night"]
    assert "2.png" in captured.err and len(best) == 4


def shown(path, trainer):
    """What the model sees of one image: (3, 8, 8)."""
    seen = []
    trainer.logits = lambda images, class_features: seen.append(images) or torch.zeros(len(images), 2)
    probabilities, broken = predict.predict(trainer, [path], 1)
    assert probabilities.tolist() == [[0.5, 0.5]] and not broken
    return seen[0][0]


def test_a_photograph_is_turned_as_its_exif_orientation_says(trainer, tmp_path):
    upright = Image.new("RGB", (8, 8), "white")
    upright.paste("black", (0, 0, 8, 4))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert shown(tmp_path / "photo.png", trainer).equal(shown(tmp_path / "upright.png", trainer))


def test_a_transparent_icon_lies_on_white(trainer, tmp_path):
    icon = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    icon.paste((0, 0, 0, 255), (2, 2, 6, 6))
    icon.save(tmp_path / "icon.png")
    pixels = shown(tmp_path / "icon.png", trainer)
    assert pixels[:, 0, 0].tolist() == [1, 1, 1] and pixels[:, 4, 4].tolist() == [0, 0, 0]


def test_gray_of_16_bits_is_scaled_not_clipped(trainer, tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "gray.png")
    pixels = shown(tmp_path / "gray.png", trainer)
    assert torch.allclose(pixels[0], torch.from_numpy(ramp / 65535).float(), atol=1 / 255)
