"""The scripts that make the embedded dataset and model: which icons are let in, and that a training can go on."""

import hashlib
import json
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "embedded"))

import emoji
import icons
import pretrain

from dassl.utils.archives import BadArchive

# ---- names ----


@pytest.mark.parametrize(
    "key, name",
    [
        ("food-apple-2-outline", "apple"),
        ("solid", "solid"),
        ("alarm-clock-24px", "alarm clock"),
        ("h1-é", ""),
    ],
)
def test_icon_names_lose_sizes_styles_and_shelf_marks(key, name):
    assert icons.clean_name(key) == name


@pytest.mark.parametrize(
    "key, name",
    [
        ("light-bulb", "light bulb"),
        ("doughnut-2", "doughnut"),
        ("woman-dark-skin-tone", ""),
        ("man-golfing-medium-dark", ""),
    ],
)
def test_emoji_names_stay_but_for_a_number_and_skin_tones_go(key, name):
    assert icons.emoji_name(key) == name


@pytest.mark.parametrize(
    "key, named",
    [
        ("automobile", True),
        ("oncoming-automobile", True),
        ("oncomingautomobile", True),  # fxemoji's way of writing
        ("clock-alarm", True),
        ("clock", False),
        ("ox", True),
        ("fox", False),  # short names count as whole words only
    ],
)
def test_names_that_contain_a_class(key, named):
    assert emoji.names_a_class(key, ["alarm clock", "automobile", "ox"]) is named


# ---- the package ----


def write_archive(folder, member="package/collections.json"):
    archive = folder / f"iconify-json-{icons.VERSION}.tgz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.addfile(tarfile.TarInfo(member))
    return hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.fixture
def renderer(monkeypatch):
    monkeypatch.setattr(icons.importlib.util, "find_spec", lambda name: name)


def test_the_archive_is_unpacked_whole_and_once(tmp_path, monkeypatch, renderer):
    monkeypatch.setattr(icons, "SHA256", write_archive(tmp_path))
    assert icons.fetch(tmp_path) == tmp_path / "package"
    (tmp_path / "package/collections.json").rename(tmp_path / "package/part")  # what cannot be whole is made anew
    assert [path.name for path in icons.fetch(tmp_path).iterdir()] == ["collections.json"]
    next(tmp_path.glob("*.tgz")).unlink()
    assert (icons.fetch(tmp_path) / "collections.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_another_archive_is_refused_and_nothing_of_it_unpacked(tmp_path, renderer):
    write_archive(tmp_path)
    with pytest.raises(SystemExit, match="is not version .*: remove it and give this command again"):
        icons.fetch(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tgz"]


def test_an_archive_that_writes_outside_its_folder_leaves_no_package(tmp_path, monkeypatch, renderer):
    folder = tmp_path / "a" / "icons"
    folder.mkdir(parents=True)
    monkeypatch.setattr(icons, "SHA256", write_archive(folder, "../../outside"))
    with pytest.raises(BadArchive, match="'../../outside' in it leads out of the folder"):
        icons.fetch(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "icons", f"iconify-json-{icons.VERSION}.tgz"]


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path, monkeypatch, renderer):
    monkeypatch.setattr(icons.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="npm is missing: install Node.js, or put the package's archive there"):
        icons.fetch(tmp_path)
    monkeypatch.setattr(icons.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f'pip install "{icons.RENDERER}"'):
        icons.fetch(tmp_path)


# ---- the dataset ----


def write_package(folder, sets):
    (folder / "json").mkdir()
    for name, keys in sets.items():
        body = {"icons": {key: {"body": "<path/>"} for key in keys}}
        body["categories"] = dict.fromkeys(emoji.THINGS, keys)
        (folder / "json" / f"{name}.json").write_text(json.dumps(body))


def test_a_class_needs_every_training_and_test_set_one_validation_set_and_three_other_sets(tmp_path):
    keys = ["anchor", "bell", "crown", "drum", "fire-engine"]
    sets = {name: list(keys) for name in emoji.OWN_SETS} | {"fxemoji": ["anchor", "bell", "crown", "fireengine"]}
    sets["streamline-emojis"] = []
    sets["noto"].remove("bell")
    write_package(tmp_path, sets)
    others = ("a", "b", "c")
    records = [{"set": name, "name": key.replace("-", " ")} for name in others for key in keys]
    records = [record for record in records if record != {"set": "c", "name": "crown"}]
    records.append({"set": "twemoji", "name": "crown"})  # the dataset's own sets don't count as others
    vendors = {name: emoji.icons_by_name(tmp_path, name) for name in emoji.OWN_SETS}
    assert emoji.choose_classes(tmp_path, records, vendors) == ["anchor", "fire engine"]


def test_pre_training_sees_nothing_that_is_called_or_looks_like_a_class(tmp_path):
    random = np.random.default_rng(0)
    blobs = np.repeat(np.repeat(random.integers(0, 256, (4, 8, 8, 4)), 8, 1), 8, 2).astype(np.uint8)
    blobs[..., 3] = 255
    faint = blobs[0].copy()
    faint[:2] = 0  # a nearly equal copy of the image of the dataset
    np.save(tmp_path / "colour.npy", np.stack([*blobs[1:], faint]))
    np.save(tmp_path / "mono.npy", blobs[:1, ..., 0])
    records = [
        {"set": "twemoji", "key": "anchor", "colour": True, "row": 0},
        {"set": "twemoji", "key": "bell", "colour": True, "row": 1},
        {"set": "emojione", "key": "anchor", "colour": True, "row": 2},
        {"set": "some-icons", "key": "hook", "colour": True, "row": 3},
        {"set": "some-icons", "key": "anchor", "colour": False, "row": 0},
    ]
    seen = emoji.seen_rows(tmp_path, records, ["anchor"], blobs[:1, ..., :3])
    assert [(records[i]["set"], records[i]["key"]) for i in seen] == [
        ("twemoji", "bell"),
        ("emojione", "anchor"),
        ("some-icons", "anchor"),
    ]


def test_icons_are_put_on_white():
    red = np.zeros((1, 64, 64, 4), np.uint8)
    red[..., 0], red[..., 3] = 200, 51  # a fifth
    assert (emoji.on_white(red) == [244, 204, 204]).all()
    assert (emoji.on_white(np.full((1, 64, 64), 255, np.uint8)) == 0).all()  # coverage is black ink


# ---- the training ----


def test_the_learning_rate_warms_up_stays_and_falls_in_a_stage_of_its_own():
    constant = [pretrain.learning_rate(step, 1000, 100, fall=False) for step in (0, 49, 99, 999)]
    assert constant == pytest.approx([0.01, 0.5, 1, 1])
    fall = [pretrain.learning_rate(step, 1000, 0, fall=True) for step in (0, 500, 999)]
    assert fall == pytest.approx([1, 0.5, 0.001])


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8)])
def test_muon_steps_along_the_nearest_orthogonal_matrix(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100])[:, None, None]
    for matrix, found in zip(matrices, pretrain.orthogonal(matrices), strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
        assert F.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_muon_steps_each_matrix_by_its_own_gradient_and_momentum():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4, 6)) for _ in range(2)]
    plain, momenta = [p.detach().clone() for p in params], [torch.zeros(4, 6) for _ in params]
    muon = pretrain.Muon(params, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        for p, weights, momentum in zip(params, plain, momenta, strict=True):
            p.grad = torch.randn(4, 6)
            momentum.mul_(0.95).add_(0.05 * p.grad)
            update = pretrain.orthogonal((0.05 * p.grad + 0.95 * momentum)[None])[0]
            weights.mul_(1 - 0.1 * 0.5).sub_(0.1 * 0.2 * 6**0.5 * update)
        muon.step()
    torch.testing.assert_close(params, plain, atol=2e-3, rtol=0)  # bf16 may round a stack in another way


def test_images_of_one_name_are_no_negatives_of_each_other():
    features = torch.eye(3)
    apart = pretrain.contrastive_loss(features, features, 10.0, torch.tensor([0, 1, 2]))
    swapped = pretrain.contrastive_loss(features, features[[1, 0, 2]], 10.0, torch.tensor([0, 0, 2]))
    same = pretrain.contrastive_loss(features, features, 10.0, torch.tensor([0, 0, 2]))
    assert apart < 0.01 and swapped.item() == pytest.approx(same.item())


def test_captions_keep_their_features_and_places_where_their_lengths_differ():
    torch.manual_seed(0)
    model = pretrain.tiny_clip(40).eval()
    tokens = torch.zeros(7, pretrain.CAPTION_TOKENS, dtype=torch.long)
    for row, end in zip(tokens, (9, 3, 15, 4, 3, 12, 6), strict=True):
        row[:end] = torch.randint(1, 39, (end,))
        row[end] = 39  # end-of-text has the largest id
    with torch.no_grad():
        torch.testing.assert_close(pretrain.encode_captions(model, tokens), model.encode_text(tokens))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        text = torch.randint(1, 8, (4, 6), generator=generator)
        text[:, -1] = 9
        yield torch.randn(4, 3, 64, 64, generator=generator), text, torch.arange(4)


def test_a_stage_goes_on_where_its_checkpoint_stopped_and_the_next_one_starts_there(tmp_path):
    used = torch.arange(10)
    first, second = batches(2)
    torch.manual_seed(0)
    through = pretrain.Stage(used)
    through.train_step(first, 1.0)
    through.save(tmp_path / "some.pt")
    loss = through.train_step(second, 0.5)

    resumed = pretrain.Stage(used)
    resumed.load(tmp_path / "some.pt", same_stage=True)
    assert (resumed.step, resumed.samples) == (1, 4)
    assert torch.equal(resumed.train_step(second, 0.5), loss)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, through.model.state_dict()[name]), name

    following = pretrain.Stage(used)
    following.load(tmp_path / "some.pt", same_stage=False)
    assert (following.step, following.samples) == (0, 4)
    with pytest.raises(SystemExit, match="other tokens"):
        pretrain.Stage(used + 1).load(tmp_path / "some.pt", same_stage=False)


def test_weights_start_a_stage_with_a_warm_up_and_new_tokens_as_the_mean(tmp_path):
    torch.manual_seed(0)
    old = pretrain.Stage(torch.tensor([2, 5]))
    old.save_weights(tmp_path / "old.safetensors")
    new = pretrain.Stage(torch.tensor([2, 5, 7]))
    new.load_weights(tmp_path / "old.safetensors")
    rows, kept = new.model.token_embedding.weight, old.model.token_embedding.weight
    assert torch.equal(rows[:2], kept.half().float())
    torch.testing.assert_close(rows[2], kept.half().float().mean(0), atol=1e-4, rtol=1e-3)
    assert torch.equal(new.model.visual.proj, old.model.visual.proj.half().float())
    assert new.warmup == pretrain.WARMUP and math.isclose(new.model.logit_scale.exp().item(), 1 / 0.07, rel_tol=1e-3)
