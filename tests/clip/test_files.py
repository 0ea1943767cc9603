"""Files of weights: what is read, what is refused in one line, and that nothing in them is executed or unfolds."""

import gzip
import os
import random
import re
import subprocess
import sys
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clip import weights
from clip.model import build_model
from clip.weights import WeightsError, read_state_dict

NOISE = random.Random(0).randbytes(5000)


@pytest.fixture
def state_dict(make_clip):
    return make_clip(vocab_size=600).state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_state_dicts_checkpoints_and_safetensors_are_read(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "plain.pt")
    torch.save({"state_dict": state_dict, "epoch": 3}, tmp_path / "model.pth.tar-3")
    save_file(state_dict, tmp_path / "model.safetensors")
    for name in ["plain.pt", "model.pth.tar-3", "model.safetensors"]:
        assert_same(read_state_dict(tmp_path / name), state_dict)
        assert_same(read_state_dict(str(tmp_path / name)), state_dict)


def torchscript(model, path):
    """Saves what OpenAI saves: a traced model that holds three integers beside its weights."""
    del model.context_length, model.vocab_size
    for name, value in dict(input_resolution=32, context_length=77, vocab_size=600).items():
        model.register_buffer(name, torch.tensor(value))
    text = torch.zeros(1, 77, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, (torch.zeros(1, 3, 32, 32), text), check_trace=False).save(str(path))


def test_a_torchscript_archive_is_read_quietly_and_builds_the_model(make_clip, tmp_path):
    model = make_clip(vocab_size=600)
    expected = model.state_dict()
    torchscript(model, tmp_path / "jit.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_state_dict(tmp_path / "jit.pt")
    assert_same(build_model(found).state_dict(), build_model(expected).state_dict())
    scalars = {key: int(found.pop(key)) for key in ("input_resolution", "context_length", "vocab_size")}
    assert scalars == dict(input_resolution=32, context_length=77, vocab_size=600)
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["plain.pt", "jit.pt", "model.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_an_incomplete_file_is_one_line_that_names_it(make_clip, tmp_path, name, keep):
    model, path = make_clip(vocab_size=600), tmp_path / name
    if name == "jit.pt":
        torchscript(model, path)
    elif name == "plain.pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    os.truncate(path, int(keep * path.stat().st_size))
    with pytest.raises(WeightsError, match=re.escape(str(path))) as caught:
        read_state_dict(path)
    assert "incomplete" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>sign in first</html>", b"PK\x03\x04", NOISE])
def test_a_file_that_is_something_else_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(str(path))) as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


class Sly:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_pickle_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Sly()}, "sly.pt")
    with pytest.raises(WeightsError, match=r"sly\.pt"):
        read_state_dict("sly.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("content", [[1, 2], 3, {"state_dict": 5}, {"epoch": 3}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other\.pt holds no state dict"):
        read_state_dict(tmp_path / "other.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=f"no weights file at {tmp_path}/absent.pt"):
        read_state_dict(tmp_path / "absent.pt")


def refused(path, words):
    """Asserts that the file is refused in one line that names it and holds `words`."""
    with pytest.raises(WeightsError, match=words) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty; download it again"),
        (b"<!DOCTYPE html><title>Log in</title>", "is a web page, not weights"),
        (b"\xef\xbb\xbf \n<HTML lang=en>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer.*git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "is a compressed archive: unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "TensorFlow"),
        (b"\x00" * 600, "no format that is read"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_known_mix_up_is_called_by_its_name(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, words)


def test_a_file_is_what_its_first_bytes_say(state_dict, tmp_path):
    torch.save(state_dict, tmp_path / "torch.safetensors")
    save_file(state_dict, tmp_path / "safe.bin")
    torch.save(state_dict, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("torch.safetensors", "safe.bin", "old.pt"):
        assert_same(read_state_dict(tmp_path / name), state_dict)


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "folder.pt", "is a folder")
    refused(tmp_path / "pipe.pt", "is no regular file")


# ---- nothing is larger than the file ----


def test_what_would_unfold_is_refused_before_it_does(tmp_path):
    """An archive of 400 MB in 0.4 MB, and tensors that repeat one number 10^9 times, in both of PyTorch's formats."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02}.")
        archive.writestr("bomb/data/0", bytes(400_000_000))
    endless = {"visual.class_embedding": torch.zeros(1).expand(10**9), "token_embedding.weight": torch.zeros(1)}
    torch.save(endless, tmp_path / "new.pt")
    torch.save(endless, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000
    code = """
import resource, sys
from clip.weights import WeightsError, read_state_dict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_state_dict(path)
    except WeightsError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    command = [sys.executable, "-c", code, *(tmp_path / name for name in ("bomb.pt", "new.pt", "old.pt"))]
    bomb, new, old, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "bomb.pt has" in bomb and "bytes and unpacks to 400,000,004: these are no weights" in bomb
    assert "new.pt has" in new and "and its tensors 4,000,000,004: these are no weights" in new
    assert "old.pt has" in old and "and its tensors 4,000,000,004: these are no weights" in old
    assert int(grown) < 100  # MB


def test_a_compact_file_that_would_unfold_to_gigabytes_is_refused(tmp_path):
    rows = {"token_embedding.rows": torch.tensor([1]), "token_embedding.weight": torch.zeros(1, 500_000)}
    save_file(rows, tmp_path / "wide.safetensors")
    refused(tmp_path / "wide.safetensors", "a compact model has one row")
    save_file({"token_embedding.rows": torch.tensor([99_999])} | rows, tmp_path / "rows.safetensors")
    refused(tmp_path / "rows.safetensors", "a compact model has one row")


def test_sparse_tensors_are_refused(tmp_path):
    torch.save({"visual.class_embedding": torch.zeros(10**6).to_sparse()}, tmp_path / "sparse.pt")
    refused(tmp_path / "sparse.pt", "sparse")


# ---- TorchScript ----


class Hostile(nn.Module):
    """A scripted module that writes a file when PyTorch loads it."""

    def __init__(self):
        super().__init__()
        self.x = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return self.x, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.x = state[0]
        self.training = state[1]
        torch.save(self.x, "pwned")


def quiet_script(module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))


def test_code_in_a_torchscript_archive_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet_script(Hostile(), tmp_path / "hostile.pt")
    (tmp_path / "pwned").unlink(missing_ok=True)
    refused(tmp_path / "hostile.pt", "holds no state dict")
    assert not (tmp_path / "pwned").exists()
    with warnings.catch_warnings():  # what the archive would do
        warnings.simplefilter("ignore")
        torch.jit.load("hostile.pt")
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("known", [False, True])
def test_pytorch_opens_an_archive_only_if_its_sha256_is_known(make_clip, tmp_path, monkeypatch, known):
    torchscript(make_clip(vocab_size=600), tmp_path / "jit.pt")
    expected = read_state_dict(tmp_path / "jit.pt")
    opened, original = [], torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda path, **options: opened.append(path) or original(path, **options))
    sha256 = weights.file_hash(tmp_path / "jit.pt")
    monkeypatch.setattr(weights, "known_archives", lambda: {sha256: "ViT-B/16"} if known else {"0" * 64: "ViT-B/16"})
    assert_same(read_state_dict(tmp_path / "jit.pt"), expected)
    assert opened == ([tmp_path / "jit.pt"] if known else [])


def test_openais_files_are_known_by_their_sha256():
    assert sorted(weights.known_archives().values()) == ["ViT-B/16", "ViT-B/32", "ViT-L/14", "ViT-L/14@336px"]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in weights.known_archives())


def archive(path, pickled, **storages):
    """A TorchScript archive with this description of its modules."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/constants.pkl", b"\x80\x02).")
        for key, content in storages.items():
            file.writestr(f"a/data/{key[1:]}", content)


def module(state):
    """A pickled module with one tensor `x` of 4 numbers in storage 0, whose sizes are `state`."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + state + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00x" + tensor + b"sb."


def test_the_tensors_of_an_archive_lie_within_their_storages(tmp_path):
    numbers = torch.arange(4.0)
    archive(tmp_path / "fits.pt", module(b"K\x01K\x03\x85K\x01\x85"), _0=numbers.numpy().tobytes())
    refused(tmp_path / "fits.pt", "its names begin with 'x'")
    for state in (b"K\x01K\x04\x85K\x01\x85", b"K\x00K\x04\x85K\x02\x85", b"J\xff\xff\xff\xffK\x01\x85K\x01\x85"):
        archive(tmp_path / "beyond.pt", module(state), _0=numbers.numpy().tobytes())
        refused(tmp_path / "beyond.pt", "reaches beyond its storage")
    archive(tmp_path / "short.pt", module(b"K\x00K\x04\x85K\x01\x85"), _0=b"1234")
    refused(tmp_path / "short.pt", "storage 0 is smaller than it says")
    archive(tmp_path / "none.pt", module(b"K\x00K\x04\x85K\x01\x85"))
    refused(tmp_path / "none.pt", "no item named")


@pytest.mark.parametrize("call", [b"cos\nmkdir\n", b"cposix\nsystem\n", b"cbuiltins\nexec\n", b"ctorch\nload\n"])
def test_a_call_in_an_archives_pickle_is_refused(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    archive(tmp_path / "sly.pt", b"\x80\x02" + call + b"X\x05\x00\x00\x00pwned\x85R.")
    refused(tmp_path / "sly.pt", "is not allowed in weights")
    assert not (tmp_path / "pwned").exists()


def test_modules_that_hold_each_other_end(tmp_path):
    pickled = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00xh\x00sb."  # x is the module itself
    archive(tmp_path / "loop.pt", pickled)
    refused(tmp_path / "loop.pt", "holds no state dict")
