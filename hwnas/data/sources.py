"""From a text such as ``cifar10:/data`` to a loaded data set."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hwnas.data.arrays import Split, array_data, read_npz
from hwnas.data.dataset import ImageData
from hwnas.data.folders import folder_data
from hwnas.data.images import resized
from hwnas.data.splitting import checked_seed, stratified_indices
from hwnas.errors import DataError, MissingPackageError, UnknownNameError, UsageError

CIFAR_FOLDER = "cifar-10-batches-py"
# Of the 50,000 training images, to four digits; the values commonly published for CIFAR-10.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
DIGITS_SPLIT_SEED = 0  # never changes: the held-out digits are the same in every run


def load_data(spec: str, *, resolution: int, seed: int = 0, num_classes: int | None = None) -> ImageData:
    """Loads a data set as square images with three normalised channels.

    ============================  =====================================================================
    spec                          what it reads
    ============================  =====================================================================
    ``digits``                    scikit-learn's 1797 handwritten digits, 80 % of each class for training
    ``imagefolder:PATH``          ``PATH/train/<class>/*`` and ``PATH/val/<class>/*``
    ``imagenet:PATH``             the same; class folders are WordNet synsets such as ``n01440764``
    ``cifar10:PATH``              the official python version: ``cifar-10-batches-py`` or its parent
    ``npz:PATH``                  arrays x_train, y_train, x_test, y_test and, optionally, classes
    ============================  =====================================================================

    Training augmentation follows the kind: shifts for digits (a mirrored digit is another sign), padded
    random crop and flip for CIFAR-10 and arrays, random resized crop and flip for folders.

    Args:
        spec: Kind of data set, and its path after a colon.
        resolution: Side of the images, in pixels; others are resized to it.
        seed: Order of the training images, so that any prefix is a random sample. Which images are held out,
            and their order, never depends on it.
        num_classes: Load only this many of the classes, numbered from 0 in the order they have among all. Which
            ones depends on their names alone (see ``chosen_classes``), never on ``seed``; the subset of 10 is
            part of that of 100.

    Raises:
        UnknownNameError: There is no such kind; lists them.
        UsageError: The path is missing or not wanted, or ``resolution``, ``seed`` or
            ``num_classes`` is out of range.
        DataError: What the path holds is missing, empty or inconsistent; says where.
        MissingPackageError: ``digits`` needs scikit-learn.

    Example:
        >>> from hwnas.data import load_data
        >>> data = load_data("digits", resolution=16)
        >>> len(data.train) + len(data.val), data.classes[:3]
        (1797, ('0', '1', '2'))
    """
    kind, _, path = spec.partition(":")
    if kind not in LOADERS:
        raise UnknownNameError.among("data set", kind, LOADERS)
    if kind == "digits" and path:
        raise UsageError(f"data set '{spec}' has a path, but 'digits' comes with scikit-learn. Use 'digits'.")
    if kind != "digits" and not path:
        raise UsageError(f"data set '{spec}' lacks a path; expected '{kind}:PATH'. Add the path after a colon.")
    if resolution < 1:
        raise UsageError(f"resolution {resolution} is no image size; expected 1 or more pixels. Use for example 32.")
    order = np.random.default_rng(checked_seed(seed))
    data = LOADERS[kind](spec, Path(path).expanduser(), resolution, num_classes)
    train = data.train.subset(order.permutation(len(data.train)))
    return dataclasses.replace(data, train=train)


def _load_digits(spec: str, path: Path, resolution: int, num_classes: int | None) -> ImageData:
    """Upsampled once, here: the result is small, and normalised by its own mean and deviation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPackageError(
            "data set 'digits' needs the package scikit-learn, which is not installed. Run: pip install 'hwnas[demo]'"
        ) from error
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # grey levels 0..16 -> 0..255
    images = resized(torch.from_numpy(grey)[:, None], resolution)[:, 0].numpy()
    classes = tuple(str(name) for name in digits.target_names)
    train, val = stratified_indices(digits.target, 0.8, classes=classes, seed=DIGITS_SPLIT_SEED)
    return array_data(
        spec,
        *(Split(images[part], digits.target[part]) for part in (train, val)),
        classes=classes,
        resolution=resolution,
        num_classes=num_classes,
        flip=False,
    )


def _load_cifar10(spec: str, path: Path, resolution: int, num_classes: int | None) -> ImageData:
    from torchvision.datasets import CIFAR10

    root = path.resolve().parent if path.resolve().name == CIFAR_FOLDER else path
    if not (root / CIFAR_FOLDER).is_dir():
        raise DataError(
            f"{path} holds no folder {CIFAR_FOLDER}; expected the official python version of CIFAR-10. "
            f"Unpack {CIFAR10.url} there, or give the folder that holds {CIFAR_FOLDER}."
        )
    try:
        with warnings.catch_warnings():
            # the official pickles, from Python 2, spell booleans as numbers; NumPy 2.4.0 to 2.4.4 warn
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            train, val = (CIFAR10(root, train=is_train, download=False) for is_train in (True, False))
    except RuntimeError as error:  # raised by torchvision when a file is absent or its checksum differs
        raise DataError(
            f"{root / CIFAR_FOLDER} is incomplete or damaged: a file is missing or its checksum differs from "
            f"the official one. Unpack {CIFAR10.url} again."
        ) from error
    return array_data(
        spec,
        *(Split(part.data, np.asarray(part.targets)) for part in (train, val)),
        classes=tuple(train.classes),
        resolution=resolution,
        num_classes=num_classes,
        flip=True,
        statistics=(CIFAR_MEAN, CIFAR_STD),
    )


def _load_npz(spec: str, path: Path, resolution: int, num_classes: int | None) -> ImageData:
    train, val, classes = read_npz(path)
    return array_data(spec, train, val, classes=classes, resolution=resolution, num_classes=num_classes, flip=True)


LOADERS: dict[str, Callable[[str, Path, int, int | None], ImageData]] = {
    "cifar10": _load_cifar10,
    "digits": _load_digits,
    "imagefolder": folder_data,
    "imagenet": folder_data,
    "npz": _load_npz,
}
