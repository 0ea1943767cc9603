"""Where weights come from: names -> URL and SHA-256, download, verification, and the embedded model.

Downloads go to `CLIP_CACHE` (default ~/.cache/clip). A file gets its final name only after its SHA-256 was
checked, and nothing of the user's that is already there is overwritten.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from dassl.utils.download import DownloadError, alone, download_file, file_hash

from .errors import UnknownModel, WeightsError
from .files import Read, read_file
from .hub import INDEX, SAFE, parts_of
from .keys import OPENAI, to_openai
from .origins import VOCABULARY

FILES = (*SAFE, "open_clip_pytorch_model.bin", "pytorch_model.bin", "clip.pt")  # as they are called in a model's folder
EMBEDDED = Path(__file__).with_name("embedded.safetensors")
EMBEDDED_URL = "embedded:ViT-XS-16-icons.pt"


class ModelTable(dict):
    """{name: URL}, as OpenAI's `_MODELS`, that answers an unknown name with the nearest one."""

    def __missing__(self, name):
        name = str(name)
        by_lower = {known.lower(): known for known in self}
        near = get_close_matches(name.lower(), by_lower, n=1)
        hint = f"did you mean {by_lower[near[0]]!r}?" if near else "a path has to name an existing file or folder"
        if name.upper().startswith("RN"):
            hint = "ResNets aren't here, take one of these ViTs"
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


def download(url: str, root: str | os.PathLike | None = None) -> str:
    """The path (str) of the verified file behind `url`; downloads it if `root` or the cache lacks it.

    The last two parts of `url` are the file's SHA-256 and name, as in OpenAI's. A download that broke off
    goes on where it stopped. Raises WeightsError for what can't be downloaded or written, has another SHA-256 or
    is no regular file.
    """
    folder = Path(root or os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser()
    if url != EMBEDDED_URL and len(url.split("/")[-2]) != 64:
        raise WeightsError(f"{url} doesn't end in <SHA-256>/<file>, so the file could not be verified")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return str(_embedded_as_pt(folder) if url == EMBEDDED_URL else _downloaded(url, folder))
    except WeightsError:
        raise
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch.save
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WeightsError(
            f"Can't write weights to {folder} ({reason}): make room, or set CLIP_CACHE to another folder"
        ) from error


def _downloaded(url, folder):
    sha256, name = url.split("/")[-2:]
    target = folder / name
    if not target.exists():
        with alone(folder / f"{name}.lock"):
            if not target.exists():  # another run may have downloaded it meanwhile
                _fetch(url, sha256, target)
    _verify(target, sha256)
    return target


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
def _written_beside(path: Path) -> Iterator[Path]:
    """Yields a path to write to; it becomes `path` at the end, and is removed if the writing fails."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# ---- reading ----


def known_archives() -> dict[str, str]:
    """{SHA-256: name} of the files that OpenAI published."""
    return {url.split("/")[-2]: name for name, url in MODELS.items() if url.startswith(_OPENAI)}


def read(*paths: str | os.PathLike) -> Read:
    """What a file of weights, or a model split into several, holds in OpenAI's names; the embedded model unpacked.

    Raises WeightsError, one line that names the file, if it is missing, incomplete, unsafe or another thing.
    """
    parts = [read_file(Path(path), known_archives(), file_hash) for path in paths]
    found = parts[0]._replace(weights={key: value for part in parts for key, value in part.weights.items()})
    try:
        if "token_embedding.rows" in found.weights:
            return found._replace(weights=unpack_embedded(found.weights), compact=True)
        state_dict, words = to_openai(found.weights)
        return found._replace(weights=state_dict, names="" if words == OPENAI else words)
    except WeightsError as error:
        raise WeightsError(f"{paths[0]} doesn't hold the weights of a CLIP with a ViT: {error}") from error


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """{key in OpenAI's names: tensor on the CPU in the file's dtype}; errors as `read`."""
    return read(path).weights


def read_folder(folder: Path) -> dict[str, Tensor]:
    """As `read_state_dict`, of a folder as open_clip, Hugging Face or export.py write it; .safetensors first."""
    for name in FILES:
        if (folder / name).is_file():
            return read_state_dict(folder / name)
    if (folder / INDEX).is_file():
        return read(*(folder / part for part in parts_of(folder / INDEX))).weights
    raise WeightsError(f"{folder} holds none of {', '.join(FILES)}: name the file itself")


# ---- the embedded model ----


def pack_embedded(state_dict: Mapping[str, Tensor], used_rows: Tensor | Iterable[int]) -> dict[str, Tensor]:
    """OpenAI's keys -> the compact form of clip/embedded.safetensors: fp16, and only the trained token rows.

    `used_rows` are the token ids that occurred in training (list or tensor, any order, repeats allowed). They
    become `token_embedding.rows` (R,) int32, and `token_embedding.weight` shrinks to (R, width).
    """
    rows = torch.as_tensor(used_rows).flatten().unique().cpu()  # (R,) sorted
    packed = {key: value.detach().cpu().half().clone().contiguous() for key, value in state_dict.items()}
    packed["token_embedding.weight"] = packed["token_embedding.weight"][rows.long()]
    packed["token_embedding.rows"] = rows.int()
    return packed


def unpack_embedded(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of pack_embedded, in fp16. A token that training never saw gets the mean of the others."""
    state_dict = dict(packed)
    rows = state_dict.pop("token_embedding.rows").long()  # (R,)
    trained = state_dict.get("token_embedding.weight", torch.empty(0))  # (R, width)
    fits = rows.dim() == 1 and trained.dim() == 2 and 0 < len(rows) == len(trained) and trained.shape[1] <= 4096
    if not fits or not 0 <= int(rows.min()) <= int(rows.max()) < VOCABULARY:
        raise WeightsError("a compact model has one row of token_embedding.weight for each of token_embedding.rows")
    table = trained.float().mean(dim=0).to(trained.dtype).repeat(VOCABULARY, 1)  # (vocabulary, width)
    table[rows] = trained
    state_dict["token_embedding.weight"] = table
    return state_dict


def _embedded_as_pt(folder):
    """The embedded model as a plain state dict in `folder`, for trainers that open weights with torch.load.

    The name holds the SHA-256 of the embedded file. What lies there is compared with it, and written anew where
    it differs: `clip.load` itself reads the embedded file.
    """
    weights = read_state_dict(embedded_file())
    stem, suffix = EMBEDDED_URL.removeprefix("embedded:").split(".")
    target = folder / f"{stem}-{file_hash(EMBEDDED)[:16]}.{suffix}"
    if not _holds(target, weights):
        with _written_beside(target) as beside:
            torch.save(weights, beside)
    return target


def embedded_file() -> Path:
    """Where the embedded model lies; WeightsError if it is missing."""
    if not EMBEDDED.is_file():
        raise WeightsError(f"the embedded model {EMBEDDED} is missing: restore it from the repository")
    return EMBEDDED


def _holds(path, weights):
    try:
        found = read_state_dict(path)
    except WeightsError:
        return False
    return found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
