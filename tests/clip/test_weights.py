import errno
import hashlib
import os
import random
import re
import threading
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import clip
from clip import clip as submodule
from clip import weights
from clip.clip import _MODELS, _download
from clip.model import build_model
from clip.simple_tokenizer import SimpleTokenizer
from clip.weights import WeightsError, pack_embedded, read_state_dict, unpack_embedded
from dassl.utils import download as downloader

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"{SHA256}/model.pt"
EMBEDDED_NAME = "ViT-XS/16-icons"


@pytest.fixture
def serve(server):
    """serve(*tricks) -> the address at which CONTENT can be had, as OpenAI's: the SHA-256, then the name."""
    return lambda *tricks: server.put(NAME, CONTENT, *tricks)


# ---- names ----


def test_the_names_are_openais_vits_and_the_embedded_model():
    names = ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px", EMBEDDED_NAME]
    assert clip.available_models() == names
    for name in names[:-1]:
        file = name.replace("/", "-").replace("@", "-")
        pattern = rf"https://openaipublic\.azureedge\.net/clip/models/[0-9a-f]{{64}}/{file}\.pt"
        assert re.fullmatch(pattern, _MODELS[name])


def test_forks_find_openais_functions_where_they_look_for_them():
    assert submodule.load is clip.load and submodule.tokenize is clip.tokenize
    assert submodule.build_model is build_model
    assert isinstance(submodule._tokenizer, SimpleTokenizer)


@pytest.mark.parametrize(("name", "near"), [("ViT-B-16", "ViT-B/16"), ("vit-l14", "ViT-L/14"), ("ViT-B/8", "ViT-B/")])
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(RuntimeError, match=re.escape(f"did you mean '{near}")) as caught:
        clip.load(name)
    assert str(caught.value).startswith(f"Model {name} not found; available models = ['ViT-B/32', ")
    assert isinstance(caught.value, OSError)  # what commands report in one line
    with pytest.raises(KeyError):
        _MODELS[name]


def test_a_resnet_is_refused_with_the_reason():
    with pytest.raises(WeightsError, match="RN50 not found.*take one of these ViTs"):
        clip.load("RN50")


def test_jit_is_refused():
    with pytest.raises(RuntimeError, match="jit=False"):
        clip.load("ViT-B/32", jit=True)


# ---- download ----


def test_a_fresh_download_is_verified_and_never_repeated(serve, server, tmp_path):
    url = serve()
    path = _download(url, root=str(tmp_path / "new" / "cache"))
    assert path == str(tmp_path / "new" / "cache" / "model.pt")
    assert (tmp_path / "new" / "cache" / "model.pt").read_bytes() == CONTENT
    assert not list(tmp_path.rglob("*.part"))
    assert _download(url, root=str(tmp_path / "new" / "cache")) == path
    assert server.ranges(NAME) == [None]


def test_the_cache_folder_is_looked_up_at_call_time(serve, tmp_path, monkeypatch):
    url = serve()
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    assert _download(url) == str(tmp_path / "cache" / "model.pt")
    monkeypatch.delenv("CLIP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _download(url) == str(tmp_path / ".cache" / "clip" / "model.pt")


def test_a_connection_that_breaks_is_taken_up_where_it_broke(serve, server, tmp_path):
    path = _download(serve({"cut": 100_000}, {"cut": 50_000}), root=tmp_path)
    assert server.ranges(NAME) == [None, "bytes=100000-", "bytes=150000-"]
    assert Path(path).read_bytes() == CONTENT


def test_a_killed_run_is_taken_up_by_the_next_one(serve, server, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(CONTENT[:123_456])
    path = _download(serve(), root=tmp_path)
    assert server.ranges(NAME) == ["bytes=123456-"]
    assert Path(path).read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_accepted(serve, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(CONTENT)
    assert Path(_download(serve(), root=tmp_path)).read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_starts_anew(serve, server, tmp_path):
    url = serve({"cut": 200_000}, {"no_range": True})
    assert Path(_download(url, root=tmp_path)).read_bytes() == CONTENT
    assert server.ranges(NAME) == [None, "bytes=200000-"]


def test_a_wrong_file_is_refused_and_nothing_is_left(server, tmp_path):
    url = server.put(f"{'0' * 64}/model.pt", CONTENT)
    with pytest.raises(RuntimeError, match=f"wrong SHA-256 {SHA256}.*run again"):
        _download(url, root=tmp_path)
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "model.pt.part").exists()


def test_a_part_of_another_file_is_refused_and_the_next_run_is_fresh(serve, tmp_path):
    (tmp_path / "model.pt.part").write_bytes(b"x" * 1000)
    with pytest.raises(WeightsError, match="wrong SHA-256"):
        _download(serve(), root=tmp_path)
    assert Path(_download(serve(), root=tmp_path)).read_bytes() == CONTENT


def test_a_users_own_file_is_not_overwritten(serve, server, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"my own weights")
    with pytest.raises(RuntimeError, match=r"model\.pt has the SHA-256 .* move it away .*load it by its path"):
        _download(serve(), root=tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == b"my own weights"
    assert server.ranges(NAME) == []


def test_a_file_is_hashed_once_and_again_when_it_was_touched(serve, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    hashed = []
    original = weights.file_hash
    monkeypatch.setattr(weights, "file_hash", lambda p: hashed.append(p.name) or original(p))
    for _ in range(3):
        _download(serve(), root=tmp_path)
    assert hashed == ["model.pt"]
    path.write_bytes(CONTENT[:-1] + b"\0")  # the same size
    os.utime(path, ns=(1, 1))
    with pytest.raises(WeightsError, match="has the SHA-256"):
        _download(serve(), root=tmp_path)


def test_a_folder_in_the_files_place_is_refused(serve, tmp_path):
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(RuntimeError, match="exists and is not a regular file"):
        _download(serve(), root=tmp_path)


def test_file_urls_work(tmp_path):
    source = tmp_path / SHA256 / "model.pt"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model.pt.part").write_bytes(b"rest of an earlier try")
    assert Path(_download(source.as_uri(), root=tmp_path / "cache")).read_bytes() == CONTENT


def test_a_url_without_sha256_is_refused():
    with pytest.raises(WeightsError, match="could not be verified"):
        _download("http://127.0.0.1:1/models/model.pt")


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, downloader.TRIES)])
def test_a_failing_server_is_named_and_asked_again_only_if_that_can_help(serve, server, tmp_path, status, requests):
    url = serve(*[{"status": status}] * downloader.TRIES)
    with pytest.raises(OSError, match=f"can't download {url} .*{status}.*put the file at {tmp_path}/model.pt"):
        _download(url, root=tmp_path)
    assert len(server.ranges(NAME)) == requests


def test_a_full_disk_is_reported_at_once(tmp_path, monkeypatch):
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloader, "_append_rest", full)
    with pytest.raises(WeightsError, match="No space left on device"):
        _download(f"http://127.0.0.1:1/{SHA256}/model.pt", root=tmp_path)
    assert len(calls) == 1


def test_runs_started_together_download_once(serve, server, tmp_path):
    url = serve()
    threads = [threading.Thread(target=_download, args=(url, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ranges(NAME) == [None]
    assert (tmp_path / "model.pt").read_bytes() == CONTENT


# ---- the embedded model ----


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


USED_ROWS = [49407, 320, 49406, 5, 320, 1929]


@pytest.fixture
def embedded(make_clip, tmp_path, monkeypatch):
    """Stands in for clip/embedded.safetensors; returns (its path, the state dict it was packed from)."""
    state_dict = make_clip().state_dict()
    path = tmp_path / "package" / "embedded.safetensors"
    path.parent.mkdir()
    save_file(pack_embedded(state_dict, USED_ROWS), path)
    monkeypatch.setattr(weights, "EMBEDDED", path)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    return path, state_dict


def test_packing_keeps_the_used_rows_and_unpacking_gives_the_others_their_mean(make_clip):
    state_dict = make_clip().state_dict()
    packed = pack_embedded(state_dict, USED_ROWS)
    table, rows = state_dict["token_embedding.weight"], sorted(set(USED_ROWS))
    assert packed["token_embedding.rows"].dtype == torch.int32
    assert packed["token_embedding.rows"].tolist() == rows
    assert torch.equal(packed["token_embedding.weight"], table[rows].half())
    found = unpack_embedded(packed)
    assert found.keys() == state_dict.keys()
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert torch.equal(found["token_embedding.weight"][rows], table[rows].half())
    others = torch.ones(49408, dtype=torch.bool).index_fill(0, torch.tensor(rows), False)
    mean = table[rows].half().float().mean(dim=0).half()
    assert (found["token_embedding.weight"][others] == mean).all()
    for key in state_dict.keys() - {"token_embedding.weight"}:
        assert torch.equal(found[key], state_dict[key].half()), key
    assert {key: value.dtype for key, value in state_dict.items()} == dict.fromkeys(state_dict, torch.float32)


def test_used_rows_may_be_a_tensor_of_token_ids(make_clip):
    state_dict = make_clip().state_dict()
    packed = pack_embedded(state_dict, clip.tokenize(["a dog", "a cat"]))
    assert packed["token_embedding.rows"].tolist() == [0, 320, 1929, 2368, 49406, 49407]


def test_read_state_dict_unpacks_the_embedded_model(embedded):
    path, state_dict = embedded
    assert_same(read_state_dict(path), unpack_embedded(pack_embedded(state_dict, USED_ROWS)))


def test_a_trainer_in_the_upstream_style_can_open_the_embedded_model(embedded):
    path = _download(_MODELS[EMBEDDED_NAME])
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(path, map_location="cpu")
    state_dict = torch.load(path, map_location="cpu")
    assert_same(state_dict, read_state_dict(embedded[0]))
    assert build_model(state_dict).vocab_size == 49408


def test_load_gives_the_embedded_model(embedded):
    model, preprocess = clip.load(EMBEDDED_NAME, device="cpu")
    assert torch.equal(model.visual.proj, embedded[1]["visual.proj"].half().float())
    assert preprocess.transforms[0].size == model.visual.input_resolution == 32


def test_the_unpacked_file_is_written_once_and_anew_when_the_embedded_model_changes(embedded, monkeypatch):
    first = _download(_MODELS[EMBEDDED_NAME])
    written = os.stat(first).st_mtime_ns
    assert _download(_MODELS[EMBEDDED_NAME]) == first and os.stat(first).st_mtime_ns == written
    path, state_dict = embedded
    save_file(pack_embedded(state_dict, [1, 2]), path)
    second = _download(_MODELS[EMBEDDED_NAME])
    assert second != first
    assert_same(torch.load(second), unpack_embedded(pack_embedded(state_dict, [1, 2])))


def test_nothing_is_left_when_unpacking_is_interrupted(embedded, tmp_path, monkeypatch):
    def broken(_, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        _download(_MODELS[EMBEDDED_NAME])
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_embedded_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "EMBEDDED", tmp_path / "embedded.safetensors")
    with pytest.raises(WeightsError, match="embedded.safetensors is missing"):
        _download(_MODELS[EMBEDDED_NAME], root=tmp_path)


def test_the_embedded_model_in_the_repository_has_the_promised_shape_and_size(tmp_path):
    assert weights.EMBEDDED.stat().st_size <= 20e6
    model, preprocess = clip.load(EMBEDDED_NAME, device="cpu", download_root=tmp_path)
    towers = [model.visual.transformer, model.transformer]
    assert [(t.width, t.layers, t.resblocks[0].attn.num_heads) for t in towers] == [
        (192, 12, 3),
        (128, 12, 2),
    ]
    assert model.visual.conv1.kernel_size == (16, 16) and model.visual.output_dim == 128
    with torch.no_grad():
        image = preprocess(Image.new("RGB", (64, 64), "red"))[None]
        logits, _ = model(image, clip.tokenize(["a red icon.", "a photo of a dog."]))
    assert image.shape == (1, 3, 64, 64) and logits.isfinite().all()


@pytest.mark.parametrize("damage", ["tampered", "cut short", "another thing"])
def test_what_lies_in_the_cache_is_compared_with_the_embedded_model(embedded, damage):
    path = Path(_download(_MODELS[EMBEDDED_NAME]))
    state_dict = torch.load(path)
    if damage == "tampered":
        torch.save(state_dict | {"visual.proj": -state_dict["visual.proj"]}, path)
    elif damage == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"<html>")
    model, _ = clip.load(EMBEDDED_NAME, device="cpu")  # reads the embedded file itself
    assert torch.equal(model.visual.proj, embedded[1]["visual.proj"].half().float())
    assert _download(_MODELS[EMBEDDED_NAME]) == str(path)
    assert_same(torch.load(path), state_dict)


def test_loading_the_embedded_model_needs_no_cache(embedded, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "file/cache"))
    model, _ = clip.load(EMBEDDED_NAME, device="cpu")
    assert model.facts == clip.facts(EMBEDDED_NAME)
    with pytest.raises(WeightsError, match="Can't write weights to .*/file/cache .*set CLIP_CACHE to another folder"):
        _download(_MODELS[EMBEDDED_NAME])


def test_a_full_cache_is_one_line_and_nothing_is_left(embedded, tmp_path, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0\nframes")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WeightsError, match=r"Can't write weights to .*: make room, or set CLIP") as caught:
        _download(_MODELS[EMBEDDED_NAME])
    assert "\n" not in str(caught.value) and list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cant_be_written_is_one_line(serve, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="Can't write weights to .*/file/cache .*make room, or set CLIP_CACHE"):
        _download(serve(), root=tmp_path / "file/cache")
