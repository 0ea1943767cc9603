"""The savings that change nothing but the cost, against the plain computation of benchmarks/plain.py, in fp32.

The towers have ViT-B/16's shape except for the numbers of blocks and words: 197 tokens of width 768 and 12 heads, 77
positions of width 512 and 8 heads. They are equal if the norm of the difference is at most 1e-5 of the norm.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from benchmarks import plain
from clip import clip
from clip.model import CLIP
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers import skip_tuning
from trainers.parts.cskip import keep_probability, masked_cross_entropy, sample_classes
from trainers.parts.lskip import DeepImage, DeepText, shallow_image, shallow_text
from trainers.parts.precision import MasterWeights, can_step_in_backward, step_in_backward, update

DEPTH, WORDS = 2, 32


def assert_equal(found, expected, what="", error=1e-5):
    assert found.shape == expected.shape, what
    assert (found - expected).norm() <= error * expected.norm() > 0, what


# Both towers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Every parameter is random, also those that start as 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(512, 224, DEPTH, 768, 16, 77, WORDS, 512, 8, DEPTH).eval().requires_grad_(False)
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
        return model


def make_tokens(lengths, shared=5):
    """Random texts (C, 77): start and the words that all share, own words, end of text, zeros."""
    tokens = torch.zeros(len(lengths), 77, dtype=torch.long)
    tokens[:, :shared] = torch.randint(1, WORDS - 2, (shared,))
    for row, end in zip(tokens, lengths, strict=True):
        row[shared:end] = torch.randint(1, WORDS - 2, (end - shared,))
        row[end] = WORDS - 1
    return tokens


def learned(model, omega):
    """A copy of `model` of which what lies behind omega learns, with its two deep halves."""
    model = copy.deepcopy(model)
    deep = DeepImage(model.visual, omega), DeepText(model, omega)
    for half in deep:
        half.requires_grad_(True)
    return model, *deep


def unit_features(model, images, tokens, omega, classes):
    """Unit features of the images and of `classes`, with all savings."""
    model, deep_image, deep_text = model
    image = deep_image(shallow_image(model.visual, images, omega))
    text = deep_text(shallow_text(model, tokens, omega).select(classes))
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


def plain_unit_features(model, images, tokens, omega, classes):
    """The same with none: omega only says what learns."""
    model, tokens = model[0], tokens[classes]
    image = plain.deep_image(model.visual, plain.shallow_image(model.visual, images, omega), omega)
    text = plain.deep_text(model, plain.shallow_text(model, tokens, omega), tokens, omega)
    return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


@pytest.mark.parametrize(
    ("lengths", "omega", "scope"),
    [
        ([9, 7, 12, 8, 9, 7], 1, "batch"),
        ([9, 76, 12, 8, 30, 7], 1, "image"),
        ([9, 7, 12], 0, None),
        ([8, 8, 8], 1, None),
        ([9, 7, 12], DEPTH, None),
        ([9], 1, None),
    ],
)
def test_logits_and_every_trained_gradient_of_a_training_step(model, lengths, omega, scope):
    tokens, images, classes, kept = make_tokens(lengths), torch.randn(2, 3, 224, 224), torch.arange(len(lengths)), None
    labels = torch.randint(len(lengths), (2,))
    if scope:
        probability, generator = keep_probability(len(lengths), 0.4, 2.0), torch.Generator().manual_seed(1)
        classes, kept = sample_classes(torch.randn(2, len(lengths)), labels, probability, generator, scope)
        assert len(classes) < len(lengths)
    # Of cross-entropy alone a bias of the text tower gets gradients that cancel over the classes, all but for rounding.
    noise = torch.randn(2, len(classes))

    def step(features):
        towers = learned(model, omega)
        image, text = features(towers, images, tokens, omega, classes)
        logits = towers[0].logit_scale.exp() * image @ text.t()
        loss = masked_cross_entropy(logits, torch.searchsorted(classes, labels), kept) + (logits * noise).mean()
        loss.backward()
        return logits, {name: p.grad for name, p in towers[0].named_parameters() if p.requires_grad}

    (logits, gradients), (expected, expected_gradients) = step(unit_features), step(plain_unit_features)
    assert_equal(logits, expected)
    assert len(gradients) == 2 * (12 * (DEPTH - omega) + 3)  # of both towers: blocks, last norm, projection
    for name, gradient in gradients.items():
        if name.endswith(
            "in_proj_bias"
        ):  # a bias of the keys shifts all scores alike: its gradient is 0 but for rounding
            width = len(gradient) // 3
            gradient[width : 2 * width] = expected_gradients[name][width : 2 * width] = 0
        assert_equal(gradient, expected_gradients[name], name)


def test_no_gradient_of_a_weight_is_put_together_from_gradients_of_its_slices(model):
    """Each of these is a whole weight of zeros first."""
    towers, tokens, images = learned(model, 0), make_tokens([9, 7]), torch.randn(1, 3, 224, 224)
    image, text = unit_features(towers, images, tokens, 0, torch.arange(2))
    with torch.profiler.profile(record_shapes=True) as profile:
        (image @ text.t()).sum().backward()
    sliced = [event for event in profile.events() if event.name == "aten::slice_backward"]
    of_weights = {parts * width for width in (768, 512) for parts in (1, 2, 3)}  # rows
    assert sliced and not [event for event in sliced if event.input_shapes[0][0] in of_weights]


@pytest.mark.parametrize("omega", range(DEPTH + 1))
def test_logits_of_an_evaluation(model, omega):
    tokens, images = make_tokens([9, 7, 76, 12, 7]), torch.randn(2, 3, 224, 224)
    found, expected = (
        features((model, DeepImage(model.visual, omega), DeepText(model, omega)), images, tokens, at, torch.arange(5))
        for features, at in ((unit_features, omega), (plain_unit_features, 0))
    )
    assert_equal(100 * found[0] @ found[1].t(), 100 * expected[0] @ expected[1].t())


# The trainer -----------------------------------------------------------------------------------------


def start(trainer):
    """Up to the first step of the first epoch."""
    trainer.before_train()
    trainer.epoch = trainer.batch_idx = 0
    trainer.before_epoch()
    trainer.num_batches = len(trainer.train_loader_x)
    return trainer


def test_an_epoch_equals_as_many_plain_steps(make_trainer, random_clip):
    """The same batches and draws; compared is how far each weight has come."""
    opts = ["TRAINER.SKIPTUNING.SCOPE", "batch", "TRAINER.SKIPTUNING.OMEGA", "1", "INPUT.TRANSFORMS", '["normalize"]']
    trainer = start(make_trainer("SkipTuning", *opts))
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    tokens = clip.tokenize(prompts)
    with torch.no_grad():
        t = plain.shallow_text(random_clip, tokens, 1)
        zero_shot = F.normalize(plain.deep_text(random_clip, t, tokens, 1), dim=-1)
    reference = plain.PlainStep(random_clip, tokens, 1, t, trainer.probability, zero_shot, lr=0.01)
    before = {name: p.clone() for name, p in random_clip.named_parameters() if p.requires_grad}
    for number, batch in enumerate(trainer.train_loader_x):
        trainer.batch_idx = number
        loss = trainer.forward_backward(batch)["loss"]
        assert loss.item() == pytest.approx(reference(batch["features"].transpose(0, 1), batch["label"]), rel=1e-4)
    assert number == 7
    expected, found = dict(random_clip.named_parameters()), dict(trainer.clip_model.named_parameters())
    for name, value in before.items():
        assert_equal(found[name] - value, expected[name] - value, name, error=1e-3)  # a difference of close numbers


def test_nothing_is_tokenised_or_encoded_twice(make_trainer, monkeypatch):
    trainer = make_trainer("SkipTuning", "DATALOADER.TEST.BATCH_SIZE", "2", "TRAINER.SKIPTUNING.VIEWS", "1")
    monkeypatch.setattr(clip, "tokenize", lambda *args: pytest.fail("texts were tokenised again"))
    monkeypatch.setattr(skip_tuning, "shallow_text", lambda *args: pytest.fail("t^omega was computed again"))
    images, texts = [], []
    encode = skip_tuning.shallow_image
    monkeypatch.setattr(skip_tuning, "shallow_image", lambda *args: images.append(len(args[1])) or encode(*args))
    trainer.deep["text_encoder"].register_forward_hook(lambda *args: texts.append(1))
    trainer.train()
    assert sum(images) == 32 + 16  # 8 classes: 4 training images each in one view, 2 test images
    assert len(texts) == 1 + 2 * 8 + 1  # for the ranking, in each step of two epochs, for the test


# Updates inside the backward pass --------------------------------------------------------------------


class Run:
    """SGD on the deep half of a tiny image tower, whose last block uses slices of a weight twice; two groups."""

    def __init__(self, visual, in_backward, **options):
        optim = get_cfg_default().OPTIM
        optim.merge_from_list(["NAME", "sgd", "LR_SCHEDULER", "cosine", "MAX_EPOCH", 4])
        optim.merge_from_list([word for pair in options.items() for word in pair])
        self.deep = DeepImage(copy.deepcopy(visual), 1).requires_grad_(True)
        first, *others = self.deep.resblocks.parameters()
        rest = [*others, self.deep.proj, *self.deep.ln_post.parameters()]
        self.optimizer = build_optimizer([{"params": [first]}, {"params": rest, "lr": 0.2}], optim)
        self.scheduler = build_lr_scheduler(self.optimizer, optim)
        self.weights = MasterWeights(self.deep)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        if in_backward and can_step_in_backward(self.optimizer):
            step_in_backward(self.weights, self.optimizer)

    def step(self, v):
        loss = F.normalize(self.deep(v), dim=-1).cos().sum()
        update(loss, self.weights, self.optimizer, self.scaler)
        self.scheduler.step()

    def state(self):
        return [part.state_dict() for part in (self.deep, self.optimizer, self.scheduler)]

    def load(self, state):
        for part, values in zip((self.deep, self.optimizer, self.scheduler), state, strict=True):
            part.load_state_dict(values)


def assert_same_bytes(one, other):
    for first, second in zip(one.deep.parameters(), other.deep.parameters(), strict=True):
        assert torch.equal(first, second)
        states = [run.optimizer.state[p] for run, p in ((one, first), (other, second))]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"MOMENTUM": 0.0},
        {"WEIGHT_DECAY": 0.0},
        {"SGD_NESTEROV": True},
        {"MOMENTUM": 0.0, "WEIGHT_DECAY": 0.0},
    ],
    ids=str,
)
def test_updates_inside_the_backward_pass_give_the_bytes_of_steps_behind_it(random_clip, options):
    ours, theirs = (Run(random_clip.visual, in_backward, LR=0.5, **options) for in_backward in (True, False))
    assert ours.weights.step_in_backward
    before = copy.deepcopy(ours.deep)
    for step in range(5):
        v = torch.randn(3, 5, 128)
        ours.step(v)
        theirs.step(v)
        assert_same_bytes(ours, theirs)
        assert ours.scheduler.get_last_lr() == theirs.scheduler.get_last_lr(), step
    assert all((p != q).any() for p, q in zip(before.parameters(), ours.deep.parameters(), strict=True))


def test_updates_inside_the_backward_pass_go_on_from_a_loaded_state(random_clip):
    """And not with the groups and buffers that were there before."""
    whole, saved = Run(random_clip.visual, False, LR=0.5), Run(random_clip.visual, True, LR=0.5)
    batches = torch.randn(4, 3, 5, 128)
    for v in batches[:2]:
        whole.step(v)
        saved.step(v)
    resumed = Run(random_clip.visual, True, LR=0.1)
    resumed.step(torch.randn(3, 5, 128))
    resumed.load(copy.deepcopy(saved.state()))
    for v in batches[2:]:
        whole.step(v)
        resumed.step(v)
    assert_same_bytes(whole, resumed)


def test_updates_inside_the_backward_pass_agree_with_pytorchs_own_sgd(random_clip):
    ours = Run(random_clip.visual, True, LR=0.5)
    deep = copy.deepcopy(ours.deep)
    first = next(deep.resblocks.parameters())
    rest = [p for p in deep.parameters() if p is not first]
    theirs = torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.2}], 0.5, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        v = torch.randn(3, 5, 128)
        ours.step(v)
        theirs.zero_grad()
        F.normalize(deep(v), dim=-1).cos().sum().backward()
        theirs.step()
        for group, lr in zip(theirs.param_groups, ours.scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
    for found, expected in zip(ours.deep.parameters(), deep.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_no_two_gradients_are_held_at_once(random_clip):
    run, held = Run(random_clip.visual, True), []
    parameters = list(run.deep.parameters())
    for p in parameters:  # called behind the step's own hook
        p.register_post_accumulate_grad_hook(lambda _: held.append(sum(q.grad is not None for q in parameters)))
    run.step(torch.randn(3, 5, 128))
    assert held == [0] * len(parameters)


@pytest.mark.parametrize("options", [{"SGD_DAMPNING": 0.1}, {"NAME": "adam"}])
def test_other_optimizers_step_behind_the_backward_pass(random_clip, options):
    ours, theirs = (Run(random_clip.visual, in_backward, LR=0.01, **options) for in_backward in (True, False))
    assert not ours.weights.step_in_backward
    for _ in range(3):
        v = torch.randn(3, 5, 128)
        ours.step(v)
        theirs.step(v)
    assert_same_bytes(ours, theirs)
