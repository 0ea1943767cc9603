"""MMRL: Multi-Modal Representation Learning (Guo and Gu, CVPR 2025), and MMRL++ (the same, IJCV 2026).

K tokens R of width d, which no tower owns, are mapped into both towers: F_i^v(R) stand behind the class token and
F_i^t(R) behind the start token of every block i from J = FIRST_LAYER on. The text's mask stays causal. Two features
come from the last image block: f_c, the class token's by CLIP's own projection, and f_r, the mean of the K tokens' by a
projection that learns. With g the class features, z_c and z_r the logits of f_c and f_r, and _0 for frozen CLIP:

    L = ALPHA CE(z_c) + (1 - ALPHA) CE(z_r) + REG_WEIGHT [1 - cos(f_c, f_c0)] + REG_WEIGHT [1 - cos(g, g_0)]

R, all F_i and the projection learn. In MMRL each F_i is a linear layer and each block gets F_i(R) alone. In MMRL++ the
F_i of a tower share one matrix, to which each adds one of rank RES_LORA_DIM; the projection is CLIP's plus one of rank
PROJ_LORA_DIM; and from block J + 1 on BETA F_i(R) + (1 - BETA) r goes in, with r what came out of the block before.

READ_OUT says which logits count in a test. "told" is the released code's: z_c and z_r mixed by ALPHA where the dataset
and all classes are those of the training, z_c as soon as one is not. "class" is z_c and "both" the mixture everywhere.

Where paper and released code differ:

    option      released code                             other choice
    FUSION      "logits": ALPHA z_c + (1 - ALPHA) z_r     "probabilities": the same of their softmax, as in the paper
    PROJECTION  "random": N(0, 1 / D), since no file of   "copy": begins as CLIP's, from which MMRL++ begins, too
                CLIP has one
    REG_WEIGHT  one for each dataset (0.01 to 7)          the preset `uniform`: one for all, and READ_OUT "class"

As in the released code the maps of a tower begin alike, and one hand-written prompt serves frozen CLIP and MMRL.

The blocks before J are frozen. Texts run through them once, and images once for each view (parts/cache.py), with frozen
CLIP's class token, from which f_c0 comes. g_0 is computed once.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoint import find_checkpoint
from dassl.utils import UserError, complete, load_checkpoint

from .frozen import FrozenCLIP, add_options
from .parts.cache import FeatureCache
from .parts.compat import tokenize
from .parts.lskip import cut, shallow_image, shallow_text
from .parts.prompts import random_vectors
from .parts.towers import in_microbatches, pool_images, pool_texts, run_images, run_texts
from .parts.trainer import COUNT, SHARE, WEIGHT


def extend_cfg(cfg):
    for trainer in (MMRL, MMRLpp):
        node = add_options(cfg, trainer)
        node.N_REP_TOKENS = 5  # K
        node.REP_DIM = 512  # d
        node.FIRST_LAYER = 6  # J, counted from 1
        node.ALPHA = 0.7  # share of the class token, in the loss and in the mixture
        node.REG_WEIGHT = 1.0  # lambda
        node.READ_OUT = "told"  # or class, both
        node.FUSION = "logits"  # what the mixture mixes; or probabilities
        node.VIEWS = 0  # augmented views of each image that are cached; 0: fresh ones in every epoch
        node.CACHE_LIMIT = 2.0  # GB; cached images beyond it lie in a file in OUTPUT_DIR, mapped to memory
        node.CACHE_ON_DEVICE = 0.0  # GB; cached images up to it stay on the GPU, which is spared a copy in each step
    cfg.TRAINER.MMRL.PROJECTION = "random"  # how it begins; or copy
    node.BETA = 0.9  # share of the new tokens; the others come from the block before
    node.RES_LORA_DIM = 4  # rank of what each map adds to the shared one
    node.PROJ_LORA_DIM = 64  # rank of what the projection adds to CLIP's


class Maps(nn.Module):
    """F_i of one tower's `number` blocks, a linear layer each."""

    def __init__(self, dim: int, width: int, number: int):
        super().__init__()
        one = nn.Linear(dim, width)
        self.each = nn.ModuleList(copy.deepcopy(one) for _ in range(number))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """R (K, d) -> (K, D) for each block."""
        return [each(tokens) for each in self.each]


class SharedMaps(nn.Module):
    """F_i of one tower's `number` blocks: (W + A_i B_i) R + b_i with A_i (D, rank) and B_i (rank, d)."""

    def __init__(self, dim: int, width: int, number: int, rank: int):
        super().__init__()
        one = nn.Linear(dim, width)
        self.weight = one.weight
        self.bias = nn.Parameter(one.bias.detach().repeat(number, 1))
        self.A = random_factor(number, width, rank)
        self.B = nn.Parameter(torch.zeros(number, rank, dim))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """R (K, d) -> (K, D) for each block."""
        own = tokens @ self.B.transpose(1, 2) @ self.A.transpose(1, 2)  # (number, K, D)
        return list(tokens @ self.weight.t() + own + self.bias[:, None])


def random_factor(*shape: int) -> nn.Parameter:
    """The factor of a low-rank part that starts at random: Kaiming's uniform distribution with a = sqrt(5)."""
    bound = shape[-1] ** -0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Space(nn.Module):
    """R, its maps into both towers, and what projects the representation tokens: all that learns."""

    def __init__(self, tokens: Tensor, image: nn.Module, text: nn.Module, projection: nn.ParameterList):
        super().__init__()
        self.tokens = nn.Parameter(tokens)  # (K, d)
        self.image = image
        self.text = text
        self.projection = projection


@TRAINER_REGISTRY.register()
class MMRL(FrozenCLIP):
    limits = {
        "N_REP_TOKENS": COUNT,
        "REP_DIM": COUNT,
        "FIRST_LAYER": COUNT,
        "ALPHA": SHARE,
        "REG_WEIGHT": WEIGHT,
        "CACHE_LIMIT": WEIGHT,
        "CACHE_ON_DEVICE": WEIGHT,
    }
    choices = {
        "READ_OUT": ("told", "class", "both"),
        "FUSION": ("logits", "probabilities"),
        "PROJECTION": ("random", "copy"),
    }
    cuda_precision = "amp"
    frozen_images = False

    # ---- building --------------------------------------------------------------------------------------------

    def build(self):
        options, clip_model = self.options, self.clip_model
        towers = clip_model.visual.transformer, clip_model.transformer
        depth = min(len(tower.resblocks) for tower in towers)
        if depth < options.FIRST_LAYER:
            name = f"TRAINER.{type(self).__name__.upper()}.FIRST_LAYER"
            raise UserError(f"{name} is {options.FIRST_LAYER}: this backbone's towers have layers 1 to {depth}")
        self.trained_on = self.cfg.DATASET.NAME, self.classnames
        self.omega = options.FIRST_LAYER - 1  # blocks in front of the first tokens
        self.deep = cut(clip_model, self.omega)  # frozen CLIP's other blocks
        prompt = self.template()
        tokens = tokenize([prompt.format(name) for name in self.classnames])  # (C, 77)
        with self.autocast():
            self.texts = shallow_text(clip_model, tokens, self.omega)
        maps = (self.maps(tower.width, len(tower.resblocks) - self.omega) for tower in towers)
        tokens = random_vectors(options.N_REP_TOKENS, options.REP_DIM)
        return Space(tokens, *maps, nn.ParameterList(self.projection(clip_model.visual.proj.detach())))

    def maps(self, width: int, number: int) -> nn.Module:
        """F_i of the `number` blocks of a tower of this width."""
        return Maps(self.options.REP_DIM, width, number)

    def projection(self, proj: Tensor) -> list[Tensor]:
        """What learns of the projection of the representation tokens, given CLIP's own for the class token (D, E)."""
        random = len(proj) ** -0.5 * torch.randn(proj.shape)
        return [proj.float().clone() if self.options.PROJECTION == "copy" else random]

    def training_loader(self):
        options = self.options
        return FeatureCache(
            self.train_loader_x,
            self.encode_view,
            self.views(options.VIEWS),
            self.cfg.SEED,
            limit=options.CACHE_LIMIT * 1e9,
            folder=self.output_dir,
            on_device=options.CACHE_ON_DEVICE * 1e9,
            needed=self.needed,
        )

    def idle_parameters(self):
        """All in front of block J."""
        used = {id(p) for p in self.deep.parameters()}
        return [p for p in self.clip_model.parameters() if id(p) not in used and p.dim()]

    @torch.no_grad()
    def encode_view(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) -> (N, L + 1, D): the tokens in front of block J; frozen CLIP's class token at the end."""
        visual, blocks = self.clip_model.visual, self.deep["image_encoder"].resblocks

        def encode(part):
            x = shallow_image(visual, part, self.omega)
            return torch.cat([x, run_images(blocks, x, pool=True)], dim=1)

        with self.offload.needed(), self.autocast():
            return in_microbatches(encode, image.to(self.device, non_blocking=True))

    @torch.no_grad()
    def prepare(self):
        with self.autocast():
            self.frozen_classes = self.deep["text_encoder"](self.texts).float()  # (C, E), g_0

    # ---- both towers, with the tokens ------------------------------------------------------------------------

    def mix(self, mapped: Tensor, before: Tensor) -> Tensor:
        """What enters a block behind J, given F_i(R) and what came out of the block before: both (..., K, D)."""
        return mapped

    def project(self, x: Tensor) -> Tensor:
        """The mean representation token (B, D) -> f_r (B, E), fp32."""
        (projection,) = self.learned.projection
        return x @ projection

    def class_features(self):
        """g (C, E), of texts with the tokens behind the start token."""
        texts, count = self.texts, self.options.N_REP_TOKENS
        blocks, each = self.deep["text_encoder"].resblocks, self.learned.text(self.learned.tokens)
        with self.autocast():
            for i, (block, mapped) in enumerate(zip(blocks, each, strict=True)):
                start, rest, mapped = texts.prefix[:1], texts.prefix[1:], mapped.to(texts.prefix)
                if i:
                    mapped, rest = self.mix(mapped, rest[:count]), rest[count:]
                texts = texts._replace(prefix=torch.cat([start, mapped, rest]))
                texts = run_texts([block], texts, pool=i + 1 == len(blocks))
            return pool_texts(self.clip_model, texts).float()

    def image_features(self, image):
        with self.autocast():
            return self.deep_image(shallow_image(self.clip_model.visual, image, self.omega))

    def deep_image(self, x: Tensor) -> Tensor:
        """x (B, L, D) in front of block J -> f_c and f_r, (B, 2, E), fp32."""
        visual, count = self.clip_model.visual, self.options.N_REP_TOKENS
        blocks, each = self.deep["image_encoder"].resblocks, self.learned.image(self.learned.tokens)
        with self.autocast():
            for i, (block, mapped) in enumerate(zip(blocks, each, strict=True)):
                first, rest, mapped = x[:, :1], x[:, 1:], mapped.to(x).expand(len(x), -1, -1)
                if i:
                    mapped, rest = self.mix(mapped, rest[:, :count]), rest[:, count:]
                last = i + 1 == len(blocks)
                x = run_images([block], torch.cat([first, mapped, rest], dim=1), pool=1 + count if last else 0)
            own, tokens = pool_images(visual, x).float(), visual.ln_post(x[:, 1:]).float()
        return torch.stack([own, self.project(tokens.mean(dim=1))], dim=1)

    # ---- loss and read-out -----------------------------------------------------------------------------------

    def both_logits(self, image_features: Tensor, class_features: Tensor) -> list[Tensor]:
        """z_c and z_r, (B, C) each."""
        return [super(MMRL, self).compare(features, class_features) for features in image_features.unbind(1)]

    def fuse(self, own: Tensor, rep: Tensor) -> Tensor:
        """The mixture of z_c and z_r (B, C)."""
        alpha = self.options.ALPHA
        if self.options.FUSION == "logits":
            return alpha * own + (1 - alpha) * rep
        shares = [math.log(share) if share else -math.inf for share in (alpha, 1 - alpha)]
        return torch.logaddexp(own.log_softmax(dim=-1) + shares[0], rep.log_softmax(dim=-1) + shares[1])

    def compare(self, image_features, class_features):
        own, rep = self.both_logits(image_features, class_features)
        dataset, names = self.trained_on
        known = dataset == self.cfg.DATASET.NAME and set(self.classnames) <= set(names)
        both = {"told": known, "class": False, "both": True}[self.options.READ_OUT]
        return self.fuse(own, rep) if both else own

    def loss(self, image, label):
        """image: what `encode_view` gives."""
        alpha, weight = self.options.ALPHA, self.options.REG_WEIGHT
        with self.autocast():
            frozen = pool_images(self.clip_model.visual, image[:, -1:]).float()  # (B, E), f_c0
        image_features, class_features = self.deep_image(image[:, :-1]), self.class_features()
        own, rep = self.both_logits(image_features, class_features)
        image_distance = 1 - F.cosine_similarity(image_features[:, 0], frozen).mean()
        text_distance = 1 - F.cosine_similarity(class_features, self.frozen_classes).mean()
        terms = {
            "ce": alpha * F.cross_entropy(own, label) + (1 - alpha) * F.cross_entropy(rep, label),
            "image": weight * image_distance,
            "text": weight * text_distance,
        }
        return self.fuse(own, rep), terms

    def load_model(self, directory, epoch=None):
        if directory:
            path = find_checkpoint(directory, self.model_name, epoch)
            checkpoint = load_checkpoint(path)
            with complete(path, "choose another --model-dir"):
                meta = checkpoint["meta"]
                self.trained_on = meta["dataset"], [name.replace("_", " ") for name in meta["classnames"]]
        super().load_model(directory, epoch=epoch)


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    limits = {**MMRL.limits, "BETA": SHARE, "RES_LORA_DIM": COUNT, "PROJ_LORA_DIM": COUNT}
    choices = {key: MMRL.choices[key] for key in ("READ_OUT", "FUSION")}

    def maps(self, width, number):
        return SharedMaps(self.options.REP_DIM, width, number, self.options.RES_LORA_DIM)

    def projection(self, proj):
        (width, features), rank = proj.shape, self.options.PROJ_LORA_DIM
        return [random_factor(width, rank), torch.zeros(rank, features)]

    def mix(self, mapped, before):
        beta = self.options.BETA
        return beta * mapped + (1 - beta) * before

    def project(self, x):
        a, b = self.learned.projection
        return x @ self.clip_model.visual.proj.float() + x @ a @ b
