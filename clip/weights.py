"""Where weights come from: names -> URL and SHA-256, download, verification, reading, and the embedded model.

Downloads go to `CLIP_CACHE` (default ~/.cache/clip). A file gets its final name only after its SHA-256 was
checked, and nothing that is already there is overwritten.
"""

import os
import warnings
import zipfile
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors.torch import load_file

from dassl.utils.download import DownloadError, alone, download_file, file_hash

EMBEDDED = Path(__file__).with_name("embedded.safetensors")
EMBEDDED_URL = "embedded:ViT-XS-16-icons.pt"
VOCABULARY = 49408


class WeightsError(OSError, RuntimeError):
    """Weights that can't be had or read: RuntimeError as OpenAI's, and OSError, which commands report."""


class UnknownModel(WeightsError, KeyError):
    """A name that is in no table of models; a KeyError too, as `_MODELS[name]` raises elsewhere."""


class ModelTable(dict):
    """{name: URL}, as OpenAI's `_MODELS`, that answers an unknown name with the nearest one."""

    def __missing__(self, name):
        name = str(name)
        by_lower = {known.lower(): known for known in self}
        near = get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]!r}?" if near else "a path has to name an existing file"
        if name.upper().startswith("RN"):
            hint = "ResNets aren't here, only ViT backbones"
        raise UnknownModel(f"Model {name} not found; available models = {list(self)}; {hint}")


_OPENAI = "https://openaipublic.azureedge.net/clip/models"  # <SHA-256 of the file>/<file>
MODELS = ModelTable(
    {
        "ViT-B/32": f"{_OPENAI}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "ViT-B/16": f"{_OPENAI}/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
        "ViT-L/14": f"{_OPENAI}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "ViT-L/14@336px": (
            f"{_OPENAI}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt"
        ),
        "ViT-XS/16-icons": EMBEDDED_URL,
    }
)


# ---- download ----


def download(url, root=None):
    """The path (str) of the verified file behind `url`; downloads it if `root` or the cache lacks it.

    The last two parts of `url` are the file's SHA-256 and name, as in OpenAI's. A download that broke off
    goes on where it stopped. Raises WeightsError for what can't be downloaded, has another SHA-256 or is no
    regular file.
    """
    folder = Path(root or os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if url == EMBEDDED_URL:
        return str(_embedded_as_pt(folder))
    sha256, name = url.split("/")[-2:]
    if len(sha256) != 64:
        raise WeightsError(f"{url} doesn't end in <SHA-256>/<file>, so the file could not be verified")
    target = folder / name
    if not target.exists():
        with alone(folder / f"{name}.lock"):
            if not target.exists():  # another run may have downloaded it meanwhile
                _fetch(url, sha256, target)
    _verify(target, sha256)
    return str(target)


def _fetch(url, sha256, target):
    """Downloads with the project's one downloader; a file with another SHA-256 doesn't stay."""

    def fault(part):
        found = file_hash(part)
        return None if found == sha256 else f"has the wrong SHA-256 {found}"

    try:
        download_file(url, target, fault)
    except DownloadError as error:
        raise WeightsError(f"{error}, or put the file at {target}") from error
    _remember(target, sha256)


def _verify(path, sha256):
    """Believes `path` if it has that SHA-256, or had it when it was hashed and is untouched since."""
    if not path.is_file():
        raise WeightsError(f"{path} exists and is not a regular file")
    stamp = _stamp(path)
    if stamp.is_file() and stamp.read_text() == _identity(path, sha256):
        return
    found = file_hash(path)
    if found != sha256:
        raise WeightsError(
            f"{path} has the SHA-256 {found} instead of {sha256}: move it away to download it anew, "
            "set CLIP_CACHE to another folder, or load it by its path if it is your own"
        )
    _remember(path, sha256)


def _remember(path, sha256):
    with suppress(OSError), _written_beside(_stamp(path)) as beside:  # a read-only cache is hashed every time
        beside.write_text(_identity(path, sha256))


def _stamp(path):
    return path.with_name(f"{path.name}.sha256")


def _identity(path, sha256):
    status = path.stat()
    return f"{sha256} {status.st_size} {status.st_mtime_ns}\n"


@contextmanager
def _written_beside(path):
    """Yields a path to write to; it becomes `path` at the end, and is removed if the writing fails."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# ---- reading ----


def read_state_dict(path):
    """{key: tensor on the CPU} of a TorchScript archive, a state dict, a checkpoint or a .safetensors file.

    Of a checkpoint its "state_dict" is taken; the compact form of the embedded model is unpacked; nothing but
    tensors is unpickled. Raises WeightsError, naming the file, if it is missing, incomplete or another thing.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    try:
        state_dict = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except Exception as error:  # the readers raise half a dozen types, some with pages of C++ frames
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(f"{path} is incomplete or no weights file ({reason}): replace it") from error
    if isinstance(state_dict, dict):
        state_dict = state_dict.get("state_dict", state_dict)
    if not isinstance(state_dict, dict) or not all(isinstance(v, torch.Tensor) for v in state_dict.values()):
        raise WeightsError(f"{path} holds no state dict: it has to map names to tensors")
    return unpack_embedded(state_dict) if "token_embedding.rows" in state_dict else dict(state_dict)


def _read_torch(path):
    if not _is_torchscript(path):
        return torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but it is what OpenAI's files need
        return dict(torch.jit.load(path, map_location="cpu").state_dict())


def _is_torchscript(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


# ---- the embedded model ----


def pack_embedded(state_dict, used_rows):
    """OpenAI's keys -> the compact form of clip/embedded.safetensors: fp16, and only the trained token rows.

    `used_rows` are the token ids that occurred in training (list or tensor, any order, repeats allowed). They
    become `token_embedding.rows` (R,) int32, and `token_embedding.weight` shrinks to (R, width).
    """
    rows = torch.as_tensor(used_rows).flatten().unique().cpu()  # (R,) sorted
    packed = {key: value.detach().cpu().half().clone().contiguous() for key, value in state_dict.items()}
    packed["token_embedding.weight"] = packed["token_embedding.weight"][rows.long()]
    packed["token_embedding.rows"] = rows.int()
    return packed


def unpack_embedded(packed):
    """The inverse of pack_embedded, in fp16. A token that training never saw gets the mean of the others."""
    state_dict = dict(packed)
    rows = state_dict.pop("token_embedding.rows").long()  # (R,)
    trained = state_dict["token_embedding.weight"]  # (R, width)
    table = trained.float().mean(dim=0).to(trained.dtype).repeat(VOCABULARY, 1)  # (vocabulary, width)
    table[rows] = trained
    state_dict["token_embedding.weight"] = table
    return state_dict


def _embedded_as_pt(folder):
    """The embedded model as a plain state dict in `folder`, for trainers that open weights with torch.load.

    The name holds the SHA-256 of the embedded file, so a new one is unpacked anew.
    """
    if not EMBEDDED.is_file():
        raise WeightsError(f"the embedded model {EMBEDDED} is missing: restore it from the repository")
    stem, suffix = EMBEDDED_URL.removeprefix("embedded:").split(".")
    target = folder / f"{stem}-{file_hash(EMBEDDED)[:16]}.{suffix}"
    if not target.is_file():
        with _written_beside(target) as beside:
            torch.save(read_state_dict(EMBEDDED), beside)
    return target
