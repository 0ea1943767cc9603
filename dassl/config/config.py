"""A yacs node whose merges stop with the offending key and the nearest valid one."""

from ast import literal_eval
from pathlib import Path

from yacs.config import CfgNode

from ..utils import MissingFile, UserError, nearest, read_yaml


class ConfigError(UserError, KeyError, ValueError):
    """An unknown key, a wrong type or an unreadable file (yacs: KeyError, ValueError, AssertionError)."""


class Config(CfgNode):
    """yacs' CfgNode; `merge_from_file`, `merge_from_list` and `merge_from_other_cfg` raise ConfigError.

    Values are read as yacs does (strings pass through `literal_eval`); besides, an int serves where a
    float is expected, and a string option takes any text as it stands.

    A file may name others in `_BASE_`, one path or a list, relative to itself: they are merged first, in this order.
    What is put under a new key of an open node (`new_allowed`) is open, too.
    """

    def merge_from_file(self, cfg_filename):
        for path, tree in read_files(cfg_filename):
            self._merge(tree, f' in "{path}"')

    def merge_from_other_cfg(self, cfg_other):
        self._merge(cfg_other, "")

    def merge_from_list(self, cfg_list):
        if len(cfg_list) % 2:
            raise ConfigError(f"Options come as KEY VALUE pairs; {cfg_list[-1]!r} has no value; give one")
        for key, value in zip(cfg_list[::2], cfg_list[1::2], strict=True):
            _assign(self, key, value, " on the command line")

    def _merge(self, tree, where, prefix=""):
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and isinstance(_find(self, key), CfgNode):
                self._merge(value, where, f"{key}.")
            else:
                _assign(self, key, value, where)


def resolve(cfg):
    """Lay over `cfg` the rows of its table OVERRIDES whose conditions hold, then empty the table.

    A row's key joins conditions with "+": a dataset's name ("ImageNet"), a number of shots ("4shots"), a protocol
    ("few_shot"), a preset ("matched") or MODEL.RECIPE ("embedded"). Rows of fewer conditions are laid first, equal ones
    in the order written. Where MODEL.RECIPE is set, rows that don't name it don't hold: they are for another model.
    ConfigError for a row that is no group, has an unknown option or a value of a wrong type.
    """
    recipe = cfg.MODEL.get("RECIPE", "")  # the options of a fork have none
    for key, row in cfg.OVERRIDES.items():
        if not isinstance(row, dict):
            raise ConfigError(f"OVERRIDES.{key} must be a group of options, not {row!r}")
    conditions = {cfg.DATASET.NAME, f"{cfg.DATASET.NUM_SHOTS}shots", cfg.PROTOCOL, cfg.PRESET, recipe}
    for key in holding(cfg.OVERRIDES, conditions, recipe):
        cfg._merge(cfg.OVERRIDES[key], f" in OVERRIDES.{key}")
    cfg.OVERRIDES.clear()


def holding(rows, conditions, recipe):
    """The keys of those rows of OVERRIDES that hold (see `resolve`), in the order in which they are laid."""
    named = {key: key.split("+") for key in rows}
    in_order = sorted(named, key=lambda key: len(named[key]))
    return [key for key in in_order if conditions.issuperset(named[key]) and recipe in ("", *named[key])]


def read_files(path, within=()):
    """[(path, its tree)] of a YAML file and, before it, of those it is based on."""
    path = Path(path)
    if not path.is_file():
        asked = f', which "{within[-1]}" is based on' if within else ""
        raise MissingFile(f'No config file at "{path}"{asked}; check the path')
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f'"{path}" must hold "KEY: value" lines, not {tree!r}')
    if path.resolve() in within:
        raise ConfigError(f'"{path}" is based on itself; take it out of _BASE_ in "{within[-1]}"')
    bases = tree.pop("_BASE_", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f'_BASE_ in "{path}" must be a path or a list of paths, not {bases!r}')
    earlier = [pair for base in bases for pair in read_files(path.parent / base, (*within, path.resolve()))]
    return [*earlier, (path, tree)]


def flatten(node, prefix=""):
    """A tree of options as {"KEY.SUB": value}, in the order of the keys."""
    flat = {}
    for name in sorted(node):
        value = node[name]
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def config_diff(cfg, defaults):
    """What differs from the defaults, one `KEY.SUB: value (default: x)` a line."""
    known = flatten(defaults)
    return "\n".join(
        f"{key}: {value!r} (default: {known[key]!r})" if key in known else f"{key}: {value!r} (no default)"
        for key, value in flatten(cfg).items()
        if key not in known or known[key] != value
    )


def _find(root, key):
    """The value at "KEY.SUB", or None where the path ends early."""
    node = root
    for name in str(key).split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def _assign(root, key, value, where):
    path, _, name = str(key).rpartition(".")
    node = _find(root, path) if path else root
    if isinstance(node, CfgNode) and name not in node and node.is_new_allowed():
        node[name] = _open(value)
        return
    if not isinstance(node, CfgNode) or name not in node:
        raise ConfigError(f"Unknown config key {key}{where}; do you mean {nearest(key, flatten(root))}?")
    node[name] = _fit(key, value, node[name], where)


def _open(value):
    """`value`, read; a group as a node that takes new keys at every depth."""
    if not isinstance(value, dict):
        return _read(value)
    node = CfgNode(new_allowed=True)
    node.update({name: _open(each) for name, each in value.items()})
    return node


def _fit(key, value, default, where):
    """`value`, read and converted to the type of `default`."""
    given = _read(value)
    if isinstance(default, CfgNode):
        raise ConfigError(f"{key}{where} is a group of options; set one of {', '.join(flatten(default, f'{key}.'))}")
    if isinstance(default, str) and isinstance(value, str) and given is not None:
        return given if isinstance(given, str) else value
    if given is None or default is None or type(given) is type(default):
        return given
    for wanted, accepted in ((float, int), (tuple, list), (list, tuple)):
        if type(default) is wanted and type(given) is accepted:
            return wanted(given)
    kind = type(default).__name__
    raise ConfigError(f"{key}{where} must be a {kind} like {default!r}, not {given!r} ({type(given).__name__})")


def _read(value):
    if not isinstance(value, str):
        return value
    try:
        given = literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return value if isinstance(given, dict) else given  # "{}" is a prompt
