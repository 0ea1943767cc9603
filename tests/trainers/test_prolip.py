import pytest
import torch
import torch.nn.functional as F

from clip import clip

PLAIN = ("INPUT.TRANSFORMS", '["normalize"]', "OPTIM.NAME", "adam", "OPTIM.WEIGHT_DECAY", "0.0", "OPTIM.LR", "0.01")
WHOLE = ("DATALOADER.TRAIN_X.BATCH_SIZE", "100000", "OPTIM.MAX_EPOCH", "12")


def before_projection(model, images):
    """What the projection is applied to, taken from CLIP's own forward pass."""
    seen = []
    hook = model.visual.ln_post.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        model.encode_image(images)
    hook.remove()
    return seen[0].flatten(1)


@pytest.mark.parametrize("shots", ["4", "-1"])  # all images are 4 of each class, too
def test_training_is_that_of_the_formula_on_all_images_at_once(shots, make_trainer, random_clip):
    trainer = make_trainer("ProLIP", *PLAIN, *WHOLE, "DATASET.NUM_SHOTS", shots, "TRAINER.PROLIP.LAMBDA", "2.0")
    images = torch.stack([trainer.train_loader_x.dataset[i]["img"] for i in range(32)])
    labels = trainer.train_loader_x.labels
    trainer.train()
    assert len(trainer.train_loader_x) == 1

    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames]
    with torch.no_grad():
        texts = F.normalize(random_clip.encode_text(clip.tokenize(prompts)), dim=-1)
    x, start = before_projection(random_clip, images), random_clip.visual.proj.detach()
    w = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], lr=0.01, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    for _ in range(12):
        logits = random_clip.logit_scale.detach().exp() * F.normalize(x @ w, dim=-1) @ texts.t()
        loss = F.cross_entropy(logits, labels) + 2.0 / 4 * (w - start).pow(2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert not torch.allclose(w, start, atol=1e-2)
    torch.testing.assert_close(trainer.learned.proj.detach(), w.detach(), rtol=1e-3, atol=1e-4)


def test_the_image_tower_runs_once_for_each_view(make_trainer):
    trainer = make_trainer("ProLIP", *PLAIN, *WHOLE)
    trainer.before_train()
    passes = []
    encode = trainer.train_loader_x.encode
    trainer.train_loader_x.encode = lambda images: passes.append(len(images)) or encode(images)
    for epoch in range(3):
        trainer.epoch = epoch
        trainer.before_epoch()
        trainer.run_epoch()
    assert sum(passes) == 32  # no transform is random, so all views are one
