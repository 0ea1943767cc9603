"""MMRL's and MMRL++'s towers, losses and read-outs against a plain re-computation of their formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from benchmarks.plain import run_blocks
from clip import clip
from dassl.utils import UserError

METHODS = ["MMRL", "MMRLpp"]
BETA = 0.6
SHORT = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "16"]
LABEL = torch.tensor([0, 5, 2])


def opts(method, **more):
    """J is 2 of the 3 blocks, K is 2."""
    values = {"FIRST_LAYER": 2, "N_REP_TOKENS": 2, "REP_DIM": 8, "REG_WEIGHT": 3.0, **more}
    if method == "MMRLpp":
        values = {"BETA": BETA, "RES_LORA_DIM": 3, "PROJ_LORA_DIM": 4, **values}
    return [word for key, value in values.items() for word in (f"TRAINER.{method.upper()}.{key}", value)]


@pytest.fixture(params=METHODS)
def trainer(request, make_trainer):
    """Ready for a step, with every learned parameter random, also those that start as 0."""
    trainer = make_trainer(request.param, *opts(request.param))
    for p in trainer.learned.parameters():
        p.data = 0.05 * torch.randn(p.shape)
    trainer.prepare()
    return trainer


def mapped(trainer, maps, i):
    """F_i(R), (K, D), for the i-th block with tokens."""
    tokens = trainer.learned.tokens
    if type(trainer).__name__ == "MMRL":
        return tokens @ maps.each[i].weight.t() + maps.each[i].bias
    return tokens @ (maps.weight + maps.A[i] @ maps.B[i]).t() + maps.bias[i]


def with_tokens(trainer, maps, blocks, x, masked):
    """x (L, N, D) through the three blocks, with K = 2 tokens in front of the second and of the third: (L + 2, N, D).

    masked: whether a position sees only itself and those before it.
    """

    def through(block, x):
        causal = torch.full((len(x), len(x)), float("-inf")).triu(1)
        return run_blocks([block], x, causal if masked else None)

    first, second = (mapped(trainer, maps, i)[:, None].expand(-1, x.shape[1], -1) for i in (0, 1))
    x = through(blocks[0], x)
    x = through(blocks[1], torch.cat([x[:1], first, x[1:]]))
    if type(trainer).__name__ == "MMRLpp":
        second = BETA * second + (1 - BETA) * x[1:3]
    return through(blocks[2], torch.cat([x[:1], second, x[3:]]))


def plain_features(trainer, model, image):
    """f_c (B, E), f_r (B, E) and g (C, E), from all 77 positions and all tokens in every block."""
    visual, learned = model.visual, trainer.learned
    x = visual.ln_pre(visual.embed(image)).transpose(0, 1)
    x = visual.ln_post(with_tokens(trainer, learned.image, visual.transformer.resblocks, x, masked=False))
    projection = learned.projection[0]
    if type(trainer).__name__ == "MMRLpp":
        projection = visual.proj + learned.projection[0] @ learned.projection[1]
    own, rep = x[0] @ visual.proj, x[1:3].mean(dim=0) @ projection

    tokens = clip.tokenize([f"a photo of a {name}." for name in trainer.classnames])
    t = (model.token_embedding(tokens) + model.positional_embedding).transpose(0, 1)
    t = with_tokens(trainer, learned.text, model.transformer.resblocks, t, masked=True)
    end = tokens.argmax(dim=-1) + 2  # pushed back by the tokens
    classes = model.ln_final(t[end, torch.arange(len(end))]) @ model.text_projection
    return own, rep, classes


def plain_logits(trainer, model, image):
    """z_c and z_r (B, C), with the unit features f_c and g."""
    own, rep, classes = (F.normalize(x, dim=-1) for x in plain_features(trainer, model, image))
    scale = model.logit_scale.exp()
    return scale * own @ classes.t(), scale * rep @ classes.t(), own, classes


def test_losses_and_gradients_are_those_of_the_formulas(trainer, random_clip):
    image = torch.randn(3, 3, 32, 32)
    own, rep, f, g = plain_logits(trainer, random_clip, image)
    with torch.no_grad():
        f_zs = F.normalize(random_clip.encode_image(image), dim=-1)
        prompts = clip.tokenize([f"a photo of a {name}." for name in trainer.classnames])
        g_zs = F.normalize(random_clip.encode_text(prompts), dim=-1)
    expected = {
        "ce": 0.7 * F.cross_entropy(own, LABEL) + 0.3 * F.cross_entropy(rep, LABEL),
        "image": 3 * (1 - (f * f_zs).sum(dim=-1).mean()),
        "text": 3 * (1 - (g * g_zs).sum(dim=-1).mean()),
    }
    logits, terms = trainer.loss(trainer.encode_view(image), LABEL)
    assert_close(logits, 0.7 * own + 0.3 * rep, rtol=1e-3, atol=1e-3)
    assert_close(terms, expected, rtol=1e-3, atol=1e-4)
    learned = list(trainer.learned.parameters())
    pairs = zip(*(torch.autograd.grad(sum(each.values()), learned) for each in (terms, expected)), strict=True)
    for ours, theirs in pairs:
        assert theirs.abs().max() > 0
        assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_tower_begin_alike_and_the_projection_of_mmrlpp_as_clips(make_trainer, random_clip, method):
    trainer = make_trainer(method, *opts(method))
    for maps in (trainer.learned.image, trainer.learned.text):
        assert torch.equal(mapped(trainer, maps, 0), mapped(trainer, maps, 1))
    x = torch.randn(2, 128)
    assert torch.equal(trainer.project(x), x @ random_clip.visual.proj) == (method == "MMRLpp")


def test_the_projection_begins_at_random_as_released_or_as_clips(make_trainer, random_clip):
    proj = random_clip.visual.proj
    (random,) = make_trainer("MMRL", *opts("MMRL")).learned.projection
    (copied,) = make_trainer("MMRL", *opts("MMRL", PROJECTION="copy")).learned.projection
    assert torch.equal(copied, proj) and not torch.equal(random, proj)
    assert random.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_the_first_block_with_tokens_may_be_the_first_of_all(make_trainer):
    trainer = make_trainer("MMRL", *opts("MMRL", FIRST_LAYER=1), *SHORT)
    assert len(trainer.learned.image.each) == len(trainer.learned.text.each) == 3
    before = trainer.learned.tokens.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.learned.tokens, before)


# ---- read-outs -----------------------------------------------------------------------------------------------


def read_out(trainer, image, option, fusion="logits"):
    node = trainer.cfg.TRAINER[type(trainer).__name__.upper()]
    node.READ_OUT, node.FUSION = option, fusion
    return trainer.logits(image)


def test_read_outs_are_the_class_token_or_both_mixed_as_logits_or_probabilities(trainer, random_clip):
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        own, rep, *_ = plain_logits(trainer, random_clip, image)
    probabilities = 0.7 * own.softmax(dim=-1) + 0.3 * rep.softmax(dim=-1)
    close = {"rtol": 1e-3, "atol": 1e-3}
    assert_close(read_out(trainer, image, "class"), own, **close)
    assert_close(read_out(trainer, image, "both"), 0.7 * own + 0.3 * rep, **close)
    assert_close(read_out(trainer, image, "both", "probabilities").exp(), probabilities, **close)
    assert_close(read_out(trainer, image, "both", "probabilities").exp().sum(dim=-1), torch.ones(3))


def test_probabilities_mixed_are_no_infinite_logits_and_may_have_one_share(trainer):
    options = trainer.cfg.TRAINER[type(trainer).__name__.upper()]
    options.FUSION = "probabilities"
    near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[300.0, 0.0]])
    assert torch.isfinite(trainer.fuse(far, far)).all()
    options.ALPHA = 1.0
    assert_close(trainer.fuse(near, far), near.log_softmax(dim=-1))


def test_who_is_told_mixes_where_dataset_and_all_classes_are_those_of_the_training(make_trainer, tmp_path):
    def run(classes, dataset="Pictures"):
        trainer = make_trainer("MMRL", *opts("MMRL"), *SHORT, "DATASET.SUBSAMPLE_CLASSES", classes)
        trainer.cfg.DATASET.NAME = dataset  # the pictures are the same
        return trainer

    trained = run("all")
    trained.train()
    image = torch.randn(3, 3, 32, 32)
    mixed = {("all", "Pictures"): True, ("base", "Pictures"): True, ("all", "Another"): False}
    for (classes, dataset), expected in mixed.items():
        tested = run(classes, dataset)
        tested.load_model(trained.output_dir)
        told, both = tested.logits(image), read_out(tested, image, "both")
        assert torch.equal(told, both) == expected
        assert torch.equal(told, read_out(tested, image, "class")) != expected


def test_who_was_trained_on_the_base_classes_reads_new_ones_off_the_class_token(make_trainer, tmp_path):
    make_trainer("MMRL", *opts("MMRL"), *SHORT, "DATASET.SUBSAMPLE_CLASSES", "base").train()
    image = torch.randn(3, 3, 32, 32)
    for classes in ("new", "all"):
        tested = make_trainer("MMRL", *opts("MMRL"), "DATASET.SUBSAMPLE_CLASSES", classes)
        tested.load_model(str(tmp_path / "run"))
        assert torch.equal(tested.logits(image), read_out(tested, image, "class"))


# ---- savings, errors -----------------------------------------------------------------------------------------


def test_one_view_is_extracted_once_and_the_frozen_blocks_leave_the_memory(make_trainer):
    trainer = make_trainer("MMRL", *opts("MMRL", VIEWS=1), "DATALOADER.TRAIN_X.BATCH_SIZE", "16")
    encoded, sizes = [], set()
    encode, forward_backward = trainer.train_loader_x.encode, trainer.forward_backward
    trainer.train_loader_x.encode = lambda image: encoded.append(len(image)) or encode(image)
    visual = trainer.clip_model.visual

    def step(batch):
        sizes.add((visual.conv1.weight.numel(), visual.transformer.resblocks[0].mlp.c_fc.weight.numel()))
        return forward_backward(batch)

    trainer.forward_backward = step
    trainer.train()
    assert sum(encoded) == 32 and sizes == {(0, 0)}
    assert visual.conv1.weight.numel() > 0


@pytest.mark.parametrize("layer", [4, 13])
def test_a_layer_that_is_not_there_is_one_clear_error(make_trainer, layer):
    with pytest.raises(UserError, match=rf"MMRL.FIRST_LAYER is {layer}: this backbone's towers have layers 1 to 3"):
        make_trainer("MMRL", *opts("MMRL", FIRST_LAYER=layer))


@pytest.mark.parametrize("key", ["READ_OUT", "FUSION", "PROJECTION"])
def test_an_unknown_choice_is_an_error_that_lists_the_others(make_trainer, key):
    with pytest.raises(UserError, match=f"TRAINER.MMRL.{key} is 'x': choose one of (told|logits|random), "):
        make_trainer("MMRL", *opts("MMRL", **{key: "x"}))


def test_a_checkpoint_of_another_dimension_is_one_clear_error(make_trainer, tmp_path):
    make_trainer("MMRL", *opts("MMRL"), *SHORT).train()
    other = make_trainer("MMRL", *opts("MMRL", REP_DIM=9))
    with pytest.raises(UserError, match="tokens"):
        other.load_model(str(tmp_path / "run"))
