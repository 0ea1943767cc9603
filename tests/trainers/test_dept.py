import pytest
import torch
import torch.nn.functional as F

from clip import clip
from dassl.utils import UserError
from trainers.dept import HOSTS
from trainers.parts.class_rows import columns

SHALLOW = [  # the tiny towers have three blocks
    word
    for key in ("MAPLE.PROMPT_DEPTH", "PROMPTSRC.PROMPT_DEPTH_TEXT", "PROMPTSRC.PROMPT_DEPTH_VISION")
    for word in (f"TRAINER.{key}", "2")
]


@pytest.fixture
def make(make_trainer):
    """make(host, KEY, VALUE, ...): DePT around it, with scales and shifts that all count."""

    def make(host, *opts):
        trainer = make_trainer("DePT", "TRAINER.DEPT.HOST", host, *SHALLOW, *opts)
        for name in ("image", "text"):
            for p in trainer.learned[name].parameters():
                p.data.normal_(1, 0.3)
        return trainer

    return make


def affine(learned, name, x):
    return learned[name].scale * x + learned[name].shift


def head(learned, x):
    return x @ learned["head"].weight.t() + learned["head"].bias


def test_the_loss_shares_between_kgcoop_and_a_head_on_both_features(make, random_clip):
    trainer = make("KgCoOp", "TRAINER.KGCOOP.W", "2.0")
    learned, label = trainer.learned, torch.tensor([3, 0, 3])
    f = torch.randn(3, 32)
    tokens = clip.tokenize([f"a photo of a {name}." for name in trainer.classnames])
    with torch.no_grad():
        g = random_clip.encode_text(tokens)  # the context starts from these very words
    _, terms = trainer.loss(f, label)
    logits = trainer.scale * F.normalize(f, dim=-1) @ F.normalize(g, dim=-1).t()
    pairs = [(head(learned, affine(learned, "text", g[y])), y) for y in label]
    pairs += [(head(learned, affine(learned, "image", x)), y) for x, y in zip(f, label, strict=True)]
    expected = torch.stack([F.cross_entropy(row, y) for row, y in pairs]).mean()
    torch.testing.assert_close(terms["ce"], 0.3 * F.cross_entropy(logits, label), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["head"], 0.7 * expected, rtol=1e-4, atol=1e-5)
    assert terms["kg"].abs() < 1e-4 and set(terms) == {"ce", "head", "kg"}


def test_a_class_feature_of_cocoop_is_the_one_under_the_images_own_prompt(make):
    trainer = make("CoCoOp")
    learned, label, f = trainer.learned, torch.tensor([3, 0]), torch.randn(2, 32)
    _, terms = trainer.loss(f, label)
    own = torch.stack([trainer.host.conditioned(x)[y] for x, y in zip(f, label, strict=True)])
    both = torch.cat([affine(learned, "text", own), affine(learned, "image", f)])
    expected = 0.7 * F.cross_entropy(head(learned, both), torch.cat([label, label]))
    torch.testing.assert_close(terms["head"], expected)


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_learns_as_by_itself_but_for_its_share_and_the_head(host, make, make_trainer, tmp_path):
    """Terms without the head's are the host's own; its gradients are there in full."""
    trainer = make(host)
    torch.manual_seed(0)
    alone = make_trainer(host, *SHALLOW, "OUTPUT_DIR", str(tmp_path / "alone"))
    alone.learned.load_state_dict(trainer.learned["host"].state_dict())
    trainer.prepare()
    alone.prepare()
    label = torch.tensor([3, 0, 5, 7])
    image = torch.randn(4, 32) if trainer.frozen_images else torch.randn(4, 3, 32, 32)
    assert trainer.frozen_images == alone.frozen_images
    (_, terms), (_, expected) = trainer.loss(image, label), alone.loss(image, label)
    head = terms.pop("head")
    torch.testing.assert_close(terms, expected | {"ce": 0.3 * expected["ce"]})
    (sum(terms.values()) + head).backward()
    assert all(p.grad is not None and p.grad.any() for p in trainer.learned.parameters())


@pytest.mark.parametrize("host", HOSTS)
def test_around_every_host_a_run_ends_and_serves_new_classes(host, make, tmp_path):
    trained = make(host, "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES", "base")
    trained.train()
    loaded = make(host, "DATASET.SUBSAMPLE_CLASSES", "new", "OUTPUT_DIR", str(tmp_path / "new"))
    loaded.load_model(str(tmp_path / "run"))
    loaded.test()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        features = loaded.image_features(images)
        z = loaded.host.compare(features, loaded.tested_features)
        assert torch.equal(loaded.model_inference(images), z)
    for name, value in trained.learned.state_dict().items():
        assert torch.equal(value, loaded.learned.state_dict()[name]), name


def test_the_average_over_epochs_of_promptsrc_inside_survives_a_stop_between_them(make, train_until, tmp_path):
    opts = ["TRAINER.PROMPTSRC.GPA_MEAN", "1.5", "OPTIM.MAX_EPOCH", "2"]  # both epochs count as much
    whole = make("PromptSRC", *opts)
    whole.train()
    opts += ["OUTPUT_DIR", str(tmp_path / "stopped")]
    stopped = make("PromptSRC", *opts)
    train_until(stopped, epoch=1)
    resumed = make("PromptSRC", *opts)
    resumed.train()
    assert resumed.start_epoch == 1
    for name, value in whole.learned.state_dict().items():
        assert torch.equal(value, resumed.learned.state_dict()[name]), name


def test_classes_it_was_trained_on_are_tested_with_the_head_and_some_of_them_with_their_rows(make, tmp_path):
    trained = make("KgCoOp", "OPTIM.MAX_EPOCH", "1")
    trained.train()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = trained.image_features(images)
        z = trained.host.compare(features, trained.tested_features)
        expected = 0.3 * z + 0.7 * head(trained.learned, affine(trained.learned, "image", features))
        torch.testing.assert_close(trained.model_inference(images), expected)
    some = make("KgCoOp", "DATASET.SUBSAMPLE_CLASSES", "new", "OUTPUT_DIR", str(tmp_path / "some"))
    some.load_model(str(tmp_path / "run"))
    some.test()
    with torch.no_grad():
        torch.testing.assert_close(some.model_inference(images), expected[:, 4:], rtol=1e-4, atol=1e-4)


def test_scales_and_head_learn_faster_than_the_host(make):
    trainer = make("KgCoOp", "OPTIM.LR", "0.01")
    host, own = trainer.optim.param_groups
    assert host["initial_lr"] == 0.01 and own["initial_lr"] == pytest.approx(0.065)
    assert [p.shape for p in host["params"]] == [trainer.host.learned.ctx.shape] and len(own["params"]) == 6


def test_columns_say_where_a_name_is():
    assert columns(["b", "x", "a"], ["a", "b", "c"]) == [1, -1, 0]


def test_only_known_hosts_are_taken(make_trainer):
    with pytest.raises(UserError, match="HOST is 'ProGrad': choose one of CoOp, CoCoOp, KgCoOp, MaPLe, PromptSRC"):
        make_trainer("DePT", "TRAINER.DEPT.HOST", "ProGrad")


def test_a_checkpoint_of_another_host_is_refused(make, tmp_path):
    make("CoOp", "OPTIM.MAX_EPOCH", "1").train()
    other = make("KgCoOp", "OUTPUT_DIR", str(tmp_path / "other"))
    with pytest.raises(UserError, match="TRAINER.DEPT.HOST CoOp, this run has KgCoOp"):
        other.load_model(str(tmp_path / "run"))


@pytest.mark.parametrize("host", HOSTS)
def test_views_are_refused_where_the_host_caches_no_features(make, host):
    if host in ("MaPLe", "PromptSRC"):
        with pytest.raises(UserError, match=f"DEPT.VIEWS is of features that are cached, and {host} caches none"):
            make(host, "TRAINER.DEPT.VIEWS", "1")
    else:
        assert make(host, "TRAINER.DEPT.VIEWS", "1").train_loader_x.views == 1
