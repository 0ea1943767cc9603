"""Which files and names Python files import, found by reading them: nothing is run."""

import ast
from pathlib import Path
from typing import NamedTuple


class Name(NamedTuple):
    """`from module import name` (name "": `import module`) and where it stands first."""

    module: str
    name: str
    where: str  # file:line


def parse(file):
    """A file's tree; an empty one if it is no Python that this version reads."""
    try:
        return ast.parse(Path(file).read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def statements(tree):
    """All imports but those that may fail: `try: import x` with an `except` beside it."""
    if isinstance(tree, ast.Try) and tree.handlers:
        children = [*tree.handlers, *tree.orelse, *tree.finalbody]
    else:
        children = ast.iter_child_nodes(tree)
    for node in children:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        else:
            yield from statements(node)


def imported(file, root):
    """[(module, names, line)] of a file's imports, relative ones resolved in `root`; no names for `import a.b`."""
    package = Path(file).relative_to(root).with_suffix("").parts[:-1]
    found = []
    for node in statements(parse(file)):
        if isinstance(node, ast.Import):
            found += [(alias.name, [], node.lineno) for alias in node.names]
            continue
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*above, *filter(None, [node.module])])
        found.append((module, [alias.name for alias in node.names], node.lineno))
    return found


def files_of(root, module):
    """The files in `root` that `import module` runs: those of the packages above it, and its own."""
    files, parts = [], module.split(".")
    for depth in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:depth])
        own = [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
        if not own and not path.is_dir():
            return []
        files += own[:1]
    return files


def reachable(root, start, outside=()):
    """All files in `root` that importing `start` (a file) runs; not those of the packages named in `outside`."""
    found = [Path(start)]
    for file in found:
        for module, names, _ in imported(file, root):
            if module.split(".")[0] in outside:
                continue
            for name in [module, *(f"{module}.{name}" for name in names)]:
                found += [path for path in files_of(root, name) if path not in found]
    return found


def names_of(package, files, root):
    """What `files` import from `package` and its sub-packages, each name once."""
    found = {}
    for file in files:
        for module, names, line in imported(file, root):
            if module.split(".")[0] == package:
                for name in names or [""]:
                    where = f"{Path(file).relative_to(root).as_posix()}:{line}"
                    found.setdefault((module, name), Name(module, name, where))
    return list(found.values())
