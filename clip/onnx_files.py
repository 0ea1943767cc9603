"""Image towers as ONNX, which onnxruntime runs without PyTorch, and the script that classifies images with one.

torch.onnx.export keeps a batch dimension free only if it is named by a string and the example holds more than one
image; any other way gives a model that says it is free and fails, or one that is fixed (seen with torch 2.14.1). So
what was written is run at several batch sizes before it is believed.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import WeightsError
from .origins import Facts

BATCHES = (1, 2, 7, 64)
TOLERANCE = 1e-4
LARGEST = 1_500_000_000  # bytes of weights that one .onnx file holds; more lie beside it


class Outputs(nn.Module):
    """A function of images (N, 3, H, W) with the modules whose weights it uses, so that the exporter finds them."""

    def __init__(self, function: Callable[[Tensor], Tensor], *modules: nn.Module):
        super().__init__()
        self.function = function
        self.modules_used = nn.ModuleList(modules)

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image)


def check_packages() -> None:
    """WeightsError, naming what to install, unless ONNX files can be written and run here."""
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise WeightsError(f"ONNX needs the packages {', '.join(missing)}: pip install {' '.join(missing)}")


def write_onnx(module: nn.Module, image_size: int, path: Path, output: str) -> None:
    """Writes `module`, images (N, 3, n, n) float32 -> `output` (N, ...), with any N.

    Raises WeightsError for a module that PyTorch can't turn into ONNX.
    """
    module.eval()
    size = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.zeros(2, 3, image_size, image_size),),
                str(path),
                dynamo=True,
                input_names=["image"],
                output_names=[output],
                dynamic_shapes=({0: "batch"},),
                external_data=size > LARGEST,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # its own, with a page of advice
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise WeightsError(f"PyTorch can't write {path.name} ({cause}): nothing was exported") from error


def verify_onnx(path: Path, function: Callable[[Tensor], Tensor], image_size: int) -> float:
    """The largest difference from `function` (images -> outputs) over batches of noise of several sizes.

    Raises WeightsError where it is above TOLERANCE or the most probable class of an image is another one.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for number in BATCHES:
        image = torch.randn(number, 3, image_size, image_size, generator=torch.Generator().manual_seed(number))
        try:
            found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise WeightsError(
                f"{path.name} fails with a batch of {number} ({reason}): nothing was exported"
            ) from error
        with torch.no_grad():
            expected = function(image)
        difference = float((found - expected).abs().max())
        if not difference < TOLERANCE or not torch.equal(found.argmax(-1), expected.argmax(-1)):
            raise WeightsError(f"{path.name} differs by {difference:.1g} from the run's model: nothing was exported")
        largest = max(largest, difference)
    return largest


@contextlib.contextmanager
def _quiet():
    """The exporter tells of its progress on all channels."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def classify_script(facts: Facts, interpolation: str) -> str:
    """A script that names the class of images by classifier.onnx and classes.txt beside it."""
    size = facts.image_size
    return f'''"""python classify.py image.png ...: the most probable class of each image."""
import sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, n = Path(__file__).parent, {size}
mean, std = np.float32({list(facts.mean)}), np.float32({list(facts.std)})
classes = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
session = onnxruntime.InferenceSession(str(folder / "classifier.onnx"), providers=["CPUExecutionProvider"])
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray(np.uint8(np.round(np.asarray(image) / 257)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    width, height = {_resized(facts)}
    left, top = round((width - n) / 2), round((height - n) / 2)
    image = image.resize((width, height), Image.Resampling.{interpolation.upper()}).crop((left, top, left + n, top + n))
    pixels = (np.float32(image) / 255 - mean) / std
    logits = session.run(None, {{"image": pixels.transpose(2, 0, 1)[None]}})[0][0]
    print(path, classes[logits.argmax()], f"{{1 / np.exp(logits - logits.max()).sum():.4f}}")
'''


def _resized(facts):
    if facts.resize == "squash":
        return "n, n"
    return "(side * n // min(image.size) for side in image.size)"
