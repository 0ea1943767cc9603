"""The edit of a fork's train.py.

The function that reads the options (`setup_cfg`) gets a branch for the new trainer, in front of what it does for all
others. The branch is made of the fork's own statements: defaults, options, files, command line, in the fork's order.
What the fork forces on its trainers in between stays out. Nothing of the old text changes, so the fork's own trainers
run as before.

Places are found by `ast`; the edited file is parsed and compared with what was meant.
"""

import ast
import builtins
import io
import re
import textwrap
import tokenize
from typing import NamedTuple

from dassl.utils import UserError

MARK = "# added by swap_in.py"
OPTION_FUNCTIONS = ("extend_cfg", "reset_cfg")  # the family's names for what adds options and what reads arguments


class Source:
    """A Python file as text: its encoding, its line ends and the place of every statement."""

    def __init__(self, data, name):
        """data: bytes; name: for messages. UserError if Python itself could not read the file."""
        try:
            self.encoding = tokenize.detect_encoding(io.BytesIO(data).readline)[0]
            self.text = data.decode(self.encoding)
            self.tree = ast.parse(self.text)
        except (SyntaxError, ValueError, LookupError) as error:
            raise UserError(f"{name} doesn't parse ({error}): repair it first") from error
        self.name = name
        self.lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", self.text)  # as Python counts them
        self.newline = "\r\n" if "\r\n" in self.text else "\n"

    def encode(self, text):
        return text.encode(self.encoding)

    def offset(self, line, column):
        """Where in the text Python's line (from 1) and column (in UTF-8 bytes) are."""
        before = self.lines[line - 1].encode()[:column].decode()
        return sum(map(len, self.lines[: line - 1])) + len(before)

    def indent(self, statement):
        """The white space before a statement; a suite on the line of its `def` or `if` gets four spaces more."""
        line = self.lines[statement.lineno - 1]
        white = line[: len(line) - len(line.lstrip(" \t\f"))]
        before = line.encode()[: statement.col_offset].decode()
        return white + " " * 4 if before.rstrip().endswith(":") else white


class Insertion(NamedTuple):
    """New statements before or after a statement of a Source."""

    statement: ast.stmt
    text: str  # not indented
    after: bool = False

    def apply(self, source, text):
        """`text`, which equals the source's up to the place, with the new statements in it."""
        indent, newline = source.indent(self.statement), source.newline
        unit = "\t" if indent.startswith("\t") else " " * 4
        block = ""
        for line in self.text.splitlines():
            inner = len(line) - len(line.lstrip(" "))
            block += (indent + unit * (inner // 4) + line.lstrip(" ")).rstrip() + newline
        if not self.after:
            at = source.offset(self.statement.lineno, self.statement.col_offset)
            before = text[:at]
            if re.search(r"(?:^|[\r\n])[ \t\f]*$", before):  # it begins its line
                start = at - len(re.search(r"[ \t\f]*$", before)[0])
                return text[:start] + block + text[start:]
            return before.rstrip(" \t").rstrip(";") + newline + block + indent + text[at:]
        at = source.offset(self.statement.end_lineno, self.statement.end_col_offset)
        rest = re.match(r"[ \t]*;[ \t]*(?=[^\s#])", text[at:])
        if rest:  # another statement on the same line
            return text[:at] + newline + block + indent + text[at + rest.end() :]
        end = re.compile(r"\r\n|\r|\n|$").search(text, at)
        return text[: end.start()] + (end[0] or newline) + block + text[end.end() :]


def edit_train(data, name, package, file="train.py"):
    """train.py's bytes with the edits that the trainer called `name` in `package` (trainers.skiptuning) needs.

    Errors: UserError says which line can't be understood and what to add by hand.
    """
    source = Source(data, file)
    setup = _setup_function(source)
    insertions = [_branch(source, setup, name, package), *_load(source, name)]
    text = source.text
    for insertion in sorted(insertions, key=lambda i: i.statement.lineno, reverse=True):
        text = insertion.apply(source, text)
    _check(source, insertions, text)
    return source.encode(text)


def remove_edit(data, name, package, file="train.py"):
    """The inverse of `edit_train`, from the edited bytes alone; None if they are no such file."""
    source = Source(data, file)
    lines, kept, inside = list(source.lines), [], None
    for line in lines:
        white = line[: len(line) - len(line.lstrip(" \t\f"))]
        if MARK in line and line.lstrip().startswith("if "):
            inside = white
        elif inside is not None and line.strip() and not line.startswith((inside + " ", inside + "\t")):
            inside = None
        if inside is None:
            kept.append(line)
    original = source.encode("".join(kept))
    try:
        return original if edit_train(original, name, package, file) == data else None
    except UserError:
        return None


def _call_of(node, name):
    """Whether `node` is a call of a function or method called `name`."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name


def _calls(tree, name):
    return any(_call_of(node, name) for node in ast.walk(tree))


def _setup_function(source):
    """The function that makes the configuration, which the family calls setup_cfg(args)."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef) and _calls(node, "get_cfg_default"):
            if not node.args.args:
                raise UserError(_by_hand(source, node, f"{node.name}() takes no arguments"))
            return node
    raise UserError(f"{source.name} has no function that calls get_cfg_default(), as the family's setup_cfg(args) does")


def _by_hand(source, node, why):
    return (
        f"{source.name}, line {node.lineno}: {why}. Add by hand, where options are read: extend_cfg of the new "
        "trainer's package, then the configuration files and args.opts, for --trainer with its name only"
    )


def _branch(source, setup, name, package):
    """The branch for the new trainer, before the statement that makes the configuration."""
    args, body = setup.args.args[0].arg, setup.body
    start = next(i for i, statement in enumerate(body) if _calls(statement, "get_cfg_default"))
    first = body[start]
    if not (isinstance(first, ast.Assign) and isinstance(first.targets[0], ast.Name)):
        raise UserError(_by_hand(source, first, "the configuration is not made by a plain `cfg = get_cfg_default()`"))
    cfg = first.targets[0].id
    alias = f"extend_{package.split('.')[-1]}"
    options, files, end = [], [], []  # before the files are merged; files and what follows; the end
    for statement in body[start + 1 :]:
        if isinstance(statement, ast.Return) or _is_call(statement, f"{cfg}.freeze"):
            end.append(statement)
        elif _merges_files(statement, cfg, args) or _merges_command_line(statement, cfg, args):
            files.append(statement)
        elif function := _option_function(statement, cfg):
            if not files and function != "reset_cfg":
                options.append(statement)
            elif function in OPTION_FUNCTIONS:
                files.append(statement)
    if not any(_merges_command_line(statement, cfg, args) for statement in files):
        raise UserError(_by_hand(source, setup, f"{setup.name} merges no {args}.opts where it can be seen"))
    if not any(isinstance(statement, ast.Return) for statement in end):
        raise UserError(_by_hand(source, setup, f"{setup.name} returns no configuration where it can be seen"))
    kept = [first, *options, *files, *end]
    _check_names(source, setup, kept, {args, cfg})
    if f"{args}.trainer" not in source.text:
        raise UserError(_by_hand(source, setup, f"there is no {args}.trainer"))
    lines = [ast.unparse(statement) for statement in kept]
    lines.insert(1 + len(options), f"{alias}({cfg})")
    text = f'if {args}.trainer == "{name}":  {MARK}: its options are those of its files and the command line\n'
    text += f"    from {package} import extend_cfg as {alias}\n\n"
    return Insertion(first, text + textwrap.indent("\n".join(lines), " " * 4))


def _is_call(statement, function):
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == function
    )


def _option_function(statement, cfg):
    """The name of the plain function that a statement calls with the configuration."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        return None
    given = any(isinstance(argument, ast.Name) and argument.id == cfg for argument in call.args)
    return call.func.id if given else None


def _merges_files(statement, cfg, args):
    """Whether all that a statement does is to merge files that the command line names."""
    inner = statement.body + statement.orelse if isinstance(statement, ast.If) else [statement]
    if isinstance(statement, ast.If) and cfg in ast.unparse(statement.test):
        return False
    return all(
        _is_call(line, f"{cfg}.merge_from_file") and ast.unparse(line.value.args[0]).startswith(f"{args}.")
        for line in inner
    )


def _merges_command_line(statement, cfg, args):
    return _is_call(statement, f"{cfg}.merge_from_list") and ast.unparse(statement.value.args[0]) == f"{args}.opts"


def _check_names(source, setup, kept, known):
    """UserError if a statement of the branch uses a name that is not bound there."""
    for node in source.tree.body:
        for part in ast.walk(node):
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                known.add(part.name)
            elif isinstance(part, ast.alias):
                known.add((part.asname or part.name).split(".")[0])
    if "*" in known:
        return
    known |= {
        target.id
        for node in source.tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for statement in kept:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id not in known and not hasattr(builtins, node.id):
                where = f"{source.name} has no function {node.id}" if _calls(statement, node.id) else None
                reason = f"{setup.name} uses {node.id}, which is bound on another path"
                raise UserError(where or _by_hand(source, statement, reason))


def _load(source, name):
    """Where `--eval-only` tests without loading a model (PLOT++), this trainer's is loaded once it is built."""
    evaluations = [node for node in ast.walk(source.tree) if isinstance(node, ast.If) and "eval_only" in _test(node)]
    if not evaluations or any(_calls(node, "load_model") for node in evaluations):
        return []
    args = re.search(r"(\w+)\.eval_only", _test(evaluations[0]))
    for node in ast.walk(source.tree):
        if args and isinstance(node, ast.Assign) and _call_of(node.value, "build_trainer"):
            args, trainer = args[1], ast.unparse(node.targets[0])
            text = f'if {args}.eval_only and {args}.trainer == "{name}":  {MARK}\n'
            text += f"    {trainer}.load_model({args}.model_dir, epoch={args}.load_epoch)"
            return [Insertion(node, text, after=True)]
    return []


def _test(node):
    return ast.unparse(node.test)


def _check(source, insertions, text):
    """UserError unless the edited text is the old file's statements with the new ones at their places."""
    meant = ast.parse(source.text)
    places = {}
    for insertion in insertions:
        key = (insertion.statement.lineno, insertion.statement.col_offset)
        places[key] = (ast.parse(insertion.text).body, insertion.after)
    for node in ast.walk(meant):
        for field in ("body", "orelse", "finalbody"):
            suite = getattr(node, field, None)
            if not isinstance(suite, list):
                continue
            for statement in list(suite):
                key = (getattr(statement, "lineno", 0), getattr(statement, "col_offset", 0))
                if key in places:
                    new, after = places.pop(key)
                    at = suite.index(statement) + after
                    suite[at:at] = new
    try:
        right = ast.dump(ast.parse(text)) == ast.dump(meant)
    except SyntaxError:
        right = False
    if not right or places:
        where = insertions[0].statement
        raise UserError(_by_hand(source, where, "statements stand on one line that can't be taken apart"))
