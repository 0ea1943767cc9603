"""Models on the Hugging Face Hub: `hf:org/repo` and `open_clip:ViT-B-16/laion2b_s34b_b88k`.

They come through the package huggingface_hub, so its cache (HF_HOME), its offline mode (HF_HUB_OFFLINE=1) and its token
apply. What is in the cache is not asked for again. Only .safetensors files are downloaded.
"""

import functools
import re
from difflib import get_close_matches
from pathlib import Path

import yaml

from .configs import read_config
from .errors import UnknownModel, WeightsError

OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
SAFE = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
INDEX = "model.safetensors.index.json"  # names the parts of a model that is split
SCHEMES = ("hf:", "open_clip:")


def fetch(name: str, weights: bool = True) -> Path:
    """The folder with the configuration files of the model called `name`, and with its weights where asked.

    name: "hf:org/repo", "hf:org/repo@revision" or "open_clip:model/tag". Raises WeightsError where the package, the
    network, the repository or a .safetensors file is missing, UnknownModel for a tag that is in no list.
    """
    scheme, _, rest = name.partition(":")
    repository, _, revision = (_repository(rest) if scheme == "open_clip" else rest).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UnknownModel(f"{name} names no repository: write hf:org/repo or hf:org/repo@revision")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise WeightsError(f"{name} needs the package huggingface_hub: pip install huggingface_hub") from error
    cut_off = []  # files that may exist, but are not in the cache while the Hub can't be asked

    def get(file):
        """Path of one file, from the cache, else from the Hub; None if there is none."""
        try:
            cached = hub.try_to_load_from_cache(repository, file, revision=revision or None)
        except hub.errors.HFValidationError as error:
            raise UnknownModel(f"{name} names no repository ({str(error).rstrip('.')}): correct it") from error
        if cached or cut_off:  # what the cache knows is not asked again; the client tries an unreachable Hub for long
            return Path(cached) if isinstance(cached, str) else None
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision or None))
        except hub.errors.LocalEntryNotFoundError:
            cut_off.append(file)
        except hub.errors.EntryNotFoundError:
            pass
        except hub.errors.RepositoryNotFoundError as error:
            raise WeightsError(f"{name}: the Hub has no repository {repository}, or it is private") from error
        except Exception as error:  # its transport's own too
            reason = str(error).strip().partition("\n")[0]
            raise WeightsError(f"{name}: can't download {file} of {repository} ({reason}): try again") from error
        return None

    def refuse(what):
        if cut_off:
            raise WeightsError(f"{name}: {cut_off[0]} is not in the cache, and the Hub can't be asked: go online once")
        raise WeightsError(f"{name}: {repository} has {what}")

    config = get(OPEN_CLIP) or get(HUGGING_FACE)
    if not config:
        refuse(f"neither {OPEN_CLIP} nor {HUGGING_FACE}, so it is no CLIP's repository")
    if config.name == HUGGING_FACE and not get("preprocessor_config.json"):
        get("processor_config.json")
    if weights and not any(get(file) for file in SAFE):
        index = get(INDEX) or refuse("no .safetensors file, and no other is downloaded")
        for part in parts_of(index):
            get(part) or refuse(f"no {part}, which {INDEX} names")
    return config.parent


def parts_of(index: Path) -> list[str]:
    """Names of the files that `model.safetensors.index.json` lists; WeightsError for anything but plain names."""
    files = read_config(index).get("weight_map")
    names = sorted(set(map(str, files.values()))) if isinstance(files, dict) else []
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", each) for each in names):
        raise WeightsError(f"{index} doesn't list the .safetensors files beside it: replace it")
    return names


@functools.cache
def open_clip_models() -> dict[str, dict[str, str]]:
    """{model: {tag: repository}}."""
    return yaml.safe_load(Path(__file__).with_name("open_clip.yaml").read_text(encoding="utf-8"))


def _repository(name):
    """open_clip's "ViT-B-16/laion2b_s34b_b88k" -> its repository; the suffix -quickgelu says nothing new."""
    model, _, tag = name.partition("/")
    known = {f"{each}/{one}": where for each, tags in open_clip_models().items() for one, where in tags.items()}
    found = known.get(f"{model.removesuffix('-quickgelu')}/{tag}")
    if found is None:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"do you mean open_clip:{near[0]}?" if near else f"models: {', '.join(open_clip_models())}"
        raise UnknownModel(f"open_clip:{name} is not among the plain ViTs of open_clip's list; {hint}")
    return found
