"""Models of other makers, small and random, as their own packages build and write them."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip.origins import PIXEL_MEAN, PIXEL_STD

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
MODELS = {  # open_clip's configurations with two blocks a tower; narrow ones keep head width and MLP ratio
    "ViT-B-16": (32, {"width": 128, "patch_size": 16}, TEXT, False),
    "ViT-B-16-quickgelu": (32, {"width": 128, "patch_size": 16}, TEXT, True),
    "ViT-H-14": (48, {"width": 160, "patch_size": 14, "head_width": 80}, TEXT, False),
    "ViT-bigG-14": (40, {"width": 208, "patch_size": 14, "head_width": 104, "mlp_ratio": 4.9231}, TEXT, False),
}


class Made:
    """A model of open_clip's with its configuration."""

    def __init__(self, embed_dim, vision, text, quick_gelu, mean=PIXEL_MEAN, std=PIXEL_STD):
        vision = {"image_size": 2 * vision["patch_size"], "layers": 2} | vision
        self.config = {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}
        if quick_gelu:
            self.config["quick_gelu"] = True
        self.pixels = {"mean": list(mean), "std": list(std), "interpolation": "bicubic", "resize_mode": "shortest"}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.model = open_clip.model.CLIP(**self.config).eval()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))

    def write(self, folder, name="open_clip_model.safetensors"):
        """The folder as open_clip writes it for the Hub."""
        folder.mkdir(parents=True, exist_ok=True)
        configuration = {"model_cfg": self.config, "preprocess_cfg": self.pixels}
        (folder / "open_clip_config.json").write_text(json.dumps(configuration))
        weights = {key: value.contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, folder / name) if name.endswith("safetensors") else torch.save(weights, folder / name)
        return folder


@pytest.fixture(scope="session")
def made():
    """made(name) -> Made, one of MODELS, each made once."""
    models = {}

    def make(name):
        if name not in models:
            models[name] = Made(*MODELS[name])
        return models[name]

    return make


@pytest.fixture(params=MODELS)
def theirs(request, made):
    """Each of MODELS in turn."""
    return made(request.param)
