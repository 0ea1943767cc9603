"""Run inside a codebase, in a Python of its own: what works there.

    python probe.py RESULT < task.json      in the codebase's folder

The task names the package of the codebase's Dassl (`dassl`), names that are imported from it (`names`), modules to
import (`modules`), and whether to try its schedules (`schedules`). RESULT is a JSON file.
"""

import importlib
import io
import json
import os
import sys


def first_line(error):
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:200]


def attempt(function, *args):
    """-> (what the function returns, None) or (None, the error's first line)."""
    try:
        return function(*args), None
    except (Exception, SystemExit) as error:  # a codebase's file may end the process
        return None, first_line(error)


def missing(names):
    """Those [module, name] that can't be imported; name "" is the module itself."""
    lacking = []
    for module, name in names:
        found, _ = attempt(importlib.import_module, module)
        if found is not None and name not in ("", "*") and not hasattr(found, name):
            found, _ = attempt(importlib.import_module, f"{module}.{name}")
        if found is None:
            lacking.append([module, name])
    return lacking


def warm_up(package):
    """A schedule with a warm-up, as the presets use it."""
    import torch

    schedulers = importlib.import_module(f"{package}.optim.lr_scheduler")
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 2)
    return schedulers.ConstantWarmupScheduler(sgd, cosine, 1, 1e-5)


def checkpoint(schedule):
    """Saves a schedule and reads it back, as upstream's Dassl does."""
    import torch

    file = io.BytesIO()
    torch.save(schedule.state_dict(), file)
    file.seek(0)
    torch.load(file)


def look(task):
    import torch

    found = {"python": list(sys.version_info[:3]), "torch": str(torch.__version__)}
    package = task["dassl"]
    engine, found["dassl"] = attempt(importlib.import_module, f"{package}.engine")
    if engine is not None:
        found["file"] = str(sys.modules[package].__file__)
        found["missing"] = missing(task["names"])
        if task["schedules"]:
            schedule, found["warm-up"] = attempt(warm_up, package)
            if schedule is not None:
                _, found["checkpoint"] = attempt(checkpoint, schedule)
    found["modules"] = {module: attempt(importlib.import_module, module)[1] for module in task["modules"]}
    return found


def main():
    result, task = sys.argv[1], json.load(sys.stdin)
    sys.path[0] = os.getcwd()
    sys.argv = [task.get("file", "train.py")]  # a codebase may read the command line when it is imported
    sys.stdout = sys.stderr  # and print
    found = look(task)
    with open(result, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
