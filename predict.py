"""The most probable classes of new images, by the model of a finished run of train.py."""

import argparse
import contextlib
import csv
import glob
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

import train
from dassl.data.transforms import build_transform
from dassl.utils import MissingFile, Parser, UserError, exit_code, read_image, read_text, write_atomic
from datasets.base import check_template
from datasets.files import find_images
from datasets.own_images import read_names

SCREEN = "-"  # as in parse_test_res.py
EPILOG = """
examples:
  python predict.py --model-dir output/few_shot/emoji/SkipTuning/embedded_5shots/seed1 image.png folder/
  python predict.py --model-dir RUN --top 1 --csv names.csv 'images/**/*.jpg'
  python predict.py --model-dir RUN --classes other_names.txt --template "a photo of a {}." image.png

Folders are searched with all folders below. Images that don't decode are named and left out; the exit code is
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
    path = os.path.expanduser
    flag("images", nargs="+", type=path, help='images, folders with images, or patterns such as "a/**/*.jpg"')
    flag("--model-dir", type=path, required=True, metavar="RUN", help="output folder of the run (holds result.json)")
    flag("--top", type=positive, default=5, metavar="K", help="how many classes for each image (default: 5)")
    flag(
        "--classes",
        type=path,
        metavar="FILE",
        help="other class names: one a line, a YAML list or mapping, or a\n"
        "CSV file with them in the column class or name, else the first",
    )
    flag("--template", help='other prompt, with {} for the class name, such as "a photo of a {}."')
    flag("--csv", type=path, metavar="FILE", help="write path,rank,class,probability; -: to the screen")
    flag("--json", type=path, metavar="FILE", help="write the same as JSON; -: to the screen")
    flag("--force", action="store_true", help="overwrite FILE if it is there")
    flag("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto, CUDA if present")
    flag("--batch-size", type=positive, metavar="N", help="images at a time (default: as the run tested)")
    return parser.parse_args(argv)


def check(args):
    """What can be known before anything is read."""
    files = [Path(path) for path in (args.csv, args.json) if path]
    if len(files) == 2 and files[0].resolve() == files[1].resolve():
        raise UserError(f"--csv and --json both name {files[0]}; name two files")
    for path in files:
        if str(path) == SCREEN:
            continue
        if path.exists() and not path.is_file():
            raise UserError(f"{path} exists; name another file: it is a folder or a device")
        if path.exists() and not args.force:
            raise UserError(f"{path} exists; name another file, or overwrite it with --force")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise UserError(f"Can't write to {path.parent}; name a file elsewhere")
    if args.template is not None:
        check_template(args.template, "--template")


# ---- what is given -----------------------------------------------------------------------------------------


def find(arguments):
    """Paths of all images meant, in the order given, each once; MissingFile for an argument that means none."""
    found = {}
    for argument in arguments:
        path = Path(argument)
        names = [path] if path.exists() else map(Path, sorted(glob.glob(argument, recursive=True)))
        images = []
        for name in names:
            if name.is_dir():
                images += find_images(name)
            elif name.is_file():
                images.append(name)
        if not images:
            raise MissingFile(f"No images at {argument}; check the path")
        found |= dict.fromkeys(images)
    return list(found)


def given_names(path):
    """Class names from a file, at least two and all different."""
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        names = read_names(path)
        names = list(names.values()) if isinstance(names, dict) else names
    elif suffix == ".csv":
        names = csv_names(path)
    else:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    different = len({name.casefold() for name in names})
    if different < max(2, len(names)):
        raise UserError(f"{path} has {len(names)} class names, {different} of them different; it needs two, each once")
    return names


def csv_names(path):
    """The column of a CSV file whose first line calls it class, classname or name; else the first column, all lines."""
    try:
        rows = [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file ({error}); correct it there") from error
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    for head in ("class", "classname", "name"):
        if head in heads:
            column = heads.index(head)
            return [row[column].strip() for row in rows[1:] if len(row) > column and row[column].strip()]
    return [row[0].strip() for row in rows if row[0].strip()]


# ---- prediction --------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(trainer, paths, batch_size):
    """(probabilities (N, C), {path: error}): softmax of the logits for the N images that decode, and the others.

    UserError for logits that are not finite: their order would mean nothing.
    """
    transform = build_transform(trainer.cfg, is_train=False)

    def load(path):
        try:
            return transform(read_image(path, exif_transpose=True)), None
        except UserError as error:
            return None, error

    trainer.set_model_mode("eval")
    class_features = trainer.class_features()
    probabilities, broken = [], {}
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(paths), batch_size), desc="Predicting", leave=False):
            batch = paths[start : start + batch_size]
            loaded = list(pool.map(load, batch))
            broken |= {path: error for path, (_, error) in zip(batch, loaded, strict=True) if error}
            images = [image for image, error in loaded if not error]
            if images:
                logits = trainer.logits(torch.stack(images), class_features).float().cpu()
                if not logits.isfinite().all():
                    raise UserError(
                        "The model's logits are infinite or not a number, so that they mean no class: its weights are "
                        "damaged, or its training went wrong (see its log.txt)"
                    )
                probabilities.append(logits.softmax(dim=-1))
    return torch.cat(probabilities) if probabilities else torch.empty(0, len(class_names(trainer))), broken


def class_names(trainer):
    return trainer.dm.dataset.classnames


def ranking(probabilities, classes, top):
    """(N, C) -> for every image its `top` most probable classes as [(class, probability)]."""
    values, labels = probabilities.topk(min(top, len(classes)))
    rankings = []
    for row_values, row_labels in zip(values.tolist(), labels.tolist(), strict=True):
        rankings.append([(classes[label], value) for value, label in zip(row_values, row_labels, strict=True)])
    return rankings


# ---- what is told ------------------------------------------------------------------------------------------


def show(paths, rankings):
    for path, best in zip(paths, rankings, strict=True):
        print(path)
        for name, probability in best:
            print(f"  {probability:7.2%}  {name}")


def put(file, text):
    if file == SCREEN:
        print(text, end="")
    else:
        write_atomic(os.path.realpath(file), text.encode("utf-8", "surrogateescape"))


def write_csv(file, paths, rankings):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability"])
    for path, best in zip(paths, rankings, strict=True):
        for rank, (name, probability) in enumerate(best, 1):
            writer.writerow([path, rank, name, probability])
    put(file, text.getvalue())


def as_json(args, paths, rankings, broken):
    images = []
    for path, best in zip(paths, rankings, strict=True):
        classes = [{"class": name, "probability": value} for name, value in best]
        images.append({"path": str(path), "classes": classes})
    return {"model_dir": args.model_dir, "images": images, "unreadable": [str(path) for path in broken]}


def run(args):
    """Exit code: 1 if some image doesn't decode."""
    check(args)
    names = given_names(args.classes) if args.classes else None
    paths = find(args.images)
    options = ["DATASET.TEMPLATE", args.template] if args.template else []
    with contextlib.redirect_stdout(io.StringIO()):  # what a training run logs
        trainer = train.load_trainer(args.model_dir, names, args.device, options)
        batch_size = args.batch_size or trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        probabilities, broken = predict(trainer, paths, batch_size)
    if len(broken) == len(paths):
        error = next(iter(broken.values()))
        raise error if len(broken) == 1 else UserError(f"None of the {len(broken)} images can be read; {error}")
    for error in broken.values():
        print("Error:", error, file=sys.stderr)
    paths = [path for path in paths if path not in broken]
    rankings = ranking(probabilities, class_names(trainer), args.top)
    if args.csv:
        write_csv(args.csv, paths, rankings)
    if args.json:
        put(args.json, json.dumps(as_json(args, paths, rankings, broken), indent=4) + "\n")
    if not (args.csv or args.json):
        show(paths, rankings)
    elif SCREEN not in (args.csv, args.json):  # nothing but the rows goes there
        print(f"{len(paths)} images: {' and '.join(filter(None, (args.csv, args.json)))}")
    return 1 if broken else 0


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(parse(argv)), "nothing was written", traceback_to=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
