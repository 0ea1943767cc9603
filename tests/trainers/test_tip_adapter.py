import pytest
import torch
import torch.nn.functional as F

from clip import clip
from dassl.utils import UserError
from trainers import frozen
from trainers.parts.class_rows import columns

PLAIN = ("INPUT.TRANSFORMS", '["normalize"]')
BOTH = pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF"])


def plain_logits(trainer, features, alpha, beta):
    """The formula with one-hot labels."""
    f, w = F.normalize(features, dim=-1), F.normalize(trainer.text_features, dim=-1)
    values = F.one_hot(trainer.learned.labels, len(trainer.classnames)).float()
    return trainer.scale * f @ w.t() + alpha * torch.exp(-beta * (1 - f @ trainer.learned.keys.t())) @ values


@BOTH
def test_logits_are_those_of_the_texts_and_of_the_cache(method, make_trainer):
    trainer = make_trainer(method, f"TRAINER.{method.upper()}.ALPHA", "2.5", f"TRAINER.{method.upper()}.BETA", "4.0")
    trainer.before_train()
    features = torch.randn(3, 32)
    expected = plain_logits(trainer, features, 2.5, 4.0)
    torch.testing.assert_close(trainer.compare(features, trainer.class_features()), expected)


@BOTH
def test_keys_are_unit_means_of_views_other_than_those_of_training(method, make_trainer):
    trainer = make_trainer(method, f"TRAINER.{method.upper()}.KEY_VIEWS", "3")
    seen = []
    encode = trainer.train_loader_x.encode

    def record(images):
        seen.append(encode(images))
        return seen[-1]

    trainer.train_loader_x.encode = record
    trainer.before_train()
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(trainer.learned.keys.detach(), F.normalize(torch.stack(seen).mean(dim=0), dim=-1))
    assert trainer.learned.labels.tolist() == [item.label for item in trainer.dm.dataset.train_x]
    trainer.train_loader_x.start_epoch(0)
    assert not any(torch.equal(seen[3], view) for view in seen[:3])


def test_the_cache_learns_from_its_own_logits_and_the_training_free_one_stays(make_trainer, tmp_path):
    free, trained = (
        make_trainer("TipAdapter", *PLAIN),
        make_trainer("TipAdapterF", *PLAIN, "OUTPUT_DIR", str(tmp_path / "other")),
    )
    for trainer in (free, trained):
        trainer.before_train()
    assert torch.equal(free.learned.keys, trained.learned.keys)
    features, label = torch.randn(4, 32), torch.tensor([0, 1, 1, 7])
    _, terms = trained.loss(features, label)
    terms["ce"].backward()
    keys = trained.learned.keys
    found, keys.grad = keys.grad, None
    F.cross_entropy(plain_logits(trained, features, 1.17, 1.0), label).backward()
    torch.testing.assert_close(found, keys.grad)
    assert trained.optim.param_groups[0]["eps"] == 1e-4
    assert list(free.learned.parameters()) == []


def test_views_to_train_on_are_refused_where_nothing_is_trained(make_trainer):
    with pytest.raises(UserError, match="TIPADAPTER.VIEWS is of images to train on.*KEY_VIEWS"):
        make_trainer("TipAdapter", "TRAINER.TIPADAPTER.VIEWS", "1")
    assert make_trainer("TipAdapterF", "TRAINER.TIPADAPTERF.VIEWS", "1").train_loader_x.views == 1


def with_validation(trainer, monkeypatch):
    """Validation images like the training ones."""
    trainer.val_loader = trainer.test_loader
    test = []
    monkeypatch.setattr(type(trainer), "test", lambda self, *args: test.append(args))
    return test


@BOTH
def test_alpha_and_beta_are_the_best_of_the_grid_on_the_validation_images(method, make_trainer, monkeypatch):
    node = f"TRAINER.{method.upper()}"
    grid = [f"{node}.ALPHA_MAX", "30.0", f"{node}.BETA_MAX", "20.0", f"{node}.ALPHA", "0.0"]
    trainer = make_trainer(method, *PLAIN, *grid, "OPTIM.NAME", "adamw")
    with_validation(trainer, monkeypatch)
    trainer.train()
    features = torch.cat([trainer.frozen_features(batch["img"]) for batch in trainer.test_loader])
    label = torch.cat([batch["label"] for batch in trainer.test_loader])

    def right(alpha, beta):
        return (plain_logits(trainer, features, alpha, beta).argmax(dim=-1) == label).sum().item()

    with torch.no_grad():
        best = max(right(0.1 + j * 29.9 / 20, 0.1 + i * 19.9 / 200) for i in range(200) for j in range(20))
        assert right(trainer.learned.alpha, trainer.learned.beta) == max(best, right(0.0, 1.0)) > right(0.0, 1.0)


@BOTH
def test_without_validation_images_the_given_values_stay_and_the_test_images_are_not_looked_at(method, make_trainer):
    trainer = make_trainer(method)
    looked = []
    trainer.test_loader = None
    trainer.test = lambda *args: looked.append(args)
    assert trainer.val_loader is None
    trainer.train()
    assert (trainer.learned.alpha, trainer.learned.beta) == (torch.tensor(1.17), torch.tensor(1.0))
    assert looked == [()]  # the one at the end


@BOTH
def test_images_of_the_test_that_stand_in_for_validation_images_choose_nothing(method, make_trainer, capsys):
    trainer = make_trainer(method)
    trainer.dm.dataset._val, trainer.val_loader = trainer.dm.dataset.test, trainer.test_loader  # as in ImageNet
    trainer.train()
    assert (trainer.learned.alpha, trainer.learned.beta) == (torch.tensor(1.17), torch.tensor(1.0))
    assert "No validation images" in capsys.readouterr().out


def test_two_classes_of_one_name_have_rows_of_their_own():
    names = ["missile", "box", "missile"]  # as in ImageNet
    assert columns(names, names) == [0, 1, 2]
    assert columns(["missile", "missile"], names) == [0, 2]
    assert columns(["missile"] * 3 + ["ball"], ["missile", "box"]) == [0, 0, 0, -1]


@BOTH
def test_a_saved_cache_serves_old_classes_and_leaves_new_ones_to_clip(method, make_trainer, tmp_path):
    def make(classes):
        return make_trainer(method, "DATASET.SUBSAMPLE_CLASSES", classes, "OUTPUT_DIR", str(tmp_path / classes))

    base = make("base")
    base.train()
    features, found = torch.randn(3, 32), {}
    with torch.no_grad():
        found["base"] = base.compare(features, base.class_features())
        for classes in ("new", "all"):
            loaded = make(classes)
            loaded.load_model(str(tmp_path / "base"))
            found[classes] = loaded.compare(features, loaded.class_features())
            zero_shot = loaded.scale * F.normalize(features, dim=-1) @ F.normalize(loaded.text_features, dim=-1).t()
            assert torch.equal(found[classes][:, -4:], zero_shot[:, -4:])
            assert loaded.learned.keys.shape == (16, 32)
    torch.testing.assert_close(found["all"], torch.cat([found["base"], found["new"]], dim=1))


def test_of_several_templates_the_unit_features_are_averaged(make_trainer, random_clip, monkeypatch):
    monkeypatch.setattr(frozen, "template", lambda dataset, use: ["a {}.", "itap of the {}."])
    trainer = make_trainer("TipAdapter")
    with torch.no_grad():
        rows = [
            F.normalize(random_clip.encode_text(clip.tokenize([t.format(n) for n in trainer.classnames])), dim=-1)
            for t in ("a {}.", "itap of the {}.")
        ]
    torch.testing.assert_close(trainer.text_features, (rows[0] + rows[1]) / 2, rtol=1e-4, atol=1e-5)
