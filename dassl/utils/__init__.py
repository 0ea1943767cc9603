from .command import Parser, any_console, exit_code
from .errors import MissingFile, UnknownName, UserError, complete
from .files import write_atomic, write_json
from .images import read_image
from .lock import FolderLock
from .logger import Logger, log_path, setup_logger
from .meters import AverageMeter, MetricMeter
from .reading import BadFile, compose_yaml, parse_yaml, read_json, read_text, read_yaml
from .registry import Registry
from .tools import (
    check_availability,
    check_isfile,
    collect_env_info,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    mkdir_if_missing,
    nearest,
    set_random_seed,
    tolist_if_not,
)
from .torchtools import (
    count_num_param,
    load_checkpoint,
    load_optimizer,
    load_pretrained_weights,
    load_weights,
    resume_from_checkpoint,
    save_atomic,
    save_checkpoint,
)

__all__ = [
    "AverageMeter",
    "BadFile",
    "FolderLock",
    "Logger",
    "MetricMeter",
    "MissingFile",
    "Parser",
    "Registry",
    "UnknownName",
    "UserError",
    "any_console",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "complete",
    "compose_yaml",
    "count_num_param",
    "exit_code",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "load_checkpoint",
    "load_optimizer",
    "load_pretrained_weights",
    "load_weights",
    "log_path",
    "mkdir_if_missing",
    "nearest",
    "parse_yaml",
    "read_image",
    "read_json",
    "read_text",
    "read_yaml",
    "resume_from_checkpoint",
    "save_atomic",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_atomic",
    "write_json",
]
