"""Run a command on one of several GPUs: waits for a free slot, sets CUDA_VISIBLE_DEVICES.

    GPUS=0,1 JOBS_PER_GPU=2 python sweeps/slot.py COMMAND ARGUMENT ...

A slot is a lock on a file, which the command and its children hold; the kernel releases it when they are gone, also
after kill -9. Without GPUS the command simply runs; jobs that Slurm gives a GPU get none (sweeps/run.sh sees to it).
"""

import fcntl
import itertools
import os
import sys
import tempfile
import time

WAIT_SECONDS = 0.2


def take(gpus: list[str], each: int, folder: str) -> str:
    """The GPU of the first slot that becomes free; slots of different GPUs come first. The lock outlives exec."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for number, gpu in itertools.cycle([(number, gpu) for number in range(each) for gpu in gpus]):
        slot = os.open(f"{folder}/{gpu.replace('/', '_')}_{number}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(slot)
            if (number, gpu) == (each - 1, gpus[-1]):
                time.sleep(WAIT_SECONDS)
        else:
            os.set_inheritable(slot, True)
            return gpu
    raise ValueError("GPUS names no GPU")


def main() -> None:
    """The command line; the command takes this process' place."""
    gpus = [gpu.strip() for gpu in os.environ.get("GPUS", "").split(",") if gpu.strip()]
    if gpus:
        each = os.environ.get("JOBS_PER_GPU", "1")
        if not each.isdecimal() or each == "0":
            sys.exit(f"Error: JOBS_PER_GPU is {each!r}; it must be a whole number of at least 1")
        folder = os.path.join(tempfile.gettempdir(), f"gpu_slots_{os.getuid()}")
        os.environ["CUDA_VISIBLE_DEVICES"] = take(gpus, int(each), folder)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
