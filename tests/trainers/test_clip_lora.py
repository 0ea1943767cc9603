import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from clip import clip
from dassl.utils import UserError

NO_DROPOUT = ("TRAINER.CLIPLORA.DROPOUT", "0.0")


@pytest.fixture
def trainer(make_trainer):
    """With low-rank parts that all count."""
    trainer = make_trainer("CLIPLoRA", *NO_DROPOUT)
    for p in trainer.learned.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return trainer


def merge(trainer, model):
    """Add GAMMA B A to the packed weights of `model`: the formula written out."""
    towers = {"text": model.transformer, "image": model.visual.transformer}
    for name, tower in towers.items():
        for block, low in zip(tower.resblocks, trainer.learned[name], strict=True):
            updates = [2**-0.5 * low.B[i] @ low.A[i] for i in range(3)]
            block.attn.in_proj_weight = torch.nn.Parameter((block.attn.in_proj_weight + torch.cat(updates)).detach())


def plain_loss(model, images, labels, names):
    texts = model.encode_text(clip.tokenize([f"a photo of a {name}." for name in names]))
    features = model.encode_image(images)
    return F.cross_entropy(100 * F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).t(), labels)


def test_queries_keys_and_values_have_their_low_rank_parts_in_both_towers(trainer, random_clip):
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 2])
    with torch.no_grad():
        random_clip.logit_scale.fill_(torch.tensor(100.0).log())
        trainer.clip_model.logit_scale.copy_(random_clip.logit_scale)
    merge(trainer, random_clip)
    expected = plain_loss(random_clip, images, labels, trainer.classnames)
    _, terms = trainer.loss(images, labels)
    assert list(terms) == ["ce"]
    torch.testing.assert_close(terms["ce"], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_low_rank_part_is_that_of_the_weight_it_adds_to(trainer, random_clip):
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 5, 2])
    merge(trainer, random_clip)
    with torch.no_grad():
        trainer.clip_model.logit_scale.fill_(torch.tensor(100.0).log())
    plain_loss(random_clip, images, labels, trainer.classnames).backward()
    trainer.loss(images, labels)[1]["ce"].backward()
    blocks = {"text": random_clip.transformer.resblocks, "image": random_clip.visual.transformer.resblocks}
    for name, layers in trainer.learned.items():
        for block, low in zip(blocks[name], layers, strict=True):
            full = block.attn.in_proj_weight.grad.chunk(3)
            for part in range(3):
                torch.testing.assert_close(
                    low.B.grad[part], 2**-0.5 * full[part] @ low.A[part].t(), rtol=1e-3, atol=1e-4
                )
                torch.testing.assert_close(
                    low.A.grad[part], 2**-0.5 * low.B[part].t() @ full[part], rtol=1e-3, atol=1e-4
                )


def test_dropout_is_on_the_low_rank_input_alone_with_a_mask_for_each_projection(make_trainer):
    trainer = make_trainer("CLIPLoRA", "TRAINER.CLIPLORA.DROPOUT", "0.5")
    low = trainer.learned["text"][0]
    with torch.no_grad():
        low.A.fill_(1)
        low.B.fill_(1)
    x = torch.ones(6, low.A.shape[-1])
    q, k, v = low(x, slice(0, 3)).chunk(3, dim=-1)
    assert not torch.equal(q, k) and not torch.equal(k, v)
    low.eval()
    torch.testing.assert_close(low(x, slice(1, 3)), torch.full((6, 2 * x.shape[1]), 2**-0.5 * 2 * x.shape[1]))
    low.A.data.zero_()
    images = torch.randn(2, 3, 32, 32)
    trainer.learned.train()
    for part in trainer.learned.modules():
        if part is not trainer.learned and hasattr(part, "B"):
            part.B.data.zero_()
    assert torch.equal(trainer.image_features(images), trainer.image_features(images))


def test_steps_are_counted_by_shots_and_rounded_up_to_epochs(make_trainer, tmp_path):
    trainer = make_trainer("CLIPLoRA", "OPTIM.STEPS_PER_SHOT", "10", "DATASET.NUM_SHOTS", "2")
    assert trainer.max_epoch == 3 and len(trainer.train_loader_x) == 8  # 20 steps
    assert trainer.sched.T_max == 24
    assert make_trainer("CLIPLoRA", "OUTPUT_DIR", str(tmp_path / "other")).max_epoch == 2


def test_a_run_leaves_an_adapter_in_pefts_format_that_serves_as_model_dir(make_trainer, tmp_path):
    trained = make_trainer("CLIPLoRA")
    trained.train()
    folder = tmp_path / "run" / "peft"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_rslora"]) == ("LORA", 2, 1.0, True)
    assert sorted(config["target_modules"]) == ["k_proj", "q_proj", "v_proj"]
    weights = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.vision_model.encoder.layers.2.self_attn.v_proj"
    assert torch.equal(weights[f"{name}.lora_A.weight"], trained.learned["image"][2].A[2])
    assert torch.equal(weights[f"{name}.lora_B.weight"], trained.learned["image"][2].B[2])
    assert len(weights) == 2 * 3 * (3 + 3)
    loaded = make_trainer("CLIPLoRA", "OUTPUT_DIR", str(tmp_path / "other"))
    loaded.load_model(str(folder))
    for name, value in trained.learned.state_dict().items():
        torch.testing.assert_close(loaded.learned.state_dict()[name], value)


def test_an_adapter_of_another_scale_and_of_fewer_layers_means_the_same_here(trainer, tmp_path):
    trainer.save_peft(tmp_path / "peft")
    before = {name: p.clone() for name, p in trainer.learned.named_parameters()}
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    config |= {"use_rslora": False, "lora_alpha": 16}  # 16 / 2 instead of 1 / sqrt(2)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if "k_proj" not in name}
    save_file(kept, tmp_path / "peft" / "adapter_model.safetensors")
    trainer.load_model(str(tmp_path / "peft"))
    for name, p in trainer.learned.named_parameters():
        if name.endswith("B"):
            expected = before[name] * 8 * 2**0.5
            expected[1] = 0
            torch.testing.assert_close(p, expected)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"r": 4}, "has r 4: set TRAINER.CLIPLORA.R"),
        ({"extra": "out_proj"}, "adapts base_model.model.text_model.encoder.layers.0.self_attn.out_proj"),
        ({"size": 7}, "of another size: it is for another backbone"),
        ({"broken": True}, "adapter_model.safetensors is incomplete or no weights file"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(trainer, tmp_path, change, words):
    folder = tmp_path / "peft"
    trainer.save_peft(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": change.get("r", 2)}))
    weights = load_file(folder / "adapter_model.safetensors")
    first = "base_model.model.text_model.encoder.layers.0.self_attn."
    if "extra" in change:
        weights[f"{first}out_proj.lora_A.weight"] = torch.zeros(2, 2)
    if "size" in change:
        weights[f"{first}q_proj.lora_A.weight"] = torch.zeros(2, 7)
    save_file(weights, folder / "adapter_model.safetensors")
    if "broken" in change:
        (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=words):
        trainer.load_model(str(folder))


def test_peft_itself_reads_the_adapter_and_adds_the_same_to_every_projection(trainer, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft and transformers")
    transformers = pytest.importorskip("transformers", reason="needs peft and transformers")
    sizes = dict(num_hidden_layers=3, num_attention_heads=1, projection_dim=32, intermediate_size=64)
    image = sizes | dict(hidden_size=128, image_size=32, patch_size=16)
    config = transformers.CLIPConfig(text_config=sizes | dict(hidden_size=64), vision_config=image)
    trainer.save_peft(tmp_path / "peft")
    adapted = peft.PeftModel.from_pretrained(transformers.CLIPModel(config), str(tmp_path / "peft"))
    found = {name: part for name, part in adapted.named_modules() if hasattr(part, "get_delta_weight")}
    ours = trainer.peft_weights()
    assert found.keys() == ours.keys()
    for name, (low, part) in ours.items():
        torch.testing.assert_close(found[name].get_delta_weight("default"), 2**-0.5 * low.B[part] @ low.A[part])


def test_the_adapter_is_that_of_the_best_epoch_where_that_is_tested(make_trainer, tmp_path):
    trainer = make_trainer("CLIPLoRA", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", "3")
    trainer.val_loader, accuracies, test = trainer.test_loader, iter((10.0, 30.0, 20.0)), trainer.test
    trainer.test = lambda split=None: next(accuracies) if split else test()
    trainer.train()
    loaded = make_trainer("CLIPLoRA")
    loaded.load_model(str(tmp_path / "run"))  # the best
    best = loaded.learned["text"][0].B.detach().clone()
    loaded.load_model(str(tmp_path / "run"), epoch=3)
    assert not torch.equal(loaded.learned["text"][0].B, best)
    assert torch.equal(trainer.learned["text"][0].B, best)
    loaded.load_model(str(tmp_path / "run" / "peft"))
    torch.testing.assert_close(loaded.learned["text"][0].B, best)


def test_another_scale_than_that_of_the_training_is_refused(make_trainer, tmp_path):
    make_trainer("CLIPLoRA").train()
    other = make_trainer("CLIPLoRA", "TRAINER.CLIPLORA.ALPHA", "2.0")
    with pytest.raises(UserError, match="trained with TRAINER.CLIPLORA.ALPHA 1.0"):
        other.load_model(str(tmp_path / "run"))


def test_a_warm_up_has_as_many_epochs_as_it_says(make_trainer):
    warm = ("OPTIM.WARMUP_EPOCH", "1", "OPTIM.WARMUP_TYPE", "constant", "OPTIM.WARMUP_CONS_LR", "1e-5")
    trainer = make_trainer("CLIPLoRA", *warm)
    rates, step = [], trainer.forward_backward

    def recorded(batch):
        rates.append(trainer.optim.param_groups[0]["lr"])
        return step(batch)

    trainer.forward_backward = recorded
    trainer.train()
    half = len(rates) // 2
    assert rates[:half] == [1e-5] * half and min(rates[half : half + 1]) > 1e-3
