"""Put the SkipTuning trainer into a codebase of the CoOp family, and take it out again without a trace.

What is copied: the trainer and its parts into `trainers/skiptuning/`, its recipes (each as one plain yacs file) into
`configs/trainers/SkipTuning/`, five scripts into `scripts/skip/`; with --engine ours also `dassl/`. What is edited: the
function in train.py that reads the options gets a branch for the new trainer. `.swap_in.json` in the codebase remembers
what was there before.

Before anything is written, the codebase's Dassl, clip and trainers are imported in a Python of its own: that runs the
code at the top of its files, also with --dry-run.
"""

import argparse
import shlex
import sys

from dassl.utils import Parser, UserError, any_console
from swap import fork as forks
from swap import plan as plans
from swap import recipes, undo

EPILOG = """
examples:
  python swap_in.py ../CoOp --dry-run        # what would be added and edited
  python swap_in.py ../CoOp                  # do it, and print the command that trains EuroSAT there
  python swap_in.py ../CoOp --undo           # every byte as before
"""


def install(fork, args):
    name = "SkipTuning" if args.name is None else args.name
    forks.check_clean(fork.root)
    plans.check_name(fork, name)
    plans.make(fork, name, "theirs")  # what can be refused without running anything is refused here
    print("Importing its Dassl, clip and trainers to see what works", flush=True)
    found, lacking = plans.look(fork)
    engine, why, options = plans.choose_engine(fork, found, lacking, args.engine)
    plan = plans.make(fork, name, engine, options)
    trainers = plans.rehearse(plan, found)
    print(f"Engine: {engine}; {why}")
    for line in plans.warnings(found):
        print(f"Warning: {line}")
    if args.dry_run:
        plan.show()
        return
    undo.apply(plan)
    print(f"Added {len(plan.changes) - 1} files, edited {fork.train}")
    for line in trainers:
        print(f"  {line}")
    explain(fork, name, options, found.get("file") if engine == "theirs" else None)


def already_there(fork, manifest, args):
    """UserError unless the codebase holds just what is asked for."""
    for option in ("name", "engine"):
        if getattr(args, option) not in (None, manifest[option]):
            raise UserError(f"the trainer is there with --{option} {manifest[option]}: --undo first")
    files = (*manifest["added"], *manifest["edited"])
    open_ = [path for path in files if undo.state(fork.root, manifest, path) != "done"]
    if open_:
        raise UserError(f"the trainer is there, but {open_[0]} is not as swap_in left it: --undo first")
    options = manifest.get("options", "")
    new = plans.additions(fork, manifest["name"], manifest["engine"], options)
    if {path: undo.digest(content) for path, content in new.items()} != manifest["added"]:
        raise UserError("the trainer is there in another version: --undo first, then give this command again")
    print(f"{manifest['name']} is there already; nothing changed")
    explain(fork, manifest["name"], options, None)


def take_out(fork, manifest, args):
    root = fork.root
    leftover = undo.beside(root / undo.MANIFEST)
    if manifest is None and not leftover.exists():
        names = [args.name] if args.name else plans.names_there(fork)
        found = [plans.recover(fork, name) for name in names]
        manifest = next(filter(None, found), None)
        if manifest is None:
            raise UserError(f"{root} has no {undo.MANIFEST}: there is nothing to undo")
        print(f"{undo.MANIFEST} is missing; {len(manifest['added'])} files are recognised by what is in them")
    leftover.unlink(missing_ok=True)
    stays = undo.undo(root, manifest) if manifest else []
    if stays:
        print(f"Undone: everything of swap_in's is gone; not its own, so still there: {', '.join(stays)}")
    else:
        print("Undone: everything is as before")


def explain(fork, name, options, engine_file):
    for line in forks.notes(fork, engine_file):
        print(f"Note: {line}")
    dataset, command = recipes.train_command(fork, name, options)
    print(f"Train it on {dataset}:\n  cd {shlex.quote(str(fork.root))}\n  {command}")
    print(f"or, with the datasets in $DATA: bash scripts/skip/base2new_train.sh {dataset} 1")


def swap_in(args):
    fork = forks.find(args.path, args.train, args.trainers, args.clip)
    print(fork.describe())
    manifest = undo.read_manifest(fork.root)
    if manifest:
        fork = fork._replace(**{key: manifest[key] for key in ("train", "trainers", "clip") if key in manifest})
    if args.undo:
        take_out(fork, manifest, args)
    elif manifest:
        already_there(fork, manifest, args)
    else:
        install(fork, args)


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python swap_in.py", description=__doc__, epilog=EPILOG, formatter_class=form)
    parser.add_argument("path", help="folder of the codebase, or one above it")
    parser.add_argument("--engine", choices=("ours", "theirs"), help="whose dassl (default: theirs if it works)")
    parser.add_argument("--name", help="name under which the trainer is registered (default: SkipTuning)")
    parser.add_argument("--train", default="train.py", metavar="FILE", help="the file that trains, if not train.py")
    parser.add_argument("--trainers", default="trainers", metavar="FOLDER", help="the folder of its trainers")
    parser.add_argument("--clip", default="clip", metavar="FOLDER", help="the folder of its CLIP")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
    parser.add_argument("--undo", action="store_true", help="restore every byte")
    after = "nothing was changed"
    any_console()
    try:
        args = parser.parse_args(argv)
        after = "give --undo again" if args.undo else after
        swap_in(args)
        return 0
    except KeyboardInterrupt:
        print(f"\nInterrupted; {after}", file=sys.stderr)
        return 130
    except UserError as error:
        message = str(error)
    except OSError as error:
        message = f"{error}; {after}"
    print("Error:", message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
