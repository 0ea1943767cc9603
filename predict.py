"""The most probable classes of new pictures, by the model of a finished run of train.py."""

import argparse
import contextlib
import csv
import glob
import io
import os
import sys
import traceback
from pathlib import Path

import torch

import train
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.evaluation.evaluator import EvaluatorBase
from dassl.utils import MissingFile, Parser, UserError, read_json, set_random_seed, write_atomic, write_json
from datasets.files import check_images, find_images
from datasets.own_images import read_names

EPILOG = """
examples:
  python predict.py --model-dir output/few_shot/emoji/SkipTuning/embedded_5shots/seed1 picture.png folder/
  python predict.py --model-dir RUN --top 1 --csv names.csv 'pictures/**/*.jpg'
  python predict.py --model-dir RUN --classes other_names.txt --template "a photo of a {}." picture.png

Folders are searched with all folders below. Pictures that don't decode are named and left out; the exit code is
then 1. The classes are those that the run was trained on; as the text tower is kept, --classes may name any others.
"""


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def parse(argv):
    form = argparse.RawTextHelpFormatter
    parser = Parser(prog="python predict.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    flag = parser.add_argument
    flag("pictures", nargs="+", help='pictures, folders with pictures, or patterns such as "a/**/*.jpg"')
    flag("--model-dir", required=True, metavar="RUN", help="output folder of the run (holds result.json)")
    flag("--top", type=positive, default=5, metavar="K", help="how many classes for each picture (default: 5)")
    flag("--classes", metavar="FILE", help="other class names: one a line, or a YAML list or mapping")
    flag("--template", help='other prompt, with {} for the class name, such as "a photo of a {}."')
    flag("--csv", metavar="FILE", help="write path,rank,class,probability")
    flag("--json", metavar="FILE", help="write the same as JSON")
    flag("--force", action="store_true", help="overwrite FILE if it is there")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, CUDA if present")
    flag("--batch-size", type=positive, metavar="N", help="pictures at a time (default: as the run tested)")
    return parser.parse_args(argv)


def check(args):
    """What can be known before anything is read."""
    for path in map(Path, filter(None, (args.csv, args.json))):
        if path.is_dir() or path.exists() and not args.force:
            raise UserError(f"{path} exists; name another file, or overwrite a file with --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise UserError(f"Can't write to {path.parent}; name a file elsewhere")
    if args.template is not None and "{}" not in args.template:
        raise UserError(f"--template {args.template!r} needs {{}} where the class name goes")


def configure(args):
    """The run's own configuration, frozen, with what the command line changes in it."""
    folder = Path(args.model_dir)
    if not (folder / "config.yaml").is_file():
        runs = sorted(path.parent for path in folder.glob("**/result.json"))
        hint = f"; do you mean {runs[0]}?" if runs else "; name the output folder of a run of train.py"
        raise MissingFile(f"No config.yaml in {folder}{hint}")
    if not (folder / "result.json").is_file():
        raise UserError(f"The run in {folder} is not finished; give its command again, which goes on with it")
    pairs = ["DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler", "DATALOADER.TEST.SAMPLER", "SequentialSampler"]
    if args.batch_size:
        pairs += ["DATALOADER.TEST.BATCH_SIZE", str(args.batch_size)]
    if args.template:
        pairs += ["DATASET.TEMPLATE", args.template]
    options = train.parse(["--config-file", str(folder / "config.yaml"), "--device", args.device, *pairs])
    cfg, _ = train.configure(options)
    train.check(options, cfg)
    return cfg


def find(arguments):
    """Paths of all pictures meant, in the order given, each once; MissingFile for an argument that means none."""
    found = {}
    for argument in arguments:
        path = Path(argument)
        names = [path] if path.exists() else map(Path, sorted(glob.glob(argument, recursive=True)))
        pictures = [each for name in names for each in (find_images(name) if name.is_dir() else [name])]
        if not pictures:
            raise MissingFile(f"No pictures at {argument}; check the path")
        found |= dict.fromkeys(pictures)
    return list(found)


def given_names(path):
    """Class names from a file, at least two and all different."""
    if Path(path).suffix.lower() in (".yaml", ".yml"):
        names = read_names(path)
        names = list(names.values()) if isinstance(names, dict) else names
    else:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Can't read {path} ({error}): it takes a file in UTF-8, one class name a line") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    different = len({name.casefold() for name in names})
    if different < max(2, len(names)):
        raise UserError(f"{path} has {len(names)} class names, {different} of them different; it takes two, each once")
    return names


class Scores(EvaluatorBase):
    """Keeps the logits that a test computes."""

    def reset(self):
        self.logits = []

    def process(self, mo, gt):
        """Logits mo (B, C); the labels gt mean nothing."""
        self.logits.append(mo.float().cpu())

    def evaluate(self):
        return {"pictures": sum(map(len, self.logits))}


@contextlib.contextmanager
def dataset_replaced(name, classes, paths):
    """While it lasts, the dataset called `name` has these classes and, as its test set, these pictures.

    It keeps its name, as trainers choose their prompts by it.
    """
    original = DATASET_REGISTRY.get(name)

    def pictures(cfg):
        train_x = [Datum(str(paths[0]), label, classname=each) for label, each in enumerate(classes)]  # never read
        return DatasetBase(train_x=train_x, test=[Datum(str(path), classname=classes[0]) for path in paths])

    pictures.__name__ = name
    DATASET_REGISTRY.register(pictures, force=True)
    try:
        yield
    finally:
        DATASET_REGISTRY.register(original, force=True)


def predict(cfg, model_dir, classes, paths):
    """Probabilities (N, C) of the classes for the pictures: softmax of the logits of an evaluation-only run."""
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    with dataset_replaced(cfg.DATASET.NAME, classes, paths):
        trainer = build_trainer(cfg)
    if cfg.EVAL.ONLY:  # a test of another run's weights
        model_dir = cfg.EVAL.MODEL_DIR
    trainer.load_model(model_dir, epoch=cfg.EVAL.EPOCH)
    trainer.evaluator = Scores(cfg)
    trainer.test(split="test")
    return torch.cat(trainer.evaluator.logits).softmax(dim=-1)


def ranking(probabilities, classes, top):
    """(N, C) -> for every picture its `top` most probable classes as [(class, probability)]."""
    values, labels = probabilities.topk(min(top, len(classes)))
    rows = zip(values.tolist(), labels.tolist(), strict=True)
    return [[(classes[label], value) for value, label in zip(*row, strict=True)] for row in rows]


def show(paths, rankings):
    for path, best in zip(paths, rankings, strict=True):
        print(path)
        for name, probability in best:
            print(f"  {probability:7.2%}  {name}")


def write_csv(file, paths, rankings):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability"])
    for path, best in zip(paths, rankings, strict=True):
        writer.writerows([path, rank, name, probability] for rank, (name, probability) in enumerate(best, 1))
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


def as_json(args, paths, rankings, broken):
    pictures = [
        {"path": str(path), "classes": [{"class": name, "probability": value} for name, value in best]}
        for path, best in zip(paths, rankings, strict=True)
    ]
    return {"model_dir": args.model_dir, "pictures": pictures, "unreadable": [str(path) for path in broken]}


def run(args):
    """Exit code: 1 if some picture doesn't decode."""
    check(args)
    cfg = configure(args)
    quiet = contextlib.redirect_stdout(io.StringIO())  # what a training run logs
    record = read_json(Path(args.model_dir) / "result.json")
    classes = given_names(args.classes) if args.classes else record["classnames"]
    paths = find(args.pictures)
    broken = {path: error for path, (_, error) in zip(paths, check_images(paths), strict=True) if error}
    for error in broken.values():
        print("Error:", error, file=sys.stderr)
    paths = [path for path in paths if path not in broken]
    if not paths:
        raise UserError("None of the pictures can be read, so there is nothing to predict")
    with quiet:
        rankings = ranking(predict(cfg, args.model_dir, classes, paths), classes, args.top)
    if args.csv:
        write_csv(args.csv, paths, rankings)
    if args.json:
        write_json(as_json(args, paths, rankings, broken), args.json)
    if args.csv or args.json:
        print(f"{len(paths)} pictures: {' and '.join(filter(None, (args.csv, args.json)))}")
    else:
        show(paths, rankings)
    return 1 if broken else 0


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    try:
        return run(parse(argv))
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:
        message = str(error)
    except Exception as error:
        traceback.print_exc()
        message = f"unexpected {type(error).__name__}: {error}"
    print("Error:", " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
