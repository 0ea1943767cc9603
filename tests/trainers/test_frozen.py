"""What FrozenCLIP does for every method."""

import time

import pytest
import torch

from dassl.utils import UserError
from trainers.parts.offload import Offload


def test_training_sees_fresh_views_of_frozen_features_in_every_epoch(make_trainer):
    trainer = make_trainer("CoOp")
    trainer.before_train()
    views = []
    for trainer.epoch in range(2):
        trainer.before_epoch()
        views.append(trainer.train_loader_x.features.clone())
    assert views[0].shape == (32, 32) and (views[0] - views[1]).abs().max() > 1e-3
    assert trainer.extract_seconds > 0


def test_the_image_tower_leaves_the_memory_between_extractions_and_is_back_for_good(make_trainer):
    trainer = make_trainer("CoOp")
    weight = trainer.clip_model.visual.conv1.weight
    before, sizes = weight.detach().clone(), []
    forward_backward = trainer.forward_backward
    trainer.forward_backward = lambda batch: sizes.append(weight.numel()) or forward_backward(batch)
    trainer.train()
    assert set(sizes) == {0} and torch.equal(weight, before)


def test_evaluation_alone_extracts_nothing(make_trainer, monkeypatch):
    trainer = make_trainer("CoOp")
    monkeypatch.setattr(trainer, "frozen_features", lambda image: pytest.fail("extracted"))
    trainer.test()


def test_classes_are_encoded_once_per_evaluation(make_trainer):
    trainer = make_trainer("CoOp", "DATALOADER.TEST.BATCH_SIZE", "2")
    calls = []
    class_features = trainer.class_features
    trainer.class_features = lambda: calls.append(1) or class_features()
    trainer.test()
    trainer.test()
    assert len(calls) == 2


def test_pictures_of_another_size_are_one_clear_error(make_trainer):
    with pytest.raises(UserError, match=r"needs INPUT.SIZE \(32, 32\)"):
        make_trainer("CoOp", "INPUT.SIZE", "(64, 64)")


@pytest.mark.parametrize("trainer", ["CoOp", "ProGrad"])
@pytest.mark.parametrize("precision", ["amp", "fp16"])
def test_the_first_step_in_half_precision_is_that_of_fp32(make_trainer, trainer, precision):
    batch = {"features": torch.randn(4, 32), "label": torch.tensor([0, 3, 5, 7])}
    moved = {}
    for name in ("fp32", precision):
        run = make_trainer(trainer, f"TRAINER.{trainer.upper()}.PREC", name)
        ctx, run.batch_idx, run.num_batches = run.learned.ctx, 0, 2
        start = ctx.detach().clone()
        for _ in range(20):  # while the scale of the loss is too high, steps are left out
            run.forward_backward(batch)
            if not torch.equal(ctx, start):
                break
        moved[name] = (ctx - start).detach().flatten()
    assert ctx.dtype == torch.float32
    assert torch.cosine_similarity(moved["fp32"], moved[precision], dim=0) > 0.95


@pytest.mark.parametrize("method", ["CLIPAdapter", "SkipTuning"])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("DATALOADER.K_TRANSFORMS", "2"), "K_TRANSFORMS is 2: .* needs 1 view of an image"),
        (("INPUT.NO_TRANSFORM", "True"), "NO_TRANSFORM is True, which .* can't do"),
        (("OPTIM.STAGED_LR", "True"), "STAGED_LR is True, which .* can't do"),
        (("MODEL.INIT_WEIGHTS", "weights.pt"), "INIT_WEIGHTS is set, but .* starts from CLIP alone"),
        (("OPTIM.SGD_NESTEROV", "True", "OPTIM.MOMENTUM", "0.0"), "SGD_NESTEROV needs OPTIM.MOMENTUM above 0"),
    ],
)
def test_options_that_no_method_here_can_serve_are_refused(make_trainer, method, option, words):
    with pytest.raises(UserError, match=words):
        make_trainer(method, *option)


@pytest.mark.parametrize("method", ["MMRL", "LPpp"])
def test_a_checkpoint_that_does_not_name_its_classes_is_one_clear_error(make_trainer, tmp_path, method):
    trainer = make_trainer(method, "TRAINER.MMRL.FIRST_LAYER" if method == "MMRL" else "OPTIM.MAX_EPOCH", "1")
    trainer.save_model(0, str(tmp_path))
    path = tmp_path / "learned" / "model.pth.tar-1"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["meta"]  # as another Dassl leaves it
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="is damaged or of another kind .*; choose another --model-dir"):
        trainer.load_model(str(tmp_path))


def test_an_extraction_brings_the_image_tower_back_once(make_trainer, monkeypatch):
    trainer, brought = make_trainer("CLIPAdapter", "OPTIM.MAX_EPOCH", "2"), []
    trainer.before_train()
    monkeypatch.setattr("trainers.parts.cache.EXTRACTION_BATCH", 8)  # of 32 images
    monkeypatch.setattr(Offload, "bring_back", lambda self, real=Offload.bring_back: brought.append(1) or real(self))
    trainer.epoch = 0
    trainer.before_epoch()
    assert brought == [1]
    trainer.train_loader_x.views = 1
    trainer.before_epoch()
    assert brought == [1]  # that view is there


def test_what_ends_an_epoch_counts_as_training_time(make_trainer):
    trainer = make_trainer("CLIPAdapter", "OPTIM.MAX_EPOCH", "1")
    trainer.end_epoch = lambda: time.sleep(0.3)
    trainer.train()
    assert trainer.train_seconds > 0.3
