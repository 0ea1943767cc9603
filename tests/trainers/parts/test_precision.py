"""The precisions: what runs in which type, which updates are kept, and what a checkpoint holds."""

import copy

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine.checkpoint import save_resume
from dassl.optim import build_optimizer
from dassl.utils import UserError
from trainers.parts import precision
from trainers.parts.lskip import DeepImage
from trainers.parts.precision import (
    SAMPLE,
    MasterWeights,
    can_step_in_backward,
    halve,
    moved_share,
    sample,
    step_in_backward,
    update,
)
from trainers.skip_tuning import SkipTuning

CPU = torch.device("cpu")
RUNNING = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "amp": torch.float32,
    "fp16_master": torch.float16,
    "fp16": torch.float16,
}
SCALED = ["fp16_master"]  # on a CPU; with CUDA amp too


def make_optimizer(module, name="sgd", **options):
    optim = get_cfg_default().OPTIM
    optim.merge_from_list(["NAME", name, "LR", 0.1])
    optim.merge_from_list([word for pair in options.items() for word in pair])
    return build_optimizer(module, optim)


class Learner:
    """What the trainer puts together: for pure fp16 the weights themselves are halved first."""

    def __init__(self, module, precision, name="sgd", **options):
        if precision == "fp16":
            halve(module, torch.float16)
        self.optimizer = make_optimizer(module, name, **options)
        self.weights = MasterWeights(module, precision)
        self.running = self.weights.running
        self.scaler = torch.amp.GradScaler("cpu", enabled=precision in SCALED)
        if precision not in SCALED and can_step_in_backward(self.optimizer):
            step_in_backward(self.weights, self.optimizer)

    def update(self, loss):
        update(loss, self.weights, self.optimizer, self.scaler)


class TestAutomaticPrecision:
    @pytest.fixture
    def ask(self, monkeypatch):
        """ask(machine, unit, ...): what PREC auto means where PyTorch finds these units."""

        def found(machine, *units):
            monkeypatch.setattr(precision.platform, "machine", lambda: machine)
            for unit in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
                monkeypatch.setattr(torch.cpu, unit, lambda unit=unit: unit in units, raising=False)
            precision.cpu_precision.cache_clear()
            return precision.cpu_precision()

        yield found
        precision.cpu_precision.cache_clear()

    def test_it_is_bf16_where_the_cpu_multiplies_it_itself(self, ask):
        assert ask("x86_64", "_is_amx_tile_supported") == ("bf16", "this CPU has AMX")
        assert ask("AMD64", "_is_avx512_bf16_supported") == ("bf16", "this CPU has AVX512_BF16")
        assert ask("x86_64") == ("fp32", "this CPU has no products of bf16")

    @pytest.mark.parametrize(("half", "expected"), [(0.5, "bf16"), (0.9, "fp32"), (8.0, "fp32")])
    def test_it_is_measured_once_where_pytorch_cant_tell(self, ask, monkeypatch, half, expected):
        measured = []
        taken = {torch.float32: 1.0, torch.bfloat16: half}
        monkeypatch.setattr(precision, "_seconds_of_a_product", lambda dtype: measured.append(dtype) or taken[dtype])
        assert ask("aarch64", "_is_amx_tile_supported")[0] == expected
        assert precision.cpu_precision()[0] == expected and len(measured) == 2

    def test_the_log_says_which_and_why_and_recipes_can_say_it_themselves(self, ask, make_trainer, capsys):
        ask("x86_64", "_is_amx_tile_supported")
        assert make_trainer("KgCoOp", "TRAIN.CPU_PREC", "auto").clip_model.dtype == torch.bfloat16
        assert "Precision: bf16 (this CPU has AMX)" in capsys.readouterr().out
        assert make_trainer("KgCoOp", "TRAIN.CPU_PREC", "fp32").clip_model.dtype == torch.float32
        assert "Precision: fp32 (TRAIN.CPU_PREC)" in capsys.readouterr().out
        assert make_trainer("KgCoOp", "TRAINER.KGCOOP.PREC", "fp32").precision == "fp32"
        assert "Precision: fp32\n" in capsys.readouterr().out

    def test_two_products_are_timed(self):
        assert precision._seconds_of_a_product(torch.bfloat16, size=8) > 0


def one_weight(value):
    """A module with one weight, held as a matrix."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def push(learner, gradient):
    """A step with this gradient of every weight."""
    learner.update(sum((p.float() * gradient).sum() for p in learner.running.parameters()))


@pytest.fixture
def deep(random_clip):
    return DeepImage(random_clip.visual, 1).requires_grad_(True)


def test_these_are_all_precisions():
    assert set(SkipTuning.precisions) == {"auto", *RUNNING}


# What runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", RUNNING)
def test_matrices_run_in_half_precision_and_norms_in_fp32(deep, precision):
    learner = Learner(deep, precision)
    norms = {name for name, _ in deep.named_parameters() if "ln_" in name}
    assert norms
    for name, p in learner.running.named_parameters():
        assert p.dtype == (torch.float32 if name in norms else RUNNING[precision]), name
    masters = {p.dtype for p in learner.weights.module.parameters()}
    assert masters == ({torch.float32, torch.float16} if precision == "fp16" else {torch.float32})
    assert (learner.running is deep) == (precision in ("fp32", "amp", "fp16"))


@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [*((precision, "sgd") for precision in RUNNING), ("bf16", "adamw"), ("fp16_master", "adamw")],
)
def test_running_copies_are_the_rounded_weights_after_every_step(deep, precision, optimizer):
    learner = Learner(deep, precision, optimizer, LR=0.01)
    dtype = next(p.dtype for n, p in learner.running.named_parameters() if n == "proj")
    for _ in range(3):
        before = [p.detach().clone() for p in deep.parameters()]
        learner.update(learner.running(torch.randn(2, 5, 128).to(dtype)).float().square().mean())
        assert any(not torch.equal(p, q) for p, q in zip(deep.parameters(), before, strict=True))
        for weight, running in learner.weights.pairs():
            assert torch.equal(running, weight.to(running.dtype))
            assert weight.grad is None and running.grad is None


def test_copies_follow_weights_that_were_loaded(deep):
    learner, other = Learner(deep, "bf16"), {k: v + 1 for k, v in deep.state_dict().items()}
    deep.load_state_dict(other)
    learner.weights.sync()
    for name, p in learner.running.named_parameters():
        assert torch.equal(p, other[name].to(p.dtype))


def test_halving_leaves_norms_scalars_and_exceptions(random_clip):
    learned = list(random_clip.visual.transformer.resblocks[2].parameters())
    halve(random_clip, torch.bfloat16, keep=learned)
    kept = {name for name, p in random_clip.named_parameters() if p.dtype == torch.float32}
    assert "logit_scale" in kept and "visual.ln_pre.weight" in kept and "ln_final.bias" in kept
    assert {name for name in kept if ".2." not in name and "ln_" not in name} == {"logit_scale"}
    assert all(p.dtype == torch.float32 for p in learned)


# Which updates are kept ------------------------------------------------------------------------------

ULP = 2.0**-10  # of fp16 between 1 and 2
PLAIN = {"MOMENTUM": 0.0, "WEIGHT_DECAY": 0.0}


@pytest.mark.parametrize("precision", RUNNING)
def test_an_update_below_half_a_unit_in_the_last_place_is_lost_in_fp16_alone(precision):
    """0.4 units, ten times: 4 units, or nothing at all, as in the released code."""
    module = one_weight(1.5)
    learner = Learner(module, precision, LR=1.0, **PLAIN)
    for _ in range(10):
        push(learner, 0.4 * ULP)
    kept = 1.5 if precision == "fp16" else 1.5 - 4 * ULP
    assert module.weight.item() == pytest.approx(kept, abs=ULP / 50)


def test_an_update_above_half_a_unit_moves_fp16_by_a_whole_one():
    module = one_weight(1.5)
    push(Learner(module, "fp16", LR=1.0, **PLAIN), 0.6 * ULP)
    assert module.weight.item() == 1.5 - ULP


@pytest.mark.parametrize("precision", ["fp32", "bf16", "amp", "fp16_master"])
@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {}), ("sgd", {"SGD_DAMPNING": 0.5}), ("adamw", {}), ("adam", {})]
)
def test_weights_are_updated_as_pytorch_would_by_the_same_gradients(precision, name, options):
    """The gradients are powers of two, so that no type rounds them."""
    module = nn.Linear(3, 2)
    expected = copy.deepcopy(module)
    learner, optimizer = Learner(module, precision, name, **options), make_optimizer(expected, name, **options)
    for gradient in (0.5, 0.25, -0.5, 0.125):
        push(learner, gradient)
        for p in expected.parameters():
            p.grad = torch.full_like(p, gradient)
        optimizer.step()
    for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert learner.weights.step_in_backward == (name == "sgd" and not options and precision not in SCALED)


@pytest.mark.parametrize("options", [{}, {"MOMENTUM": 0.0}, {"SGD_NESTEROV": True}], ids=str)
def test_a_step_in_chunks_has_the_bytes_of_a_step_with_the_whole_gradient(deep, monkeypatch, options):
    gradients = [torch.randn_like(p) for p in deep.parameters()]
    learners = []
    for chunk in (640, 1 << 40):
        monkeypatch.setattr(precision, "CHUNK", chunk)
        learner = Learner(copy.deepcopy(deep), "bf16", **options)
        for _ in range(3):
            pairs = zip(learner.running.parameters(), gradients, strict=True)
            learner.update(sum((p.float() * gradient).sum() for p, gradient in pairs))
        learners.append(learner)
    for name in ("module", "running"):
        found, expected = (getattr(learner.weights, name).parameters() for learner in learners)
        assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))
    assert not any(
        torch.equal(p, q) for p, q in zip(learners[0].weights.module.parameters(), deep.parameters(), strict=True)
    )


def test_pure_fp16_steps_as_pytorchs_sgd_on_fp16_weights():
    module = nn.Linear(5, 4)
    learner, expected = Learner(module, "fp16"), copy.deepcopy(module)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, foreach=False)
    for _ in range(4):
        x = torch.randn(3, 5).half()
        learner.update(module(x).float().square().sum())
        optimizer.zero_grad()
        expected(x).float().square().sum().backward()
        optimizer.step()
    for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
        assert found.dtype == torch.float16 and torch.equal(found, wanted)


# The scaled loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_whose_gradients_overflow_is_left_out_and_lowers_the_scale(optimizer):
    module = one_weight(1.5)
    learner = Learner(module, "fp16_master", optimizer, LR=0.5, WEIGHT_DECAY=0.0)
    scale = learner.scaler.get_scale()
    push(learner, 4.0)  # times 65536: more than fp16 holds
    assert module.weight.item() == 1.5 and learner.scaler.get_scale() == scale / 2
    state = learner.optimizer.state[module.weight]
    assert not any(torch.as_tensor(value).any() for value in state.values())  # no momentum of it either
    push(learner, 2.0**-4)
    assert module.weight.item() == pytest.approx(1.5 - 0.5 * (2.0**-4 if optimizer == "sgd" else 1), abs=1e-4)
    assert torch.equal(learner.running.weight, module.weight.half())


def test_gradients_too_small_for_fp16_are_kept_by_the_scale():
    """2^-26 is below fp16's smallest number."""
    module, bare = one_weight(0.0), one_weight(0.0)
    push(Learner(module, "fp16_master", LR=1.0, **PLAIN), 2.0**-26)
    push(Learner(bare, "fp16", LR=1.0, **PLAIN), 2.0**-26)
    assert module.weight.item() == -(2.0**-26) and bare.weight.item() == 0


@pytest.mark.parametrize("precision", RUNNING)
def test_only_half_gradients_that_are_not_lost_anyway_are_scaled(precision, make_trainer):
    """By the trainer, on a CPU."""
    trainer = make_trainer("SkipTuning", "TRAINER.SKIPTUNING.PREC", precision)
    assert trainer.scaler.is_enabled() == (precision in SCALED)


# The share that moved --------------------------------------------------------------------------------


def test_moved_share_counts_elements_of_small_modules_exactly():
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))  # 24 + 4 + 4 + 4 elements
    before = sample(module)
    assert moved_share(module, before) == 0
    with torch.no_grad():
        module[0].weight.view(-1)[:7] += 1
        module[1].bias[2] -= 1e-7
    assert moved_share(module, before) == pytest.approx(8 / 36)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    assert moved_share(module, before) == pytest.approx(1)


def test_moved_share_weighs_large_weights_by_their_size_and_looks_at_all_their_columns():
    """A matrix of many times SAMPLE elements of which half the columns move."""
    module = nn.Linear(768, 3072, bias=False)
    before = sample(module)
    assert SAMPLE / 2 <= before[0].numel() <= 2 * SAMPLE
    with torch.no_grad():
        module.weight[:, torch.randperm(768)[:384]] += 1
    assert moved_share(module, before) == pytest.approx(0.5, abs=0.05)


def test_the_sample_is_a_copy():
    module = nn.Linear(2, 2)
    before = sample(module)
    with torch.no_grad():
        module.weight += 1
    assert not torch.equal(before[0], module.weight.flatten())


# Runs and checkpoints --------------------------------------------------------------------------------


def run_of(make_trainer, folder, precision, *opts):
    return make_trainer(
        "SkipTuning", "TRAINER.SKIPTUNING.PREC", precision, "OUTPUT_DIR", str(folder), "OPTIM.MAX_EPOCH", "2", *opts
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16_master"])
def test_checkpoints_hold_the_fp32_weights_and_give_the_same_logits(make_trainer, tmp_path, precision):
    trained = run_of(make_trainer, tmp_path / "run", precision, "OPTIM.MAX_EPOCH", "1")
    trained.train()
    (path,) = (tmp_path / "run").glob("learnable_params/model.pth.tar-*")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(not torch.equal(v, v.to(RUNNING[precision]).float()) for v in saved.values())  # not rounded
    loaded = run_of(make_trainer, tmp_path / "other", precision)
    images = torch.randn(3, 3, 32, 32)
    loaded.test()
    untrained = loaded.model_inference(images)
    loaded.load_model(str(tmp_path / "run"))
    loaded.test()
    with torch.no_grad():
        logits = loaded.model_inference(images)
        assert torch.equal(logits, trained.model_inference(images)) and not torch.equal(logits, untrained)


@pytest.mark.parametrize("precision", ["fp16_master", "fp16"])  # test_contract.py has the others
def test_an_interrupted_run_ends_with_the_bytes_of_an_uninterrupted_one(make_trainer, train_until, tmp_path, precision):
    whole = run_of(make_trainer, tmp_path / "whole", precision)
    whole.train()
    cut = run_of(make_trainer, tmp_path / "cut", precision)
    train_until(cut, epoch=1)
    torch.manual_seed(99)
    resumed = run_of(make_trainer, tmp_path / "cut", precision)
    resumed.train()
    assert resumed.start_epoch == 1
    for name, value in whole.deep.state_dict().items():
        assert torch.equal(value, resumed.deep.state_dict()[name]), name
    if precision in SCALED:
        assert resumed.scaler.state_dict() == whole.scaler.state_dict()


@pytest.mark.parametrize("precision", RUNNING)
def test_gradients_are_there_after_a_step_where_they_are_wanted_and_change_no_byte(make_trainer, tmp_path, precision):
    """TRAIN.STEP_IN_BACKWARD False; in no other run are there any."""
    trainers = {}
    for wanted in (True, False):
        opts = ("TRAIN.STEP_IN_BACKWARD", str(not wanted), "TEST.NO_TEST", "True")
        trainers[wanted] = run_of(make_trainer, tmp_path / str(wanted), precision, *opts)
        trainers[wanted].train()
        gradients = [p.grad for p in trainers[wanted].weights.module.parameters()]
        assert all((gradient is not None) == wanted for gradient in gradients)
    assert trainers[True].weights.step_in_backward is False
    pairs = zip(trainers[True].deep.parameters(), trainers[False].deep.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_a_methods_own_parameters_keep_their_gradients_too(make_trainer):
    trainer = make_trainer("KgCoOp", "TRAIN.STEP_IN_BACKWARD", "False", "TEST.NO_TEST", "True")
    trainer.train()
    assert all(p.grad.any() for p in trainer.learned.parameters())


@pytest.mark.parametrize("said", [True, False])
def test_a_training_goes_on_in_the_precision_in_which_it_began_or_says_how(
    make_trainer, train_until, tmp_path, monkeypatch, said
):
    """Auto means another one on another machine; a resume.pt written before it was noted doesn't say it."""
    prec, auto = "TRAINER.SKIPTUNING.PREC", ("TRAIN.CPU_PREC", "auto")
    monkeypatch.setattr(SkipTuning, "automatic_precision", lambda self: ("bf16", "one CPU"))
    train_until(run_of(make_trainer, tmp_path, "auto", *auto), epoch=1)
    path = tmp_path / "resume.pt"
    if not said:
        state = torch.load(path, weights_only=True)
        assert state.pop("precision") == "bf16"
        torch.save(state, path)
    there = path.read_bytes()
    monkeypatch.setattr(SkipTuning, "automatic_precision", lambda self: ("fp32", "another CPU"))
    wrong, right = ("auto", "bf16") if said else ("bf16", "auto")
    refused = (
        rf"is of a training in bf16, this run is in fp32; to go on, set {prec} bf16$"
        if said
        else f"{prec} auto -> bf16"
    )
    with pytest.raises(UserError, match=refused):
        run_of(make_trainer, tmp_path, wrong, *auto).train()
    assert path.read_bytes() == there
    resumed = run_of(make_trainer, tmp_path, right, *auto)
    resumed.train()
    assert resumed.start_epoch == 1


def test_the_scale_survives_a_resume(make_trainer, tmp_path):
    trainer = run_of(make_trainer, tmp_path, "fp16_master")
    trainer.before_train()
    trainer.scaler.scale(torch.ones(()))
    trainer.scaler.update(1024.0)
    save_resume(trainer, tmp_path / "resume.pt")
    resumed = run_of(make_trainer, tmp_path, "fp16_master")
    resumed.before_train()
    assert resumed.scaler.get_scale() == 1024.0
