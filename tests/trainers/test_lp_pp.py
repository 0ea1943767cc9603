import pytest
import torch
import torch.nn.functional as F

from clip import clip
from dassl.utils import UserError

PLAIN = ("INPUT.TRANSFORMS", '["normalize"]', "OPTIM.LR", "1.0", "OPTIM.LR_SCHEDULER", "single_step")
PLAIN += ("OPTIM.WEIGHT_DECAY", "0.0", "DATALOADER.TRAIN_X.BATCH_SIZE", "100000")


def unit_features(trainer, model):
    images = torch.stack([trainer.train_loader_x.dataset[i]["img"] for i in range(32)])
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        return (F.normalize(x, dim=-1) for x in (model.encode_image(images), model.encode_text(clip.tokenize(prompts))))


@pytest.mark.parametrize("gradient", ["step", "sum"])
def test_thirty_steps_are_those_of_the_formulas(gradient, make_trainer, random_clip):
    trainer = make_trainer("LPpp", *PLAIN, "OPTIM.MAX_EPOCH", "30", "TRAINER.LPPP.GRADIENT", gradient)
    f, t = unit_features(trainer, random_clip)
    labels = trainer.train_loader_x.labels
    trainer.train()

    one_hot = F.one_hot(labels).float()
    w, b = one_hot.t() @ f, torch.zeros(8)
    alpha = torch.full((8,), 250 * float((f @ t.t()).mean()))  # every class has as many images
    steps = 4 * 32 / float(torch.linalg.matrix_norm(f, ord=2) ** 2), 32 / float(4 * (f @ t.t()).pow(2).sum(0).max())
    speed, total = [torch.zeros_like(w), torch.zeros_like(b)], torch.zeros(8)
    for i in range(30):
        p = (f @ w.t() + b + alpha * (f @ t.t())).softmax(dim=-1)
        error = (p - one_hot) / 32  # the gradient of cross-entropy by the logits
        speed = [0.9 * v + g for v, g in zip(speed, (error.t() @ f, error.sum(dim=0)), strict=True)]
        w, b = w - steps[0] * speed[0], b - steps[0] * speed[1]
        now = (error * (f @ t.t())).sum(dim=0)
        total = total + now
        if (i + 1) % 10 == 0:
            alpha = alpha - steps[1] * (total if gradient == "sum" else now)
    learned = trainer.learned
    for found, expected in ((learned.weight, w), (learned.bias, b), (learned.alpha, alpha)):
        torch.testing.assert_close(found.detach(), expected, rtol=2e-3, atol=2e-3)


def test_classes_without_a_row_have_alphas_mean_times_the_texts(make_trainer, random_clip, tmp_path):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base", "OUTPUT_DIR", str(tmp_path / "base"))
    trained = make_trainer("LPpp", *PLAIN, *base)
    trained.train()
    both = make_trainer("LPpp", *PLAIN)
    both.load_model(str(tmp_path / "base"))
    images = torch.randn(3, 3, 32, 32)
    _, t = unit_features(both, random_clip)
    with torch.no_grad():
        f = F.normalize(random_clip.encode_image(images), dim=-1)
    new = trained.learned.alpha.detach().mean() * f @ t[4:].t()
    expected = torch.cat([trained.logits(images), new], dim=1)
    torch.testing.assert_close(both.logits(images), expected, rtol=1e-3, atol=1e-3)


def validated(make_trainer, *opts):
    """A trainer that finds the test images in place of validation images, and what is right after each epoch."""
    trainer = make_trainer("LPpp", *PLAIN, "OPTIM.MAX_EPOCH", "6", "TRAINER.LPPP.KEEP", "best_val", *opts)
    trainer.val_loader, seen, end_epoch = trainer.test_loader, [], trainer.end_epoch

    def record():
        found = [(trainer.logits(batch["img"]).argmax(-1) == batch["label"]).sum() for batch in trainer.test_loader]
        seen.append((int(sum(found)), trainer.learned.weight.detach().clone()))
        end_epoch()

    trainer.end_epoch = record
    return trainer, seen


def test_of_equally_good_epochs_the_last_is_kept_also_after_an_interruption(make_trainer, train_until, tmp_path):
    trainer, seen = validated(make_trainer)
    trainer.train()
    best = max(range(6), key=lambda epoch: (seen[epoch][0], epoch))
    assert torch.equal(trainer.learned.weight, seen[best][1])

    other = ("OUTPUT_DIR", str(tmp_path / "other"))
    train_until(validated(make_trainer, *other)[0], epoch=5)
    resumed, _ = validated(make_trainer, *other)
    resumed.train()
    assert resumed.start_epoch == 5 and torch.equal(resumed.learned.weight, trainer.learned.weight)


def test_without_validation_images_the_last_epoch_is_kept(make_trainer, capsys):
    trainer = make_trainer("LPpp", *PLAIN, "TRAINER.LPPP.KEEP", "best_val")
    trainer.train()
    assert "No validation images: the last epoch's weights are kept" in capsys.readouterr().out
    assert trainer.kept == {}


def test_a_warm_up_would_overwrite_the_step_sizes_and_is_refused(make_trainer):
    with pytest.raises(UserError, match="OPTIM.WARMUP_EPOCH -1"):
        make_trainer("LPpp", "OPTIM.WARMUP_EPOCH", "1")
