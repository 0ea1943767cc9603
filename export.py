"""A finished run of train.py in the formats of others: open_clip, Hugging Face, OpenAI's file, ONNX."""

import argparse
import contextlib
import dataclasses
import io
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save

import clip
import train
from clip.card import model_card
from clip.model import facts_of, sizes_in
from clip.onnx_files import TOLERANCE, Outputs, check_packages, classify_script, verify_onnx, write_onnx
from clip.origins import openai_facts
from clip.writing import write_folder, write_openai
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.result import read_result
from dassl.utils import MissingFile, Parser, UserError, exit_code, write_atomic
from trainers.frozen import FrozenCLIP

EPILOG = """
targets:
  hf, open_clip  one folder that transformers and open_clip both read, with tokenizer and model card
  openai         OpenAI's plain state dict, clip.pt; --torchscript: the archive that OpenAI's clip.load(path) needs
  onnx           the image tower, a classifier with the run's class names, and a script that needs neither
                 PyTorch nor this project (needs pip install onnx onnxscript onnxruntime)
  head           the class features alone, for a program that has the untouched backbone's image features already

The first two take methods whose result is a CLIP, head takes those that leave image features and their comparison with
the classes alone; the others are told why not. ONNX takes every method whose class features don't depend on the image.

examples:
  python export.py --model-dir output/demo/.../SkipTuning/.../seed1 --to hf --out exported/
  python export.py --model-dir RUN --to onnx --out classifier/
"""


def parse(argv):
    form = argparse.RawTextHelpFormatter
    parser = Parser(prog="python export.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    flag, path = parser.add_argument, os.path.expanduser
    flag("--model-dir", type=path, required=True, metavar="RUN", help="output folder of the run (holds result.json)")
    flag("--to", required=True, choices=("hf", "open_clip", "openai", "onnx", "head"), help="what to write")
    flag("--out", type=path, required=True, metavar="FOLDER", help="folder to write; nothing may be there")
    flag("--torchscript", action="store_true", help="with --to openai: an archive instead of a plain state dict")
    flag(
        "--results",
        type=path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="result.json of tests of this run, such as on new classes, for the model card",
    )
    flag("--dry-run", action="store_true", help="say what would be written, and write nothing")
    return parser.parse_args(argv)


def check(args):
    """What can be known before anything is loaded; -> the run's result.json and the class of its trainer."""
    run, out = Path(args.model_dir), Path(args.out)
    if not (run / "config.yaml").is_file():
        raise MissingFile(f"No config.yaml in {run}; name the output folder of a run of train.py")
    if not (run / "result.json").is_file():
        raise UserError(f"The run in {run} has no result.json, it is not finished; give its command again")
    if not out.name:
        raise UserError(f"--out {out} is a folder that is there already; name a new one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; name another folder")
    if args.torchscript and args.to != "openai":
        raise UserError("--torchscript is a form of --to openai; leave it out")
    if args.results and args.to not in ("hf", "open_clip"):
        raise UserError(f"--results is for the model card, which --to {args.to} doesn't write; leave it out")
    for path in args.results:
        read_result(path)
    result = read_result(run / "result.json")
    trainer = TRAINER_REGISTRY.get(result["trainer"])
    refuse(args.to, trainer)
    if args.to == "onnx":
        check_packages()
    return result


def refuse(target, trainer):
    """UserError if what the method has learned has no such form."""
    if target in ("hf", "open_clip", "openai") and not hasattr(trainer, "tuned_clip"):
        raise UserError(
            f"{trainer.__name__} leaves CLIP's weights alone and learns something beside them, which no CLIP folder or "
            "file can hold: use --to onnx, which bakes it in for the run's classes"
        )
    own = getattr(trainer, "class_features_for", FrozenCLIP.class_features_for)
    if target == "onnx" and own is not FrozenCLIP.class_features_for:
        raise UserError(
            f"{trainer.__name__} computes other class features for every image, so no class matrix can be baked in: "
            "use predict.py"
        )


def refuse_head(trainer):
    """UserError unless logits are plain products of the untouched backbone's image features and class features."""
    methods = type(trainer)
    plain = issubclass(methods, FrozenCLIP) and (methods.frozen_images or not trainer.get_model_names())
    plain = plain and methods.image_features is FrozenCLIP.image_features
    if not plain or methods.compare is not FrozenCLIP.compare:
        raise UserError(
            f"{methods.__name__} changes the image features or their comparison with the classes, so that class "
            "features alone are not its classifier: use --to onnx"
        )


def load(args, name):
    """The run's trainer, which is called `name`, on the CPU, its frozen weights and what it has learned in fp32."""
    with contextlib.redirect_stdout(io.StringIO()):  # what a training run logs
        trainer = train.load_trainer(args.model_dir, None, "cpu", [f"TRAINER.{name.upper()}.PREC", "fp32"])
    trainer.set_model_mode("eval")
    return trainer


def pixels_of(trainer, model):
    """The model's facts with the mean and std that the run was trained and tested with."""
    options = trainer.cfg.INPUT
    facts = facts_of(model)
    if "normalize" not in options.TRANSFORMS:
        raise UserError("The run's images are not normalised (INPUT.TRANSFORMS), which these formats can't say")
    return dataclasses.replace(facts, mean=tuple(options.PIXEL_MEAN), std=tuple(options.PIXEL_STD))


# ---- the targets -------------------------------------------------------------------------------------------


def to_folder(trainer, result, args, folder):
    model = trainer.tuned_clip().eval()
    facts = pixels_of(trainer, model)
    write_folder(model, folder, facts, trainer.cfg.INPUT.INTERPOLATION)
    tests = [result, *map(read_result, args.results)]
    tests = [(each, trainer.left_out(each["classnames"])) for each in tests]
    text = model_card(result, facts, trainer.template(), rounding(trainer, model), tests)
    write_atomic(folder / "README.md", text.encode())
    write_classes(trainer, folder)
    say("Verifying: loading what was written")
    compare(model, facts, folder)


def to_openai(trainer, result, args, folder):
    model = trainer.tuned_clip().eval()
    facts = pixels_of(trainer, model)
    if facts != openai_facts(sizes_in(model.state_dict())):
        raise UserError(
            "OpenAI's package takes QuickGELU, 64 channels a head and its own mean and std for granted, and this model "
            "has others, so it would be wrong there without a word: use --to hf"
        )
    write_openai(model, folder, facts, args.torchscript)
    say("Verifying: loading what was written")
    compare(model, facts, folder / "clip.pt")


def to_onnx(trainer, result, args, folder):
    """image_tower.onnx: images -> features, not normalised; classifier.onnx: images -> logits of the run's classes."""
    features, classifier = onnx_modules(trainer)
    facts = pixels_of(trainer, trainer.clip_model)
    for module, name, output in ((features, "image_tower", "features"), (classifier, "classifier", "logits")):
        write_onnx(module, facts.image_size, folder / f"{name}.onnx", output)
    write_classes(trainer, folder)
    script = classify_script(facts, trainer.cfg.INPUT.INTERPOLATION)
    write_atomic(folder / "classify.py", script.encode())
    say("Verifying: batches of 1, 2, 7 and 64 images in onnxruntime")
    verify_onnx(folder / "image_tower.onnx", features, facts.image_size)
    difference = verify_onnx(folder / "classifier.onnx", trainer.logits, facts.image_size)
    say(f"Logits differ by {difference:.1g} at most from the run's model")


def onnx_modules(trainer):
    """The run's image tower and its classifier, with the class features as constants."""
    with torch.no_grad():
        class_features = trainer.class_features()
    if class_features is None:
        raise UserError("This run computes other class features for every image: use predict.py")
    if hasattr(trainer, "tuned_clip"):  # one plain tower, whatever the trainer has in several parts
        image_features, modules = (tower := trainer.tuned_clip().visual.eval()).__call__, [tower]
    else:
        image_features, modules = trainer.image_features, [trainer.clip_model, trainer.learned]

    def logits(image):
        return trainer.compare(image_features(image), class_features)

    return Outputs(image_features, *modules), Outputs(logits, *modules)


def to_head(trainer, result, args, folder):
    """head.safetensors: `weight` (C, E), with which unit image features f (N, E) of the backbone give logits f W^T."""
    refuse_head(trainer)
    with torch.no_grad():
        weight = trainer.scale * F.normalize(trainer.class_features(), dim=-1)
    metadata = {"backbone": result["backbone"], "trainer": result["trainer"], "dataset": result["dataset"]}
    write_atomic(folder / "head.safetensors", save({"weight": weight.contiguous()}, metadata))
    write_classes(trainer, folder)
    say("Verifying: logits of noise")
    loaded, size = load_file(folder / "head.safetensors")["weight"], trainer.clip_model.visual.input_resolution
    image = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = F.normalize(trainer.clip_model.encode_image(image), dim=-1) @ loaded.t()
    difference = float((found - trainer.logits(image)).abs().max())
    if not difference < TOLERANCE:
        raise UserError(f"The head differs by {difference:.1g} from the run's model: nothing was exported")


TARGETS = {"hf": to_folder, "open_clip": to_folder, "openai": to_openai, "onnx": to_onnx, "head": to_head}
FILES = {
    "hf": "open_clip_model.safetensors, model.safetensors, their configurations, the tokenizer, classes.txt, README.md",
    "openai": "clip.pt, open_clip_config.json",
    "head": "head.safetensors, classes.txt",
    "onnx": "image_tower.onnx, classifier.onnx, classes.txt, classify.py",
}


def compare(model, facts, place):
    """UserError unless what was written loads as the same CLIP: the same facts, and every weight bit by bit."""
    loaded, _ = clip.load(place, device="cpu")
    expected, found = model.state_dict(), loaded.state_dict()
    wrong = [key for key in expected if not torch.equal(found[key], expected[key])]
    if loaded.facts != facts or wrong:
        raise UserError(f"What was written to {place} doesn't load as it was ({', '.join(wrong[:3]) or 'its facts'})")


def write_classes(trainer, folder):
    """classes.txt, one name a line, as the prompts have them."""
    write_atomic(folder / "classes.txt", "".join(f"{name}\n" for name in trainer.classnames).encode())


def rounding(trainer, model):
    """What fp16 does to the update: shares (changed numbers, of these lost in fp16), over all weights; None if none
    changed."""
    with contextlib.redirect_stdout(io.StringIO()):
        before, _ = clip.load(trainer.cfg.MODEL.BACKBONE.NAME, device="cpu", facts=trainer.cfg.MODEL.BACKBONE)
    changed = lost = total = 0
    for key, value in before.state_dict().items():
        now = model.state_dict()[key]
        moved = now != value
        changed, total = changed + int(moved.sum()), total + value.numel()
        lost += int((moved & (now.half() == value.half())).sum())
    return (changed / total, lost / changed) if changed else None


def say(text):
    print(text, flush=True)


def run(args):
    result = check(args)
    out, files = Path(args.out), FILES["hf" if args.to == "open_clip" else args.to]
    if args.dry_run:
        say(f"Would write to {out}: {files}")
        return
    say(f"Loading the run in {args.model_dir}")
    trainer = load(args, result["trainer"])
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        say(f"Writing {files}")
        TARGETS[args.to](trainer, result, args, beside)
        if out.exists():
            out.rmdir()  # it is empty
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.iterdir())
    say(f"Done: {out}, {len(list(out.iterdir()))} files, {size / 1e6:.1f} MB")


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    return exit_code(lambda: run(parse(argv)), "nothing was written", traceback_to=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
