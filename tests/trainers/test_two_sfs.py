import math
import re

import pytest
import torch
import torch.nn.functional as F

from clip import clip
from dassl.utils import UserError
from trainers.parts.cache import FeatureCache

SHARED = ("OPTIM.NAME", "adamw", "OPTIM.LR", "0.01", "INPUT.TRANSFORMS", '["normalize"]')


def plain_logits(model, images, weight):
    features = F.normalize(model.encode_image(images), dim=-1)
    return model.logit_scale.exp() * features @ F.normalize(weight, dim=-1).t()


def texts_of(model, names):
    return model.encode_text(clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names]))


def norms_of(model):
    return [p for part in model.modules() if isinstance(part, torch.nn.LayerNorm) for p in part.parameters()]


def test_both_stages_are_those_of_a_plain_loop_with_two_optimizers(make_trainer, random_clip):
    trainer = make_trainer("TwoSFS", *SHARED, "OPTIM.MAX_EPOCH", "4", "DATALOADER.TRAIN_X.BATCH_SIZE", "16")
    assert trainer.first_epochs == 2  # round(0.6 * 4)
    images = torch.stack([trainer.train_loader_x.dataset[i]["img"] for i in range(32)])
    labels, names = trainer.train_loader_x.labels, trainer.dm.dataset.classnames
    batches = {}
    for epoch in range(4):
        trainer.train_loader_x.start_epoch(epoch)
        batches[epoch] = trainer.train_loader_x.batches()
    trainer.train()

    model = random_clip.requires_grad_(False)
    for p in norms_of(model):
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(norms_of(model), lr=0.01, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for index in batches[0] + batches[1]:
        loss = F.cross_entropy(plain_logits(model, images[index], texts_of(model, names)), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.requires_grad_(False)
    weight = F.normalize(texts_of(model, names), dim=-1).requires_grad_(True)
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for index in batches[2] + batches[3]:
        loss = F.cross_entropy(plain_logits(model, images[index], weight), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for ours, plain in zip(norms_of(trainer.clip_model), norms_of(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trainer.learned.classifier, weight, rtol=1e-3, atol=1e-4)


def test_with_the_released_choice_of_norms_those_outside_of_blocks_stay(make_trainer, random_clip):
    trainer = make_trainer("TwoSFS", *SHARED, "TRAINER.TWOSFS.NORMS", "blocks")
    trainer.train()
    before = random_clip.state_dict()
    moved = {name for name, value in trainer.clip_model.state_dict().items() if not torch.equal(value, before[name])}
    inside = {name for name in before if re.search(r"resblocks\.\d+\.ln_[12]\.", name)}
    assert moved == inside and len(inside) == 2 * 3 * 4


def test_the_rate_falls_to_0_in_each_stage(make_trainer):
    trainer = make_trainer("TwoSFS", *SHARED, "OPTIM.MAX_EPOCH", "5", "TRAINER.TWOSFS.SHARE", "0.4")
    rates = []
    for _ in range(5 * 8):
        rates.append(trainer.optim.param_groups[0]["lr"])
        trainer.optim.step()
        trainer.sched.step()
    first = [0.01 * 0.5 * (1 + math.cos(math.pi * i / 16)) for i in range(16)]
    second = [0.01 * 0.5 * (1 + math.cos(math.pi * i / 24)) for i in range(24)]
    assert rates == pytest.approx(first + second)


@pytest.mark.parametrize("opts", [("OPTIM.LR_SCHEDULER", "single_step"), ("OPTIM.WARMUP_EPOCH", "1")])
def test_another_schedule_is_refused(opts, make_trainer):
    with pytest.raises(UserError, match="set OPTIM.LR_SCHEDULER cosine, OPTIM.WARMUP_EPOCH -1"):
        make_trainer("TwoSFS", *SHARED, *opts)


def test_stage_2_runs_on_cached_features_of_the_tuned_tower_and_leaves_the_towers_alone(make_trainer):
    trainer = make_trainer("TwoSFS", *SHARED)
    trainer.before_train()
    for epoch in range(2):
        trainer.epoch = epoch
        trainer.before_epoch()
        assert isinstance(trainer.train_loader_x, FeatureCache) == bool(epoch)
        before = [p.clone() for p in norms_of(trainer.clip_model)]
        trainer.run_epoch()
        moved = [not torch.equal(p, old) for p, old in zip(norms_of(trainer.clip_model), before, strict=True)]
        assert all(moved) if epoch == 0 else not any(moved)
        trainer.end_epoch()
    batch = trainer.train_loader_x.dataset[3]["img"][None]
    torch.testing.assert_close(trainer.train_loader_x.features[3:4], trainer.image_features(batch).detach())


def test_known_classes_have_the_classifiers_rows_and_others_the_tuned_text_tower(make_trainer, tmp_path):
    trained = make_trainer("TwoSFS", *SHARED, "DATASET.SUBSAMPLE_CLASSES", "base", "OUTPUT_DIR", str(tmp_path / "base"))
    trained.train()
    both = make_trainer("TwoSFS", *SHARED)
    both.load_model(str(tmp_path / "base"))
    features = both.class_features().detach()
    torch.testing.assert_close(features[:4], trained.learned.classifier.detach())
    model = trained.tuned_clip()
    torch.testing.assert_close(features[4:], texts_of(model, both.dm.dataset.classnames[4:]), rtol=1e-3, atol=1e-4)


def test_without_stage_2_the_classifier_is_the_texts_and_without_stage_1_clip_stays(make_trainer, random_clip):
    only_first = make_trainer("TwoSFS", *SHARED, "TRAINER.TWOSFS.SHARE", "1.0")
    only_first.train()
    texts = F.normalize(texts_of(only_first.tuned_clip(), only_first.dm.dataset.classnames), dim=-1)
    torch.testing.assert_close(only_first.learned.classifier.detach(), texts, rtol=1e-3, atol=1e-4)


def test_without_stage_1_clip_stays(make_trainer, random_clip):
    only_second = make_trainer("TwoSFS", *SHARED, "TRAINER.TWOSFS.SHARE", "0.0")
    only_second.train()
    for ours, plain in zip(norms_of(only_second.clip_model), norms_of(random_clip), strict=True):
        assert torch.equal(ours, plain)
