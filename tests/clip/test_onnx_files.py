"""The script that classifies images with ONNX: what it feeds the network. tests/test_export.py runs the network."""

import runpy
import sys
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

import clip
from clip.onnx_files import classify_script
from dassl.utils import read_image


def test_the_script_sees_images_as_predict_does(tmp_path, monkeypatch):
    """Photographs that lie on their side, transparent ones, ones with 16 bits."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (48, 80, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colours[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(colours).save(tmp_path / "alpha.png")
    Image.fromarray(random.integers(0, 65536, (48, 80), dtype=np.uint16)).save(tmp_path / "deep.png")
    paths, seen = sorted(map(str, tmp_path.iterdir())), []

    class Session:
        def __init__(self, *_, **__):
            pass

        def run(self, _, given):
            seen.append(given["image"][0])
            return [np.zeros((1, 1))]

    (tmp_path / "classes.txt").write_text("x\n")
    facts = clip.facts("ViT-XS/16-icons")
    (tmp_path / "classify.py").write_text(classify_script(facts, "bicubic"))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(sys, "argv", ["classify.py", *paths])
    runpy.run_path(str(tmp_path / "classify.py"))
    transform = clip.clip._transform(facts.image_size, facts.mean, facts.std)
    for path, found in zip(paths, seen, strict=True):
        expected = transform(read_image(path, exif_transpose=True))
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
