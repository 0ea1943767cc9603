"""LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP (Huang et al., CVPR 2024).

A linear probe that blends in the texts, on unit features f of the images and t_c of the hand-written prompts:

    logits_c = f w_c + b_c + alpha_c f t_c

w, b and alpha (C,) learn by cross-entropy on all training images at once; what they start from and their step sizes
follow from the features F (N, E), so nothing is searched:

    w_c      starts as the sum of the class's features, b as 0; steps of 4 N / lambda_max(F^T F), with momentum
    alpha    starts for all classes as START times the mean of f t_c; every ALPHA_STEPS steps it moves by
             N / (4 max_c sum_i (f_i t_c)^2) times its gradient

OPTIM.LR counts in these sizes. Classes that w has no row for, new ones or another dataset's, get alpha's mean times
f t_c, which ranks them as CLIP does.

Two things of the released code are options: GRADIENT "sum", its gradient of alpha is never set to zero, so alpha moves
by the sum of all gradients so far; and KEEP "best_val", of all epochs it tests the one with the most validation images
right, the last of equals. As released, features are those of one augmented view of each image (VIEWS 1). There b
starts at random.
"""

import torch
import torch.nn.functional as F
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .frozen import FrozenCLIP, add_options
from .parts.class_rows import columns, make_room
from .parts.trainer import COUNT, WEIGHT


def extend_cfg(cfg):
    node = add_options(cfg, LPpp)
    node.VIEWS = 1
    node.START = 250.0  # alpha's start over the mean of f t_c
    node.ALPHA_STEPS = 10  # alpha moves once in so many steps
    node.GRADIENT = "step"  # that alpha moves by: the last step's, or the sum of all so far
    node.KEEP = "last"  # which epoch's weights are kept: the last, or the best on the validation images


class Probe(nn.Module):
    """w (C, E), b (C,) and alpha (C,); zero-shot CLIP, until training starts."""

    def __init__(self, num_classes, width, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, width))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.alpha = nn.Parameter(torch.full((num_classes,), float(scale)))


@TRAINER_REGISTRY.register()
class LPpp(FrozenCLIP):
    limits = {"START": WEIGHT, "ALPHA_STEPS": COUNT}
    choices = {"GRADIENT": ("step", "sum"), "KEEP": ("last", "best_val")}
    frozen_texts = True
    use = "tip_adapter"
    scaled = ()  # no gradient runs through what PREC rounds
    scale = None  # alpha takes its place, for each class one of its own

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.OPTIM.WARMUP_EPOCH > 0:
            raise UserError("LPpp has step sizes of its own and no warm-up: set OPTIM.WARMUP_EPOCH -1")

    def build(self):
        self.text_features = F.normalize(self.hand_written(), dim=-1)  # (C, E), t
        self.trained = self.classnames  # the classes that w, b and alpha have rows for
        self.gradient = torch.zeros(len(self.classnames), device=self.device)  # alpha's, the sum of those so far
        self.best, self.kept = -1, {}  # most validation images right so far, and the weights of then
        return Probe(*self.text_features.shape, super().scale)

    def parameter_groups(self, learned):
        return [{"params": [learned.weight, learned.bias]}, {"params": [learned.alpha], "momentum": 0.0}]

    def class_features(self):
        return self.text_features

    def compare(self, image_features, class_features):
        f = F.normalize(image_features, dim=-1)
        weight, bias, alpha = self.rows()
        return f @ weight.t() + bias + alpha * (f @ class_features.t())

    def rows(self):
        """w (C, E), b (C,) and alpha (C,) of the classes that are asked for."""
        learned = self.learned
        if self.classnames == self.trained:
            return learned.weight, learned.bias, learned.alpha
        place = torch.tensor(columns(self.classnames, self.trained), device=self.device)
        known = place >= 0
        weight, bias = learned.weight[place] * known[:, None], learned.bias[place] * known
        return weight, bias, torch.where(known, learned.alpha[place], learned.alpha.mean())

    # ---- training --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self):
        if self.start_epoch == 0:
            self.start()
        self.validated = self.validation() if self.options.KEEP == "best_val" else None
        if self.options.KEEP == "best_val" and self.validated is None:
            print("No validation images: the last epoch's weights are kept")

    def start(self):
        """Where w and alpha start from, and the sizes of their steps, by the features of the first view."""
        learned, loader = self.learned, self.train_loader_x
        loader.start_epoch(0)
        f = F.normalize(loader.features.to(self.device), dim=-1)  # (N, E)
        labels = loader.labels.to(self.device)
        similarity = f @ self.text_features.t()  # (N, C)
        learned.weight.zero_().index_add_(0, labels, f)
        each = similarity.new_zeros(similarity.shape[1], similarity.shape[1])
        each.index_add_(0, labels, similarity)  # (C, C), sums over the images of a class, then means
        each /= labels.bincount(minlength=len(each))[:, None].clamp(min=1)
        learned.alpha.fill_(self.options.START * each.mean())
        largest = torch.linalg.eigvalsh((f.t() @ f).double().cpu())[-1]
        sizes = 4 * len(f) / float(largest), len(f) / float(4 * similarity.square().sum(dim=0).max())
        for group, size in zip(self.optim.param_groups, sizes, strict=True):
            group["lr"] *= size
        print("Step sizes: {:.4g} for w, {:.4g} for alpha".format(*sizes))

    def update(self, terms):
        alpha = self.learned.alpha
        self.optim.zero_grad()
        sum(terms.values()).backward()
        self.gradient = alpha.grad + (self.gradient if self.options.GRADIENT == "sum" else 0)
        step = self.epoch * self.num_batches + self.batch_idx + 1
        alpha.grad = None if step % self.options.ALPHA_STEPS else self.gradient.clone()
        self.optim.step()

    @torch.no_grad()
    def end_epoch(self):
        if self.validated is None:
            return
        features, labels = self.validated
        right = int((self.compare(features, self.text_features).argmax(dim=-1) == labels).sum())
        if right >= self.best:
            self.best, self.kept = right, {name: value.clone() for name, value in self.learned.state_dict().items()}
        if self.epoch + 1 == self.max_epoch:
            self.learned.load_state_dict(self.kept)
            print(f"Kept the epoch with {self.best} of {len(labels)} validation images right")

    def extra_state(self):
        return {"gradient": self.gradient, "best": self.best, "kept": self.kept}

    def load_extra_state(self, state):
        self.gradient, self.best = state["gradient"].to(self.device), state["best"]
        self.kept = {name: value.to(self.device) for name, value in state["kept"].items()}

    def load_model(self, directory, epoch=None):
        if directory:
            self.trained = make_room(dict(self.learned.named_parameters()), directory, self.model_name, epoch)
        super().load_model(directory, epoch=epoch)
