"""CoPrompt: Consistency-guided Prompt Learning (Roy and Etemad, ICLR 2024).

MaPLe's coupled prompts, and an adapter behind each tower: f' = IMAGE_SHARE A(f) + (1 - IMAGE_SHARE) f with A(f) =
ReLU(W_2 ReLU(W_1 f)), features not normalised; the same for text (Sec. 3.2). Both are held close to frozen CLIP under
other words and another view: L = CE + LAMBDA [mean_c (1 - cos(g_c, h_c)) + mean_i (1 - cos(f(x1_i), f_zs(x2_i)))] with
x1 and x2 two views of the image and h_c a sentence about class c that a language model wrote. Prompts and adapters
learn, and serve new classes and other datasets.

As in the released code one random number of a sentence is drawn for a step and all classes, the shares are 0.1 and
0.2, and RandAugment makes the views (torchvision's here, Dassl's there). The sentences come with that code: they are
read from a JSON file that the user names. Without one h_c is the mean of 60 hand-written prompts, as PromptSRC's, a
weaker teacher than the paper's; the log says so. Across datasets the released code takes the target's number and depth
of prompts, which do not fit the checkpoint; the recipes here keep ImageNet's.
"""

import torch
import torch.nn.functional as F
from torch import nn

from clip import clip
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import MissingFile, UserError, read_json

from .clip_adapter import Adapter
from .frozen import FrozenCLIP, add_options
from .maple import CoupledPrompts
from .parts.prompts import embed
from .parts.trainer import COUNT, SHARE, WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, CoPrompt)
    node.N_CTX = 2  # vectors in front of each block
    node.CTX_INIT = "a photo of a"  # the prompt's words, from the first of which the first vectors start
    node.PROMPT_DEPTH = 9  # blocks that get vectors of their own
    node.LAMBDA = 1.0  # weight of the consistency
    node.IMAGE_SHARE = 0.1  # of the adapted features
    node.TEXT_SHARE = 0.2
    node.SENTENCES = ""  # JSON file {class name: [sentence, ...]}, as many for each class; "": 60 templates


def read_sentences(path, names):
    """The sentences of each of `names` in a JSON file.

    Errors: UserError (MissingFile) if it hasn't got as many for each, none of more than 77 tokens.
    """
    try:
        table = {name.replace("_", " "): sentences for name, sentences in read_json(path).items()}
        if not all(isinstance(sentences, list) for sentences in table.values()):
            raise ValueError("each class has a list")
    except FileNotFoundError:
        raise MissingFile(f'No file "{path}": correct TRAINER.COPROMPT.SENTENCES, or leave it out') from None
    except (ValueError, AttributeError) as error:
        raise UserError(f'"{path}" must hold JSON like {{"cat": ["A cat has whiskers."]}}: {error}') from error
    missing = [name for name in names if not table.get(name)]
    if missing:
        raise UserError(f'"{path}" has no sentences for {len(missing)} of {len(names)} classes: add {missing[0]!r} ...')
    found = [table[name] for name in names]
    if len(set(map(len, found))) > 1:
        fewest = min(map(len, found))
        raise UserError(f'"{path}" must have equally many sentences for each class: cut all lists to {fewest}')
    for name, sentences in zip(names, found, strict=True):
        try:
            clip.tokenize(sentences)
        except RuntimeError as error:
            raise UserError(f'"{path}", {name!r}: shorten the sentence. {error} tokens') from error
    return found


@TRAINER_REGISTRY.register()
class CoPrompt(FrozenCLIP):
    limits = {"N_CTX": COUNT, "PROMPT_DEPTH": COUNT, "LAMBDA": WEIGHT, "IMAGE_SHARE": SHARE, "TEXT_SHARE": SHARE}
    fixed = ("CTX_INIT", "IMAGE_SHARE", "TEXT_SHARE")
    frozen_images = False
    views_in_batch = 2

    def build(self):
        width = self.clip_model.visual.output_dim
        prompts = CoupledPrompts(self.clip_model, self.classnames, self.options)
        return nn.ModuleDict({"prompts": prompts, "image": Adapter(width, 4), "text": Adapter(width, 4)})

    def prepare(self):
        self.sentences = self.sentence_features()  # (S, C, E)

    def sentence_features(self):
        """Frozen features of each class's sentences: (S, C, E)."""
        path = self.options.SENTENCES
        if not path:
            print("No TRAINER.COPROMPT.SENTENCES: the mean of 60 templates stands in for sentences of the classes")
            return self.ensemble_features()[None]
        sentences = zip(*read_sentences(path, self.classnames), strict=True)
        with torch.no_grad(), self.offload.needed():
            return torch.stack([self.encode_text(embed(self.clip_model, each)) for each in sentences])

    def class_features(self):
        x, share = self.encode_text(*self.learned["prompts"].text.prompts()), self.options.TEXT_SHARE
        return share * self.learned["text"](x) + (1 - share) * x

    def image_features(self, image):
        x, share = self.encode_image(image, self.learned["prompts"].image()), self.options.IMAGE_SHARE
        return share * self.learned["image"](x) + (1 - share) * x

    def parse_batch_train(self, batch):
        """Two views of the images (2, B, 3, H, W), labels (B,)."""
        return super().parse_batch_train({**batch, "img": torch.stack(batch["img"])})

    def loss(self, image, label):
        """image (2, B, 3, H, W): the prompted towers see the first view, frozen CLIP the second."""
        image_features, class_features = self.image_features(image[0]), self.class_features()
        with torch.no_grad():
            frozen = self.encode_image(image[1])  # (B, E)
        sentences = self.sentences[torch.randint(len(self.sentences), ())]  # (C, E)
        text_distance = 1 - F.cosine_similarity(class_features, sentences).mean()
        image_distance = 1 - F.cosine_similarity(image_features, frozen).mean()
        logits = self.compare(image_features, class_features)
        consistency = self.options.LAMBDA * (text_distance + image_distance)
        return logits, {"ce": F.cross_entropy(logits, label), "consistency": consistency}
