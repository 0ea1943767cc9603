"""A tiny random CLIP in a file, a data set of coloured pictures, and trainers built on the two."""

import copy
import functools

import numpy as np
import pytest
from PIL import Image

import trainers
from clip import clip
from clip.model import convert_weights
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

CLASSES = ["red box", "green_ball", "blue", "a very yellow thing", "grey", "pink bow", "white", "black dot"]
IMAGES = {"train": 4, "test": 2}  # of each class
SUBSAMPLES = {"all": slice(None), "base": slice(4), "new": slice(4, None)}


@DATASET_REGISTRY.register()
class Pictures(DatasetBase):
    def __init__(self, cfg):
        kept = list(enumerate(CLASSES))[SUBSAMPLES[cfg.DATASET.SUBSAMPLE_CLASSES]]
        items = {
            part: [
                Datum(f"{cfg.DATASET.ROOT}/{part}_{drawn}_{i}.png", label=label, classname=name)
                for label, (drawn, name) in enumerate(kept)
                for i in range(number)
            ]
            for part, number in IMAGES.items()
        }
        super().__init__(train_x=items["train"], test=items["test"])
        self.whole_classnames = CLASSES
        self.first_label = SUBSAMPLES[cfg.DATASET.SUBSAMPLE_CLASSES].start or 0


@pytest.fixture(scope="session")
def rounded_clip(make_clip):
    """A CLIP of 3 + 3 blocks for 32 pixels, every parameter random, in eval mode; fp32, rounded to what fp16 holds."""
    model = make_clip(embed_dim=32)
    convert_weights(model)  # as every loaded model is
    return model.float()


@pytest.fixture
def random_clip(rounded_clip):
    """A test's own copy of it."""
    return copy.deepcopy(rounded_clip)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, rounded_clip):
    """The folder with Pictures' files and the CLIP, tiny.safetensors, which all tests read and none changes."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, number in IMAGES.items():
        for label in range(len(CLASSES)):
            colour = noise.uniform(0, 255, 3)
            for i in range(number):
                pixels = np.clip(noise.normal(colour, 50, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{part}_{label}_{i}.png")
    clip.save(rounded_clip, folder / "tiny.safetensors")
    return folder


@pytest.fixture(scope="session")
def make_cfg_in(pictures):
    """make_cfg_in(folder, trainer, KEY, VALUE, ...): options of a short run on Pictures with that OUTPUT_DIR."""

    def make(folder, trainer, *opts):
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        fixed = {
            "TRAINER.NAME": trainer,
            "DATASET.NAME": "Pictures",
            "DATASET.ROOT": str(pictures),
            "OUTPUT_DIR": str(folder),
            "MODEL.BACKBONE.NAME": str(pictures / "tiny.safetensors"),
            "INPUT.SIZE": (32, 32),
            "INPUT.TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
            "DATALOADER.NUM_WORKERS": 0,
            "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
            "OPTIM.NAME": "sgd",
            "OPTIM.LR": 0.01,
            "OPTIM.LR_SCHEDULER": "cosine",
            "OPTIM.MAX_EPOCH": 2,
            "SEED": 1,
            "TRAIN.CPU_PREC": "fp32",  # on every machine
            "USE_CUDA": False,
            "TRAINER.SKIPTUNING.OMEGA": 2,
        }
        cfg.merge_from_list([word for pair in fixed.items() for word in pair])
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture(scope="session")
def make_trainer_in(make_cfg_in):
    """make_trainer_in(folder, trainer, KEY, VALUE, ...): the trainer itself, built after its seed was set."""

    def make(folder, trainer, *opts):
        cfg = make_cfg_in(folder, trainer, *opts)
        set_random_seed(cfg.SEED)
        return build_trainer(cfg)

    return make


@pytest.fixture
def make_cfg(make_cfg_in, tmp_path):
    """make_cfg(trainer, KEY, VALUE, ...): the same for the test's own folder `run`."""
    return functools.partial(make_cfg_in, tmp_path / "run")


@pytest.fixture
def make_trainer(make_trainer_in, tmp_path):
    """make_trainer(trainer, KEY, VALUE, ...): the same for the test's own folder `run`."""
    return functools.partial(make_trainer_in, tmp_path / "run")


@pytest.fixture
def train_until():
    """train_until(trainer, epoch, batch=0): trains it up to Ctrl-C in that step."""

    def train(trainer, epoch, batch=0):
        forward_backward = trainer.forward_backward

        def interrupt(data):
            if (trainer.epoch, trainer.batch_idx) == (epoch, batch):
                raise KeyboardInterrupt
            return forward_backward(data)

        trainer.forward_backward = interrupt
        with pytest.raises(KeyboardInterrupt):
            trainer.train()

    return train
