"""CLIP-LoRA: Low-Rank Few-Shot Adaptation of Vision-Language Models (Zanella and Ben Ayed, CVPR Workshops 2024).

In every block of both towers the projections to queries, keys and values become W x + GAMMA B A dropout(x), with A (R,
D), B (D, R) and dropout masks of their own for each of the three. Output projections and MLPs stay as they are. A and B
learn by cross-entropy with all classes. B starts from 0, so training starts from zero-shot CLIP. New classes are tested
with the same weights.

As in the released code GAMMA = ALPHA / sqrt(R), where LoRA has ALPHA / R, all datasets have one prompt, and a run has
500 steps for each shot, here in whole epochs (OPTIM.STEPS_PER_SHOT). The cosine goes to 0, there to 1e-6. Tokens with
which all texts begin run once, so under dropout the classes share their masks there.

Weights also go to and come from `peft`'s file format, as adapter of transformers' CLIPModel with the same backbone
("openai/clip-vit-base-patch16" and its like), whose towers have q_proj, k_proj and v_proj. A run leaves them in the
folder `peft`, in which "use_rslora" says GAMMA; any folder like it, whatever its scale, serves as --model-dir.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from clip.files import read_file
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError, complete, read_json, write_atomic, write_json
from dassl.utils.download import file_hash

from .frozen import FrozenCLIP, add_options
from .parts.prompts import embed
from .parts.towers import embed_images, pool_images, pool_texts, run_images, run_texts
from .parts.trainer import COUNT, POSITIVE, Limits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's names
PROJECTIONS = ("q_proj", "k_proj", "v_proj")  # transformers' names, in the order of OpenAI's packed weight


def extend_cfg(cfg):
    node = add_options(cfg, CLIPLoRA)
    node.R = 2  # rank
    node.ALPHA = 1.0  # the low-rank part counts ALPHA / sqrt(R)
    node.DROPOUT = 0.25  # of that part's input


class LowRank(nn.Module):
    """What one attention layer adds to its projections; the first dimension of A and B is q, k, v."""

    def __init__(self, width, options):
        super().__init__()
        bound = width**-0.5  # Kaiming's uniform distribution with a = sqrt(5)
        self.A = nn.Parameter(torch.empty(3, options.R, width).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.zeros(3, width, options.R))
        self.gamma = options.ALPHA / math.sqrt(options.R)
        self.dropout = options.DROPOUT

    def forward(self, x, parts):
        """Rows x (T, D) -> GAMMA B A dropout(x) for n `parts` of q, k, v: (T, n D)."""
        a, b = (weight[parts].transpose(1, 2).to(x.dtype) for weight in (self.A, self.B))  # (n, D, R), (n, R, D)
        x = F.dropout(x.expand(len(a), -1, -1), self.dropout, self.training)
        return self.gamma * (x @ a @ b).transpose(0, 1).flatten(1)

    def merged(self):
        """What the layer's packed weight gets when the low-rank part becomes part of it: (3 D, D)."""
        return (self.gamma * self.B @ self.A).flatten(0, 1)


@TRAINER_REGISTRY.register()
class CLIPLoRA(FrozenCLIP):
    use = "clip_lora"
    limits = {"R": COUNT, "ALPHA": POSITIVE, "DROPOUT": Limits(0, 0.999)}
    fixed = ("ALPHA",)
    frozen_images = False
    per_step = True

    def build(self):
        prompt = self.template()
        self.texts = embed(self.clip_model, [prompt.format(name) for name in self.classnames])
        return nn.ModuleDict(
            {
                name: nn.ModuleList(LowRank(tower.width, self.options) for _ in tower.resblocks)
                for name, tower in self.towers(self.clip_model).items()
            }
        )

    def towers(self, clip_model):
        return {"text": clip_model.transformer, "image": clip_model.visual.transformer}

    def class_features(self):
        clip_model = self.clip_model
        with self.autocast():
            texts = run_texts(clip_model.transformer.resblocks, self.texts, pool=True, extras=self.learned["text"])
            return pool_texts(clip_model, texts).float()

    def image_features(self, image):
        visual = self.clip_model.visual
        with self.autocast(), torch.no_grad():
            x = embed_images(visual, image)
        with self.autocast():
            x = run_images(visual.transformer.resblocks, x, pool=True, extras=self.learned["image"])
            return pool_images(visual, x).float()

    @torch.no_grad()
    def tuned_clip(self):
        """A copy of CLIP with the low-rank parts merged into its weights, fp32, on the CPU."""
        clip_model = self.clip_copy()
        for name, tower in self.towers(clip_model).items():
            for block, low_rank in zip(tower.resblocks, self.learned[name], strict=True):
                block.attn.in_proj_weight += low_rank.merged().float().cpu()
        return clip_model

    # peft's format

    def peft_weights(self):
        """{peft's name: (layer, which of q, k, v)} without the end that tells A and B apart."""
        return {
            f"base_model.model.{tower}_model.encoder.layers.{i}.self_attn.{projection}": (layer, part)
            for tower, layers in (("text", self.learned["text"]), ("vision", self.learned["image"]))
            for i, layer in enumerate(layers)
            for part, projection in enumerate(PROJECTIONS)
        }

    def save_peft(self, folder):
        """Write peft's two files to `folder`."""
        options = self.options
        weights = {}
        for name, (layer, part) in self.peft_weights().items():
            weights[f"{name}.lora_A.weight"] = layer.A[part].detach().cpu().contiguous()  # (R, D)
            weights[f"{name}.lora_B.weight"] = layer.B[part].detach().cpu().contiguous()  # (D, R)
        config = {"peft_type": "LORA", "r": options.R, "lora_alpha": options.ALPHA, "use_rslora": True, "bias": "none"}
        config |= {"lora_dropout": options.DROPOUT, "target_modules": list(PROJECTIONS), "inference_mode": True}
        Path(folder).mkdir(exist_ok=True)
        write_json(config, Path(folder, CONFIG))
        write_atomic(Path(folder, WEIGHTS), save(weights, {"format": "pt"}))

    @torch.no_grad()
    def load_peft(self, folder):
        """Take the weights from peft's files in `folder`; what they don't adapt is left without a low-rank part.

        Errors: UserError for anything but plain low-rank parts of rank R for queries, keys and values.
        """
        scale = self.peft_scale(Path(folder, CONFIG))
        weights = read_file(Path(folder, WEIGHTS), {}, file_hash).weights
        for name, (layer, part) in self.peft_weights().items():
            layer.B[part] = 0
            a, b = (weights.pop(f"{name}.lora_{half}.weight", None) for half in "AB")
            if a is not None and b is not None:
                if (a.shape, b.shape) != (layer.A[part].shape, layer.B[part].shape):
                    raise UserError(f"{folder} has {name} of another size: it is for another backbone; set that")
                layer.A[part] = a
                layer.B[part] = b * (scale / layer.gamma)
        if weights:
            raise UserError(f"{folder} adapts {next(iter(weights))}: only q_proj, k_proj and v_proj can be here")

    def peft_scale(self, path):
        """What the low-rank parts count by peft's configuration in the file `path`; UserError for other kinds."""
        config = read_json(path)
        with complete(path, "name another --model-dir"):
            odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern") if config.get(key)]
            if config["peft_type"] != "LORA" or odd:
                kind = odd[0] if odd else f"peft_type {config['peft_type']}"
                raise UserError(f'"{path}" has {kind}: only plain LORA can be loaded; name another --model-dir')
            if config["r"] != self.options.R:
                raise UserError(f'"{path}" has r {config["r"]!r}: set TRAINER.CLIPLORA.R to it')
            alpha = config.get("lora_alpha", 8)  # peft's default
            if not POSITIVE.hold(alpha) or not math.isfinite(alpha):
                raise ValueError(f"lora_alpha {alpha!r}")
            return alpha / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])

    def after_train(self):
        super().after_train()  # which may load the best epoch
        self.save_peft(Path(self.output_dir, "peft"))

    def load_model(self, directory, epoch=None):
        if directory and Path(directory, CONFIG).exists():
            self.load_peft(directory)
            print(f"Load {directory}, in peft's format")
        else:
            super().load_model(directory, epoch=epoch)
