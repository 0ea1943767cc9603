"""The data path alone: images per second of one core, from a file to a normalised tensor of 224 px.

    python -m benchmarks.data                # a few minutes
    python -m benchmarks.data --quick        # seconds, to see that it works
    python -m benchmarks.data --json FILE    # the rows as JSON as well

"ours" is what training and testing use; "plain" is CoOp's way: Pillow decodes and torchvision transforms a PIL image.
They take turns on the same files. "decoding" is Pillow's part alone, which both share. "again" is ours from the second
epoch of a training on, when the images lie decoded in memory (DATALOADER.DECODED_MB); "gain" is its rate over ours. The
difference is that of the tensors of both for the same random numbers, in steps of an 8-bit pixel. The "draft" row is
what half the size straight from the JPEG decoder would give; ours doesn't use it, because of the difference.

"loader" is the whole way from JPEGs of 500 px to training batches, in an epoch behind the first one, with decoded
images kept and without, and for two numbers of workers, which start anew in each epoch.

The JPEGs are made here: noise of several scales with grain, discs and thin lines, at quality 90, so that a file takes
about as many bytes as a photograph of its size. The PNGs are drawings of the embedded emoji dataset.
"""

import argparse
import contextlib
import io
import itertools
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision import transforms as T

from benchmarks.measure import check_new, interleaved, machine, show
from dassl.config import get_cfg_default
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.decoded import DecodedImages
from dassl.data.transforms import build_transform
from dassl.utils import exit_code, read_image, write_json
from results.costs import data_tables
from trainers.parts.cache import TrainingLoader

SIZE = 224
BATCH = 4  # of the loader, as in Skip Tuning's recipes
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
EMOJI = Path(__file__).parents[1] / "datasets" / "emoji_data" / "images"


def photograph(width, height, seed):
    """A PIL image with detail at every scale, as photographs have."""
    random = np.random.default_rng(seed)
    pixels = random.normal(128, 9, (height, width, 3))  # the grain
    for cells in (3, 9, 27, 81):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += (np.asarray(noise.resize((width, height), Image.BICUBIC)) - 128.0) / cells**0.3
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for x, y, radius in random.uniform(0, 1, (8, 3)):
        box = [(x - radius / 8) * width, (y - radius / 8) * height, (x + radius / 8) * width, (y + radius / 8) * height]
        draw.ellipse(box, fill=tuple(random.integers(0, 256, 3).tolist()))
    for ends in random.uniform(0, 1, (20, 2, 2)):
        line = [(x * width, y * height) for x, y in ends]
        draw.line(line, fill=tuple(random.integers(0, 256, 3).tolist()), width=2)
    return image


def make_files(folder, number):
    """{kind of image: its files}, `number` of each; half of the JPEGs are upright."""
    files = {}
    for long in (500, 2000):
        files[f"JPEG {long} px"] = paths = [folder / f"{long}_{i}.jpg" for i in range(number)]
        for i, path in enumerate(paths):
            size = (long, long * 3 // 4) if i % 2 else (long * 3 // 4, long)
            photograph(*size, seed=i).save(path, quality=90)
    drawings = sorted(EMOJI.rglob("*.png"))
    files["PNG 64 px"] = drawings[:: len(drawings) // number][:number]
    return files


def our_config():
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (SIZE, SIZE), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    return cfg


def our_transform(train):
    cfg = our_config()
    with contextlib.redirect_stdout(io.StringIO()):  # it lists its steps
        return build_transform(cfg, is_train=train)


def plain_transform(train):
    bicubic = T.InterpolationMode.BICUBIC
    cut = [T.Resize(SIZE, bicubic), T.CenterCrop(SIZE)]
    if train:
        cut = [T.RandomResizedCrop(SIZE, scale=(0.08, 1.0), interpolation=bicubic), T.RandomHorizontalFlip()]
    return T.Compose([*cut, T.ToTensor(), T.Normalize(MEAN, STD)])


def read_plainly(path):
    return Image.open(path).convert("RGB")


def read_draft(path):
    """At half the size of a JPEG, straight from its decoder."""
    image = Image.open(path)
    image.draft("RGB", (image.width // 2, image.height // 2))
    return image.convert("RGB")


def tensors(read, transform, paths):
    """(N, 3, 224, 224); the same random numbers on every call."""
    torch.manual_seed(0)
    return torch.stack([transform(read(path)) for path in paths])


def decode(paths):
    for path in paths:
        Image.open(path).load()


def difference(one, other):
    """(largest, mean) distance of two batches of normalised images, in steps of an 8-bit pixel."""
    steps = (one - other).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
    return steps.max().item(), steps.mean().item()


def cases(files):
    """(kind of image, transform, our way to read) of every row."""
    for kind in files:
        yield kind, "train", read_image
        yield kind, "test", read_image
    yield "JPEG 2000 px", "test, draft", read_draft


def kept(paths):
    """What a first epoch leaves of the files."""
    images = DecodedImages(len(paths), room=10**9)
    for index, path in enumerate(paths):
        images.put(index, read_image(path))
    return images


def compare(files, rounds):
    """One dict for each row; speeds in images per second."""
    calls, rows = {}, []
    for kind, name, read in cases(files):
        train = name == "train"
        calls[kind, name, "plain"] = partial(tensors, read_plainly, plain_transform(train), files[kind])
        calls[kind, name, "ours"] = partial(tensors, read, our_transform(train), files[kind])
        calls[kind, name, "decoding"] = partial(decode, files[kind])
        if train:
            indices = range(len(files[kind]))
            calls[kind, name, "again"] = partial(tensors, kept(files[kind]).get, our_transform(train), indices)
    seconds = interleaved(calls, rounds)
    for kind, name, _ in cases(files):
        speeds = {way: len(files[kind]) / seconds[kind, name, way] for way in ("decoding", "plain", "ours")}
        again = len(files[kind]) / seconds[kind, name, "again"] if name == "train" else None
        largest, mean = difference(calls[kind, name, "plain"](), calls[kind, name, "ours"]())
        ratio = speeds["ours"] / speeds["plain"]
        rows.append({"images": kind, "transform": name, **speeds, "ratio": ratio, "largest": largest, "mean": mean})
        rows[-1] |= {"again": again, "gain": again and again / speeds["ours"]}
    return rows


def epoch_of(paths, number, megabytes, workers):
    """A function that goes through an epoch of `number` images, which repeat `paths`; one epoch lies behind it."""
    cfg = our_config()
    cfg.DATALOADER.DECODED_MB, cfg.DATALOADER.NUM_WORKERS = megabytes, workers
    images = [
        Datum(str(path), label=0, classname="made up") for path in itertools.islice(itertools.cycle(paths), number)
    ]
    loader = build_data_loader(cfg, data_source=images, batch_size=BATCH, tfm=our_transform(True), is_train=True)
    loader = TrainingLoader(loader, seed=1)

    def epoch():
        loader.start_epoch(loader.epoch + 1)
        for _ in loader:
            pass

    epoch()
    return epoch


def compare_loaders(paths, number, rounds):
    """One dict for each row of the loader's table; speeds in images per second."""
    kept = get_cfg_default().DATALOADER.DECODED_MB
    calls = {
        (workers, megabytes): epoch_of(paths, number, megabytes, workers)
        for workers in (0, 2)
        for megabytes in (0, kept)
    }
    speeds = {key: number / spent for key, spent in interleaved(calls, rounds, unmeasured=0).items()}
    return [
        {"loader": f"{workers} workers", "decoded each time": speeds[workers, 0], "kept": speeds[workers, kept]}
        | {"gain": speeds[workers, kept] / speeds[workers, 0]}
        for workers in (0, 2)
    ]


def run(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two images of each kind, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    args = parser.parse_args(argv)
    check_new(args.json)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), number=2 if args.quick else 6)
        kilobytes = {kind: sum(path.stat().st_size for path in paths) / 1e3 for kind, paths in files.items()}
        rows = compare(files, rounds=1 if args.quick else 20)
        loader = compare_loaders(files["JPEG 500 px"], number=8 if args.quick else 800, rounds=1 if args.quick else 3)
    result = {"machine": machine(), "rows": rows, "loader": loader}
    if args.json:
        write_json(result, args.json)
    sizes = [f"{kind}: {len(files[kind])} files of {kilobytes[kind] / len(files[kind]):.0f} kB" for kind in files]
    print(show("\n".join([result["machine"], *sizes]), *data_tables(result)))


def main(argv=None):
    """Exit code: 0 when done, 1 after an error, 130 after Ctrl-C."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    try:
        return exit_code(lambda: run(argv), "nothing is kept, start it again")
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
