"""A stand-in for Python that records the command lines of the scripts, for the tests of all of them."""

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Says that PyTorch is there, records its arguments, "trains" by leaving a result.json, fails or is interrupted where
# the test says so.
STAND_IN = """#!/usr/bin/env bash
if [[ "$1" = -c && "$2" = *torch* ]]; then exit "${NO_TORCH:-0}"; fi
echo "$*" >> "$CALLS"
if [[ -n ${FAIL_ON:-} && "$*" == *$FAIL_ON* ]]; then echo "Error: said so" >&2; exit "${FAIL_CODE:-1}"; fi
if [[ "$*" == *"-m venv"* ]]; then mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python"; fi
if [ -n "${WAIT:-}" ]; then trap "exit 130" INT; touch "$WAIT"; for i in {1..200}; do sleep 0.1; done; fi
echo "epoch [1/1] batch [1/1] loss 1.0"
echo "* accuracy: 50.0%"
while (($#)); do
  if [ "$1" = --output-dir ]; then mkdir -p "$2" && touch "$2/result.json"; fi
  shift
done
"""


class Shell:
    """Runs scripts from a folder that is not the project's and keeps the stand-in's calls, a string each."""

    def __init__(self, folder):
        self.folder, self.output, self.calls_file = folder, folder / "out", folder / "calls"
        self.python = folder / "python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def __call__(self, script, *args, **env):
        return self.command("bash", ROOT / "scripts" / script, *args, **env)

    def command(self, *words, **env):
        process = self.start(*words, **env)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words, cwd=None, **env):
        settings = {"PATH": os.environ["PATH"], "CALLS": self.calls_file, "PYTHON": self.python, "DATA": "/d"}
        settings |= {"OUTPUT": self.output} | env
        return subprocess.Popen(
            [str(word) for word in words],
            env={key: str(value) for key, value in settings.items()},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )

    @property
    def settings(self):
        """What stands before the commands that scripts print."""
        return f"OUTPUT={self.output} DATA=/d PYTHON={self.python} "

    @property
    def calls(self):
        text = self.calls_file.read_text() if self.calls_file.exists() else ""
        return text.replace(f"{self.output}/", "").splitlines()

    def finish(self, folder):
        (self.output / folder).mkdir(parents=True)
        (self.output / folder / "result.json").touch()


def command(dataset, seed, files, folder, classes, flags="", trainer="SkipTuning", shots=16):
    """files: names in configs/trainers/<trainer>/, or in overlays/."""
    files = [f"trainers/{trainer}/{name}" if "/" not in name else name for name in files.split()]
    return (
        f"train.py --root /d --seed {seed} --trainer {trainer} "
        f"--dataset-config-file configs/datasets/{dataset}.yaml "
        f"--config-file {' '.join(f'configs/{name}.yaml' for name in files)} "
        f"--output-dir {folder} {flags}DATASET.NUM_SHOTS {shots} DATASET.SUBSAMPLE_CLASSES {classes}"
    )


VIT = {protocol: f"vit_b16 overlays/{protocol}" for protocol in ("base2new", "few_shot", "xd")}
