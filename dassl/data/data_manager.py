"""From a dataset to loaders of batches."""

import os
import socket
import tempfile

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from ..utils import UserError, read_image
from .datasets import build_dataset
from .decoded import decoded_images
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform, fast


def to_pil(pixels):
    """uint8 (3, H, W) -> PIL image of its own."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


class DatasetWrapper(Dataset):
    """Items {label, domain, impath, index, img} from a list of Datum.

    img: tensor (3, H, W) (PIL image without a transform); img2, img3, ... for a list of transforms; a list of
    K_TRANSFORMS images instead of one when training; img0: the image resized but not augmented (RETURN_IMG0).
    ValueError for K_TRANSFORMS > 1 without a transform; UserError names an image that does not decode.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform  # a callable, or a list or tuple of them
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.exif_transpose = cfg.INPUT.get("EXIF_TRANSPOSE", False)  # a fork's own defaults lack it
        if self.k_tfm > 1 and transform is None:
            raise ValueError("Cannot transform the image several times because transform is None")
        self.to_tensor = self._plain_transform()
        megabytes = cfg.DATALOADER.get("DECODED_MB", 0) if is_train else 0
        self.decoded = decoded_images(len(data_source), megabytes)

    def _plain_transform(self):
        options = self.cfg.INPUT
        steps = [fast.Resize(options.SIZE, INTERPOLATION_MODES[options.INTERPOLATION]), fast.ToTensor()]
        if "normalize" in options.TRANSFORMS:
            steps.append(T.Normalize(options.PIXEL_MEAN, options.PIXEL_STD))
        return T.Compose(steps)

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = self._read(idx, item.impath)
        if self.transform is None:
            output["img"] = to_pil(img0) if isinstance(img0, torch.Tensor) else img0
        elif isinstance(self.transform, list | tuple):
            for i, tfm in enumerate(self.transform, 1):
                output[f"img{i}" if i > 1 else "img"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _read(self, idx, path):
        """The image as PIL image in RGB, or as its pixels where they are kept from an earlier epoch."""
        pixels = None if self.decoded is None else self.decoded.get(idx)
        if pixels is not None:
            return pixels
        image = read_image(path, self.exif_transpose)
        if self.decoded is not None:
            self.decoded.put(idx, image)
        return image

    def _transform_image(self, tfm, img0):
        if isinstance(img0, torch.Tensor) and not fast.begins(tfm):
            img0 = to_pil(img0)
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if self.k_tfm == 1 else images


def check_room(worker):
    """Called in each worker: UserError where it can't make what it hands images over by, a socket in a new folder.

    PyTorch would wait for its images for ever.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as channel:
            channel.bind(os.path.join(folder, "listener-12345678"))
    except OSError as error:
        raise UserError(
            f"The workers that read images can't use {tempfile.tempdir} ({error.strerror or error}): make room there,"
            " set TMPDIR to another folder, or DATALOADER.NUM_WORKERS 0"
        ) from error


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
):
    """A loader of batches of `dataset_wrapper` items; the last, smaller batch is dropped when training.

    Workers start anew in each epoch: PyTorch seeds them from the global generator, whose state a resumed run restores.
    UserError if it would give no batch.
    """
    if not data_source:
        raise UserError("Cannot load from an empty set of images; check the dataset's split and images")
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        worker_init_fn=check_room if hasattr(socket, "AF_UNIX") else None,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
    if not len(loader):
        raise UserError(f"{sampler_type} makes no full batch of {batch_size} images; choose a smaller BATCH_SIZE")
    return loader


class DataManager:
    """The dataset `cfg.DATASET.NAME` and its loaders: train_loader_x, val_loader (or None), test_loader."""

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = build_dataset(cfg)
        tfm_train = self._transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = self._transform(cfg, custom_tfm_test, is_train=False)
        train, test = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TEST
        self.train_loader_x = build_data_loader(
            cfg,
            sampler_type=train.SAMPLER,
            data_source=self.dataset.train_x,
            batch_size=train.BATCH_SIZE,
            n_domain=train.N_DOMAIN,
            n_ins=train.N_INS,
            tfm=tfm_train,
            is_train=True,
            dataset_wrapper=dataset_wrapper,
        )
        self.train_loader_u = None  # unlabelled training is not part of this package

        def test_loader(items):
            return build_data_loader(
                cfg,
                sampler_type=test.SAMPLER,
                data_source=items,
                batch_size=test.BATCH_SIZE,
                tfm=tfm_test,
                is_train=False,
                dataset_wrapper=dataset_wrapper,
            )

        self.val_loader = test_loader(self.dataset.val) if self.dataset.val else None
        self.test_loader = test_loader(self.dataset.test)
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @staticmethod
    def _transform(cfg, custom, is_train):
        if custom is None:
            return build_transform(cfg, is_train=is_train)
        print(f"* Using custom transform for {'training' if is_train else 'testing'}")
        return custom

    @property
    def num_classes(self):
        return self.dataset.num_classes

    @property
    def lab2cname(self):
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg):
        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        rows.append(["# classes", f"{self.num_classes:,}"])
        rows.append(["# train_x", f"{len(self.dataset.train_x):,}"])
        if self.dataset.val:
            rows.append(["# val", f"{len(self.dataset.val):,}"])
        rows.append(["# test", f"{len(self.dataset.test):,}"])
        print(tabulate(rows))


class ClassNames:
    """Stands in for a DataManager when a trainer is built to score new images: class names and no image."""

    train_loader_x = train_loader_u = val_loader = test_loader = None
    num_source_domains = 0

    def __init__(self, names):
        self.dataset = NoImages(names)
        self.num_classes = self.dataset.num_classes
        self.lab2cname = self.dataset.lab2cname


class NoImages:
    """A dataset that has class names only."""

    dataset_dir = ""

    def __init__(self, names):
        self.classnames = list(names)
        self.num_classes = len(self.classnames)
        self.lab2cname = dict(enumerate(self.classnames))
        self.train_x, self.val, self.test = [], [], []
