import pytest
import torch
import torch.nn.functional as F

from clip import clip
from trainers import clip_svd

SHARED = ("OPTIM.NAME", "adamw", "OPTIM.LR", "0.02", "INPUT.TRANSFORMS", '["normalize"]')


class Factors(torch.nn.Module):
    """A weight as U diag(s) V^T with s as a parameter: what the method says, one matrix at a time."""

    def __init__(self, weight):
        super().__init__()
        u, s, vt = torch.linalg.svd(weight.detach(), full_matrices=False)
        self.register_buffer("u", u)
        self.register_buffer("vt", vt)
        self.s = torch.nn.Parameter(s)

    def forward(self):
        return self.u @ torch.diag(self.s) @ self.vt


def weights_of(block):
    """Names of the six matrices; queries, keys and values by their rows of the packed weight."""
    attn = block.attn
    packed = list(attn.in_proj_weight.chunk(3))
    return [*packed, attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight]


def plain_loss(model, factors, images, labels, names):
    """Cross-entropy of a CLIP whose weights are put together from `factors` [[six] for each block]."""
    values = {}
    for (prefix, tower), rows in zip(towers(model), factors, strict=True):
        for i, (_, six) in enumerate(zip(tower.resblocks, rows, strict=True)):
            made = [factor() for factor in six]
            name = f"{prefix}transformer.resblocks.{i}."
            values[f"{name}attn.in_proj_weight"] = torch.cat(made[:3])
            for end, value in zip(("attn.out_proj", "mlp.c_fc", "mlp.c_proj"), made[3:], strict=True):
                values[f"{name}{end}.weight"] = value
    tokens = clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names])
    return F.cross_entropy(torch.func.functional_call(model, values, (images, tokens))[0], labels)


def towers(model):
    return [("visual.", model.visual.transformer), ("", model.transformer)]


def test_ten_steps_are_those_of_autograd_through_u_diag_s_v(make_trainer, random_clip):
    trainer = make_trainer("CLIPSVD", *SHARED, "OPTIM.MAX_EPOCH", "5", "DATALOADER.TRAIN_X.BATCH_SIZE", "16")
    images = torch.stack([trainer.train_loader_x.dataset[i]["img"] for i in range(32)])
    labels, names, batches = trainer.train_loader_x.labels, trainer.dm.dataset.classnames, []
    for epoch in range(5):
        trainer.train_loader_x.start_epoch(epoch)
        batches += trainer.train_loader_x.batches()
    trainer.train()

    model = random_clip.requires_grad_(False)
    factors = [[[Factors(w) for w in weights_of(block)] for block in tower.resblocks] for _, tower in towers(model)]
    learned = [factor.s for tower in factors for six in tower for factor in six]
    optimizer = torch.optim.AdamW(learned, lr=0.02, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for index in batches:
        optimizer.zero_grad()
        plain_loss(model, factors, images[index], labels[index], names).backward()
        optimizer.step()
        schedule.step()
    found = torch.cat([s for block in trainer.learned for s in block])
    torch.testing.assert_close(found, torch.cat(learned), rtol=2e-3, atol=2e-3)


def test_the_gradient_of_singular_values_is_autograds(make_trainer, random_clip):
    trainer = make_trainer("CLIPSVD", *SHARED)
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 2])
    model = random_clip.requires_grad_(False)
    factors = [[[Factors(w) for w in weights_of(block)] for block in tower.resblocks] for _, tower in towers(model)]
    plain_loss(model, factors, images, labels, trainer.dm.dataset.classnames).backward()
    trainer.loss(images, labels)[1]["ce"].backward()
    blocks = [six for tower in factors for six in tower]
    for s, six in zip(trainer.learned, blocks, strict=True):
        expected = torch.stack([factor.s.grad for factor in six])
        torch.testing.assert_close(s.grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert all(weight.grad is None for weight in trainer.weights.parts)  # freed as soon as it was used


def test_the_tuned_clip_is_u_diag_s_v_and_gives_the_trainers_logits(make_trainer):
    trainer = make_trainer("CLIPSVD", *SHARED)
    trainer.train()
    model, images = trainer.tuned_clip(), torch.randn(2, 3, 32, 32)
    block = trainer.clip_model.transformer.resblocks[1]
    rows, s, row, u, vt = trainer.weights.parts[block.mlp.c_fc.weight][0]
    torch.testing.assert_close(model.transformer.resblocks[1].mlp.c_fc.weight, u @ torch.diag(s[row]) @ vt)
    tokens = clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in trainer.dm.dataset.classnames])
    torch.testing.assert_close(model(images, tokens)[0], trainer.logits(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("cosine", clip_svd.COSINES)
def test_the_released_cosine_is_as_long_as_epochs_in_steps_and_rises_again(cosine, make_trainer):
    trainer = make_trainer("CLIPSVD", *SHARED, "OPTIM.MAX_EPOCH", "3", "TRAINER.CLIPSVD.COSINE", cosine)
    rates = []
    for _ in range(3 * 8):
        rates.append(round(trainer.optim.param_groups[0]["lr"], 12))
        trainer.optim.step()
        trainer.sched.step()
    if cosine == "run":
        assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)
    else:
        assert rates == [0.02, 0.015, 0.005, 0.0, 0.005, 0.015] * 4


def test_prompts_are_those_of_the_protocol(make_trainer):
    def prompt(protocol, dataset):
        trainer = make_trainer("CLIPSVD", "PROTOCOL", protocol)
        trainer.cfg.DATASET.NAME = dataset
        return trainer.template()

    assert prompt("base2new", "EuroSAT") == "a photo of a {}."
    assert prompt("few_shot", "EuroSAT") == prompt("xd", "EuroSAT") == "a centered satellite photo of {}."
    assert prompt("few_shot", "Food101") == "a photo of a {}, a type of food."
