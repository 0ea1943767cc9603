"""The gate for text files: present, a plain file, not too large, UTF-8, and JSON or YAML where that is wanted."""

import json
from pathlib import Path

import yaml

from .errors import MissingFile, UserError

LIMIT = 256 << 20  # bytes
DEEPEST = 100  # brackets within brackets
# What is sent instead of a file, by how it begins.
_STANDS_FOR = {
    "<!doctype html": "a web page: its server asks for a login, or it is gone; download it again",
    "<html": "a web page: its server asks for a login, or it is gone; download it again",
    "version https://git-lfs.github.com": "a Git LFS pointer; run `git lfs pull` in its repository, or download it",
}


class BadFile(UserError, ValueError):
    """A file whose content is not what it should be."""


def read_text(path, limit=LIMIT):
    """The text of a file in UTF-8, with or without a byte order mark.

    Errors: MissingFile; BadFile if it is no plain file, larger than `limit` bytes, not UTF-8, or what a server or Git
    has put in its place.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFile(f'No file at "{path}"; check the path')
    if not path.is_file():
        raise BadFile(f'"{path}" is not a plain file; name a file')
    if path.stat().st_size > limit:
        raise BadFile(f'"{path}" has {path.stat().st_size:,} bytes, more than {limit:,}; check the path')
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(f'"{path}" is not UTF-8 (byte {error.start:,}); save it as UTF-8') from error
    start = text[:200].lstrip().lower()
    for sign, meaning in _STANDS_FOR.items():
        if start.startswith(sign):
            raise BadFile(f'"{path}" is {meaning}')
    return text


def read_json(fpath):
    """What a JSON file holds. Errors: those of `read_text`, and BadFile that names line and column."""
    return _parsed(fpath, "JSON", json.loads)


def read_yaml(path):
    """What a YAML file holds, None if nothing. Errors: as read_json, and BadFile for a key that stands twice."""
    return _parsed(path, "YAML", parse_yaml)


def parse_yaml(text):
    """What a text in YAML says. Errors: yaml.YAMLError, ValueError, RecursionError for one that is nested too deep."""
    return yaml.load(text, _Loader)


def compose_yaml(path):
    """The tree of nodes of a YAML file, in which every scalar is the text that was written; errors as read_yaml."""
    return _parsed(path, "YAML", lambda text: yaml.compose(text, _Loader))


def _parsed(path, language, parse):
    text = read_text(path)
    try:
        return parse(text)
    except RecursionError as error:
        raise BadFile(f'"{path}" is not {language} that can be read: it is nested too deep; make it anew') from error
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(f'"{path}" is not {language}: {reason}; correct it, or make it anew') from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one group, of which YAML would silently take the last, and deep nests."""

    def fetch_flow_collection_start(self, token):
        if self.flow_level >= DEEPEST:  # PyYAML looks at all open brackets again at every token
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                place = f"line {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"{key.value} stands twice in one group ({place})")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node
