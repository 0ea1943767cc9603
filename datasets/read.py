"""The one gate for text that a user or a stranger may have written: size, encoding, syntax, and only then content."""

import json
import os
import stat
from pathlib import Path

import yaml

from dassl.utils import MissingFile, UserError

MOST_BYTES = 1 << 28  # the largest published split has 3 MB
AGAIN = "get it again, see docs/DATASETS.md"


def read_text(path, what, advice="correct it there"):
    """The text of the file `path`, which should be `what` ("a split file"). A byte-order mark is dropped.

    Errors: MissingFile where there is no file; UserError for a folder, a device, more than `MOST_BYTES`, another
    encoding than UTF-8, and what the system refuses to read. Each names the file and ends with `advice`.
    """
    path = Path(path).expanduser()
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise refuse(path, what, "it is a folder or a device", advice)
        if status.st_size > MOST_BYTES:
            raise refuse(path, what, f"{status.st_size:,} bytes are more than {MOST_BYTES:,}", advice)
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFile(f"No file {path}, which should be {what}; check the path") from error
    except OSError as error:
        raise UserError(f"Can't read {path} ({error.strerror}); make it readable") from error
    except UnicodeDecodeError as error:
        raise refuse(path, what, f"byte {error.start} is no UTF-8", advice) from error


def read_json(path, what, advice="correct it there"):
    """What the JSON file `path` holds. Errors: those of `read_text`, and UserError for any other syntax."""
    text = read_text(path, what, advice)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise refuse(path, what, "it is nested too deep", advice) from error
    except ValueError as error:
        raise refuse(path, what, f"it is no JSON ({error})", advice) from error


def read_yaml(path, what, advice="correct it there"):
    """What the YAML file `path` holds, all values as they are written: no, 1e3 and 007 are text too.

    Errors: those of `read_text`, and UserError for any other syntax.
    """
    text = read_text(path, what, advice)
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except RecursionError as error:
        raise refuse(path, what, "it is nested too deep", advice) from error
    except (yaml.YAMLError, ValueError) as error:
        raise refuse(path, what, f"it is not YAML ({' '.join(str(error).split())})", advice) from error


def refuse(path, what, reason, advice):
    """The error for a file that is not what it should be."""
    return UserError(f"{path} is not {what}: {reason}; {advice}")
