"""The two trainer files of tests/upstream_style/, in upstream's style, run on our `dassl` and `clip`."""

import pytest
import torch
from yacs.config import CfgNode

from clip import clip
from clip.model import CLIP
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from tests.upstream_style import coop_like, zsclip_like  # noqa: F401 (importing registers them)


@pytest.fixture
def tiny_clip(cfg, tmp_path, monkeypatch):
    """Options for a random two-block CLIP of 16-pixel images, which lies where `_download` would put it."""
    set_random_seed(0)
    model = CLIP(16, 16, 2, 64, 8, 77, 49408, 64, 1, 2)
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    monkeypatch.setitem(clip._MODELS, "ViT-T/8", "https://localhost/tiny.pt")
    monkeypatch.setattr(clip, "_download", lambda url, root=None: str(tmp_path / "tiny.pt"))
    cfg.TRAINER.COOPLIKE = CfgNode({"N_CTX": 4, "PREC": "fp32"})
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "ViT-T/8", "OPTIM.MAX_EPOCH", 2, "OPTIM.LR", 0.1])
    return cfg


@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp"])
@pytest.mark.filterwarnings("ignore")  # torch.cuda.amp and torch.jit.load are deprecated, forks use them
def test_a_prompt_learner_trains_saves_and_loads(tiny_clip, precision, capsys):
    tiny_clip.TRAINER.COOPLIKE.PREC = precision
    tiny_clip.TRAINER.NAME = "CoOpLike"
    trainer = build_trainer(tiny_clip)
    start = trainer.model.prompt_learner.ctx.detach().clone()
    frozen = trainer.model.image_encoder.conv1.weight.clone()
    trainer.train()
    learned = trainer.model.prompt_learner.ctx.detach()
    assert start.dtype == (torch.float16 if precision == "fp16" else torch.float32)
    assert torch.isfinite(learned).all() and not torch.equal(start, learned)
    assert torch.equal(frozen, trainer.model.image_encoder.conv1.weight)
    tested = build_trainer(tiny_clip)
    tested.load_model(tiny_clip.OUTPUT_DIR, epoch=2)
    assert torch.equal(tested.model.prompt_learner.ctx, learned)
    assert tested.test() == trainer.evaluator.results["accuracy"]
    out = capsys.readouterr().out
    assert "acc " in out and "Loading weights to prompt_learner" in out and "epoch = 2" in out


@pytest.mark.filterwarnings("ignore")
def test_a_zero_shot_trainer_gives_clips_own_logits(tiny_clip):
    tiny_clip.TRAINER.NAME = "ZeroshotLike"
    trainer = build_trainer(tiny_clip)
    trainer.clip_model.float()
    trainer.text_features = trainer.text_features.float()
    images = torch.rand(2, 3, 16, 16)
    texts = clip.tokenize([f"a photo of a {name}." for name in ("red", "green", "blue")])
    with torch.no_grad():
        expected = trainer.clip_model(images, texts)[0]
        # its text features were computed in fp16
        torch.testing.assert_close(trainer.model_inference(images), expected, rtol=2e-2, atol=2e-2)
    trainer.load_model("somewhere")  # nothing is registered, nothing is looked for
    trainer.train()
    assert trainer.evaluator.total == 12
