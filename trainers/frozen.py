"""What all methods share that leave CLIP's own weights as they are and learn something beside them.

A method is one file with one subclass of FrozenCLIP. Beside what parts/trainer.py lists it writes:

    always      build               the module that learns, in fp32 on any device; None if nothing does
    sometimes   class_features_for  class features that depend on the image (CoCoOp)
                terms               the named terms of the loss
    flags       use                 whose hand-written prompts of configs/templates.yaml the method takes
                frozen_images       nothing in or before the image tower learns: training runs on cached features
                frozen_texts        nothing in or before the text tower learns

Features are fp32 and not normalised until `compare`. Savings that change no number are on for every method: texts are
encoded once per test; where the image tower has nothing to learn, training runs on the features of each epoch's views,
extracted in large batches, and views that no random transform changes are extracted only once; what no training step
runs through leaves the memory.

Notation: B images, C classes, E joint width.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from dassl.config import Config
from dassl.data.datasets import tests_on_validation

from .parts.cache import FeatureCache, TrainingLoader
from .parts.prompts import embed, encode_image, encode_text
from .parts.towers import in_microbatches
from .parts.trainer import CLIPTrainer

TEMPLATES = Path(__file__).parents[1] / "configs" / "templates.yaml"
NOT_RANDOM = {"normalize", "center_crop"}  # transforms that give the same pixels every time


# ---- hand-written prompts ------------------------------------------------------------------------------------


@cache
def _table() -> dict:
    return yaml.safe_load(TEMPLATES.read_text(encoding="utf-8"))


def prompts_of(use: str) -> dict:
    """{dataset: prompt, "default": prompt} that configs/templates.yaml has for a `use`, such as "zero_shot"."""
    own = dict(_table()["uses"][use])
    like = own.pop("like", None)
    return {**prompts_of(like), **own} if like else own


def template(dataset, use: str = "zero_shot") -> str | list[str]:
    """The prompt, with {} for the class, for a DATASET node and a `use`; a list where the table has an ensemble."""
    prompts = prompts_of(use)
    return dataset.TEMPLATE or prompts.get(dataset.NAME, prompts["default"])


def ensemble() -> list[str]:
    """The table's list of prompts whose mean feature stands for a class."""
    return _table()["ensemble"]


# ---- the trainer ---------------------------------------------------------------------------------------------


def add_options(cfg, trainer: type) -> Config:
    """TRAINER.<NAME> with the options that every subclass of FrozenCLIP has, to which it adds its own."""
    node = cfg.TRAINER[trainer.__name__.upper()] = Config()
    node.PREC = "auto"  # of the frozen CLIP: fp16 on CUDA, bf16 or fp32 on CPUs; also amp. What learns is fp32
    if trainer.frozen_images:
        node.VIEWS = 0  # augmented views of each image whose features are cached; 0: fresh ones in every epoch
    return node


class FrozenCLIP(CLIPTrainer):
    use = "zero_shot"
    frozen_images = True
    frozen_texts = False

    def __init__(self, cfg, data=None, clip_model=None):
        """clip_model: one to share with another trainer, whose part this one is (dept.py); None: load it."""
        self.clip_model = clip_model
        super().__init__(cfg, data)

    def build_model(self):
        if self.clip_model is None:
            self.load_clip()
        else:
            self.set_up()
        self.set_precision()
        learned = self.build()
        if learned is None:
            return
        self.learn(learned, self.parameter_groups(learned))
        if self.train_loader_x is not None:
            self.train_loader_x = self.training_loader()

    def training_loader(self) -> TrainingLoader:
        if not self.frozen_images:
            return TrainingLoader(self.train_loader_x, self.cfg.SEED)
        views = self.views(self.options.VIEWS)
        return FeatureCache(self.train_loader_x, self.frozen_features, views, self.cfg.SEED, needed=self.needed)

    def views(self, wanted: int) -> int:
        """`wanted`, or 1 where all views of an image are the same."""
        return 1 if set(self.cfg.INPUT.TRANSFORMS) <= NOT_RANDOM else wanted

    # ---- what a method writes --------------------------------------------------------------------------------

    def build(self) -> nn.Module | None:
        """The module that learns, in fp32 on any device; None if nothing does. `clip_model` and `classnames` exist."""
        raise NotImplementedError

    def parameter_groups(self, learned: nn.Module) -> list:
        """What the optimizer gets: parameters, or groups of them with options of their own."""
        return list(learned.parameters())

    def image_features(self, image):
        return self.encode_image(image)

    def class_features_for(self, image_features: Tensor) -> Tensor:
        """Class features (C, E), or (B, C, E) where they depend on the images with these features (B, E)."""
        return self.class_features()

    def terms(
        self, logits: Tensor, label: Tensor, image_features: Tensor, class_features: Tensor, image: Tensor
    ) -> dict[str, Tensor]:
        """The named terms of the loss, whose sum is minimised; the one called "ce" is the cross-entropy.

        Args: logits (B, C), label (B,), image_features (B, E), class_features (C, E) or (B, C, E); image: what
            `forward_backward` got, pixels (B, 3, H, W) or features (B, E).
        """
        return {"ce": F.cross_entropy(logits, label)}

    def idle_parameters(self):
        """The token embedding, as texts are embedded before, and the towers in which nothing learns."""
        modules = [self.clip_model.token_embedding]
        if self.frozen_images:
            modules.append(self.clip_model.visual)
        if self.frozen_texts:
            modules.append(self.clip_model.transformer)
        return [p for module in modules for p in module.parameters()]

    # ---- training --------------------------------------------------------------------------------------------

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        logits, terms = self.loss(image, label)
        return self.finish_step(terms, logits, label)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C) and the named terms of the loss for what `parse_batch_train` gives."""
        image_features = image if self.frozen_images else self.image_features(image)
        class_features = self.class_features_for(image_features)
        logits = self.compare(image_features, class_features)
        return logits, self.terms(logits, label, image_features, class_features, image)

    # ---- the frozen CLIP -------------------------------------------------------------------------------------

    def encode_image(self, image: Tensor, prompts: dict[int, Tensor] | None = None) -> Tensor:
        """image (B, 3, H, W) -> (B, E); `prompts` as in parts/prompts.py."""
        with self.autocast():
            return encode_image(self.clip_model.visual, image, prompts or {}).float()

    def encode_text(self, texts, prompts: dict[int, Tensor] | None = None, positions: Tensor | None = None) -> Tensor:
        """Embedded texts -> (C, E); all three as in parts/prompts.py."""
        with self.autocast():
            return encode_text(self.clip_model, texts, prompts or {}, positions).float()

    @torch.no_grad()
    def frozen_features(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) -> (N, E) by CLIP alone."""
        with self.offload.needed():
            return in_microbatches(self.encode_image, image.to(self.device, non_blocking=True))

    def validation(self) -> tuple[Tensor, Tensor] | None:
        """Features (N, E) of the validation images by CLIP alone and their labels (N,).

        None if there are none, or if the images of the test stand in for them, as in ImageNet.
        """
        if self.val_loader is None or tests_on_validation(self.dm.dataset):
            return None
        with self.offload.needed():
            batches = [(self.frozen_features(batch["img"]), batch["label"]) for batch in self.val_loader]
        features, labels = zip(*batches, strict=True)
        return torch.cat(features), torch.cat(labels).to(self.device)

    @torch.no_grad()
    def prompted(self, prompt: str) -> Tensor:
        """Frozen CLIP's features (C, E) for a hand-written prompt with {} for the class."""
        return self.encode_text(embed(self.clip_model, [prompt.format(name) for name in self.classnames]))

    def template(self) -> str | list[str]:
        """The method's hand-written prompt, with {} for the class; a list where configs/templates.yaml has several."""
        return template(self.cfg.DATASET, self.use)

    def hand_written(self) -> Tensor:
        """Frozen CLIP's features (C, E) for the method's hand-written prompt; of several the mean of unit features."""
        prompts = self.template()
        if isinstance(prompts, str):
            return self.prompted(prompts)
        features = [F.normalize(self.prompted(prompt), dim=-1) for prompt in prompts]
        return torch.stack(features).mean(dim=0)

    def ensemble_features(self) -> Tensor:
        """Mean text features (C, E) over the prompt ensemble."""
        prompts = ensemble()
        with self.offload.needed():
            return sum(self.prompted(prompt) for prompt in prompts) / len(prompts)
