"""Weights from files of strangers: tensors are read, nothing is executed, and nothing gets larger than the file.

A file is what its first bytes say, not what its name says. TorchScript archives hold code; PyTorch runs it on loading,
so only files with the SHA-256 of one of OpenAI's are given to PyTorch. Of any other the tensors are read here.
"""

import io
import math
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .errors import WeightsError

NESTS = ("state_dict", "model_state_dict", "model")  # where checkpoints keep a model among other things
CODE = 64 << 20  # bytes that an archive may unpack to beside what it stores as it is: code and pickles
LARGEST_PICKLE = 16 << 20  # bytes that describe the modules of an archive


class Read(NamedTuple):
    """What a file holds."""

    weights: dict[str, Tensor]  # on the CPU, in the file's names and dtypes
    metadata: dict[str, str]  # of a .safetensors file
    sha256: str | None  # where it had to be known
    compact: bool = False  # it was the embedded model's compact form
    names: str = ""  # the format of its names in words, where they are not OpenAI's as they are


def read_file(path: Path, trusted: Mapping[str, object], sha256_of) -> Read:
    """Reads .safetensors, PyTorch checkpoints, state dicts and TorchScript archives.

    trusted: SHA-256 of the archives that PyTorch may open; sha256_of(path) -> str. Raises WeightsError, one line that
    names the file, for what is missing, incomplete, no weights at all, or larger inside than outside.
    """
    kind = recognise(path)
    metadata, sha256 = {}, None
    try:
        if kind == "safetensors":
            found, metadata = load_file(path), metadata_of(path)
        elif kind == "pickle":
            found = _checkpoint(path)
        else:
            _refuse_bomb(path)
            if _is_torchscript(path):
                sha256 = sha256_of(path)
                found = _trusted_torchscript(path) if sha256 in trusted else _torchscript(path)
            else:
                found = _checkpoint(path)
    except WeightsError:
        raise
    except Exception as error:  # the readers raise half a dozen types, some with pages of C++ frames or bad advice
        reason = str(error).strip().partition("\n")[0]
        if "weights_only" in reason or "Weights only" in reason:
            reason = "it holds more than tensors, which is not executed"
        raise WeightsError(f"{path} is incomplete or no weights file ({reason}): replace it") from error
    weights = _state_dict(path, found)
    _refuse_expanded(path, weights)
    return Read(weights, metadata, sha256)


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file, by its header alone; {} for another file, or none."""
    if not path.is_file() or recognise(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except Exception as error:
        raise WeightsError(f"{path} is incomplete or no weights file ({error}): replace it") from error


def recognise(path: Path) -> str:
    """ "safetensors", "zip" or "pickle", by the first bytes; WeightsError says what else it is, and what to do."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else None
        raise WeightsError(f"{path} is {kind}; name a file" if kind else f"no weights file at {path}; check the path")
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"Can't read {path} ({error.strerror})") from error
    if len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start.startswith(b"\x80"):
        return "pickle"
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    advice = "is incomplete or no weights file (its first bytes are those of no format that is read): replace it"
    if not start:
        advice = "is incomplete: it is empty; download it again"
    elif text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        advice = "is a web page, not weights: its server asks for a login, or it is gone; download it again"
    elif start.startswith(b"version https://git-lfs"):
        advice = "is a Git LFS pointer, not weights: run `git lfs pull` in its repository, or download the file itself"
    elif start.startswith(b"\x89HDF"):
        advice = "holds TensorFlow's weights (HDF5): take the .safetensors file beside it"
    elif start.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"Rar!")):
        advice = "is a compressed archive: unpack it first"
    raise WeightsError(f"{path} {advice}")


def _checkpoint(path):
    with open(path, "rb") as file:  # of a path torch.load looks at the suffix
        return torch.load(file, map_location="cpu", weights_only=True)


def _state_dict(path, found):
    for nest in NESTS:
        if isinstance(found, dict) and isinstance(found.get(nest), dict):
            found = found[nest]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{path} holds no state dict, which maps names to tensors: name another")
    return {str(key): value for key, value in found.items()}


# ---- nothing is larger than the file ----


def _refuse_bomb(path):
    """Tensors lie in an archive as they are, so what it unpacks to is hardly more than the file."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > size + CODE:
        raise WeightsError(f"{path} has {size:,} bytes and unpacks to {unpacked:,}: these are no weights")


def _refuse_expanded(path, weights):
    """A tensor may repeat one number without end; what is loaded here has its numbers in the file."""
    odd = [key for key, value in weights.items() if value.layout != torch.strided or value.device.type != "cpu"]
    if odd:
        raise WeightsError(f"{path}: {odd[0]} is sparse, empty or quantised: save plain tensors")
    needed, size = sum(value.numel() * value.element_size() for value in weights.values()), path.stat().st_size
    if needed > 2 * size + CODE:
        raise WeightsError(f"{path} has {size:,} bytes and its tensors {needed:,}: these are no weights")


# ---- TorchScript ----


def _is_torchscript(path):
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _trusted_torchscript(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but it is what OpenAI's files need
        return dict(torch.jit.load(path, map_location="cpu").state_dict())


def _torchscript(path):
    """The tensors of an archive by their names; its code stays unread, its objects are bags of attributes."""
    with zipfile.ZipFile(path) as archive:
        described = min((name for name in archive.namelist() if name.endswith("/data.pkl")), key=len)
        if archive.getinfo(described).file_size > LARGEST_PICKLE:
            raise WeightsError(f"{path}: the description of its modules is too large for a CLIP")
        root = described.removesuffix("data.pkl")
        storages = {}  # each is read once, however many tensors lie in it

        def storage(reference):
            kind, dtype, key, _, count = reference
            if key in storages and storages[key].dtype == dtype:
                return storages[key]
            entry = archive.getinfo(f"{root}data/{key}")
            if kind != "storage" or entry.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("a storage that is not stored as it is")
            if not 0 <= count * dtype.itemsize <= entry.file_size:
                raise pickle.UnpicklingError(f"storage {key} is smaller than it says")
            content = bytearray(archive.read(entry))
            storages[key] = torch.frombuffer(content, dtype=dtype, count=count) if count else torch.empty(0)
            return storages[key]

        top = _unpickler(archive.read(described), storage).load()
    return _tensors(top)


_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def _unpickler(content, storage):
    """An unpickler that can make tensors, containers and bags of attributes, and calls nothing else.

    All is made anew for each file, so that none can leave anything behind; it is Python's own, as the C one allocates
    what a number in the file says.
    """

    class Bag:
        state = None

        def __setstate__(self, state):
            self.state = state

    def tensor(values, offset, size, stride, *_):
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if min([offset, *size, *stride, 0]) < 0 or (math.prod(size) and last >= len(values)):
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")
        return values.as_strided(size, stride, offset) if math.prod(size) else values.new_empty(size)

    def as_it_is(value, *_):
        return value

    class Unpickler(pickle._Unpickler):
        def find_class(self, module, name):
            if module.split(".")[0] == "__torch__":
                return Bag
            if module == "torch" and name in _DTYPES:
                return _DTYPES[name]
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return tensor
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
                return as_it_is
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in weights")

        def persistent_load(self, reference):
            return storage(reference)

    return Unpickler(io.BytesIO(content))


def _tensors(top):
    """{"visual.conv1.weight": tensor} of nested bags, each visited once."""
    found, seen, waiting = {}, set(), [("", top)]
    while waiting:
        prefix, bag = waiting.pop()
        if id(bag) in seen or not isinstance(getattr(bag, "state", None), dict):
            continue
        seen.add(id(bag))
        for name, value in bag.state.items():
            if isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
            else:
                waiting.append((f"{prefix}{name}.", value))
    return found
