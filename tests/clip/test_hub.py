"""Models on the Hub: names, the cache without a network, and downloads from a server on this machine."""

import functools
import hashlib
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import open_clip
import pytest
import torch

import clip
from clip import hub
from clip.weights import WeightsError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's answers that its client needs to download a file."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        if "/resolve/" in self.path:
            self.server.log.append((self.command, self.path))
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/(\w+)/(.+)", self.path)
        folder = self.server.repositories.get(match[1]) if match else None
        path = folder / match[3] if folder else None
        if path is None or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if folder else "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and a Hub that can't be reached."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def served(own_cache, monkeypatch):
    """A Hub on this machine: `.repositories` is {"org/repo": folder}, `.log` what was asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.log = {}, []
    download = functools.partial(huggingface_hub.hf_hub_download, endpoint=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def cached(home, repository, folder):
    """Puts `folder` into the cache under `home` as the client does."""
    place = home / "hub" / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / COMMIT)


def test_facts_download_the_configuration_only_and_load_the_weights(served, made, tmp_path):
    repository, name = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "open_clip:ViT-B-16/laion2b_s34b_b88k"
    served.repositories[repository] = made("ViT-B-16").write(tmp_path / "a")
    served.repositories["org/bin"] = made("ViT-B-16-quickgelu").write(tmp_path / "b", "open_clip_pytorch_model.bin")
    facts = clip.facts(name)
    assert {path.rsplit("/", 1)[1] for _, path in served.log} == {"open_clip_config.json"}
    model, _ = clip.load(name, device="cpu")
    assert model.facts == facts == clip.facts(tmp_path / "a") and facts.activation == "gelu"
    assert torch.equal(model.visual.proj, made("ViT-B-16").model.visual.proj)
    assert clip.facts("hf:org/bin").activation == "quick_gelu"
    with pytest.raises(WeightsError, match="hf:org/bin: org/bin has no .safetensors file, and no other is downloaded"):
        clip.load("hf:org/bin")
    assert not any(path.endswith(".bin") for _, path in served.log)
    with pytest.raises(WeightsError, match="the Hub has no repository org/none"):
        clip.load("hf:org/none")
    asked = len(served.log)
    assert clip.load(name, device="cpu")[0].facts == facts and len(served.log) == asked  # now from the cache


def test_a_hugging_face_repository_in_several_files_is_downloaded(served, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=sizes | {"image_size": 32}, text_config=sizes, projection_dim=32)
    theirs = transformers.CLIPModel(config)
    theirs.save_pretrained(tmp_path / "a", max_shard_size="2MB")
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "a")
    served.repositories["org/parts"] = tmp_path / "a"
    model, _ = clip.load("hf:org/parts", device="cpu")
    assert torch.equal(model.visual.proj, theirs.visual_projection.weight.t())
    (tmp_path / "a/config.json").unlink()
    with pytest.raises(WeightsError, match="has neither open_clip_config.json nor config.json"):
        served.repositories["org/other"] = tmp_path / "a"
        clip.facts("hf:org/other")


def test_the_cache_is_enough_without_a_network(made, tmp_path):
    cached(tmp_path / "hf", "org/repo", made("ViT-B-16").write(tmp_path / "a"))
    cached(tmp_path / "hf", "org/bare", made("ViT-B-16").write(tmp_path / "b"))
    next((tmp_path / "hf").rglob("models--org--bare/snapshots/*/open_clip_model.safetensors")).unlink()
    assert (
        clip.load("hf:org/repo", device="cpu")[0].facts == clip.facts("hf:org/repo@main") == clip.facts("hf:org/bare")
    )
    missing = "is not in the cache, and the Hub can't be asked: go online once"
    with pytest.raises(WeightsError, match=f"open_clip_model.safetensors {missing}"):
        clip.load("hf:org/bare")
    with pytest.raises(WeightsError, match=f"hf:org/other: open_clip_config.json {missing}"):
        clip.facts("hf:org/other")


def test_hf_home_and_the_offline_mode_are_the_clients(made, tmp_path):
    cached(tmp_path / "hf", "org/repo", made("ViT-B-16").write(tmp_path / "a"))
    code = "import clip; print(clip.facts('hf:org/repo').activation)"
    settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, cwd=ROOT, capture_output=True, text=True
    )
    assert run.stdout == "gelu\n", run.stderr


def test_the_list_is_open_clips():
    known = open_clip.pretrained._PRETRAINED
    for model, tags in hub.open_clip_models().items():
        for tag, repository in tags.items():
            assert known[model][tag]["hf_hub"].rstrip("/") == repository, (model, tag)
            vision = open_clip.get_model_config(model)["vision_cfg"]
            assert "timm_model_name" not in vision
    families = {tag.split("_")[0] for tags in hub.open_clip_models().values() for tag in tags}
    assert families == {"openai", "laion400m", "laion2b", "datacomp", "commonpool", "metaclip", "dfn2b", "dfn5b"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:ViT-B-16/laion2b_s34b_b88", "do you mean open_clip:ViT-B-16/laion2b_s34b_b88k?"),
        ("open_clip:ViT-B-16", "do you mean open_clip:ViT-B-16/"),
        ("open_clip:ViT-B-16-SigLIP/webli", "is not among the plain ViTs of open_clip's list"),
        ("hf:laion", "names no repository: write hf:org/repo"),
        ("hf:../../etc/passwd", "names no repository"),
        ("hf:", "names no repository"),
        ("hf:org/..", "names no repository"),
        (f"hf:org/{'x' * 200}", "names no repository"),
    ],
)
def test_a_wrong_name_is_one_line(name, words):
    for ask in (clip.facts, clip.load):
        with pytest.raises(WeightsError, match=re.escape(words)) as caught:
            ask(name)
        assert "\n" not in str(caught.value)


def test_quickgelu_in_a_name_means_the_same_repository():
    assert (
        hub._repository("ViT-B-16-quickgelu/dfn2b") == hub._repository("ViT-B-16/dfn2b") == "apple/DFN2B-CLIP-ViT-B-16"
    )


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match="hf:org/repo needs the package huggingface_hub"):
        clip.load("hf:org/repo")
