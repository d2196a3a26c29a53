"""Data sets that are arrays in memory, and the npz files they may come from."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwnas.data.classes import chosen_classes
from hwnas.data.dataset import ImageData, ImageDataset
from hwnas.data.images import ArrayImages
from hwnas.errors import DataError

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
REQUIRED = ("x_train", "y_train", "x_test", "y_test")


class Split(NamedTuple):
    """Images, uint8 ``(N, H, W)`` or ``(N, H, W, 3)``, and their labels, integers ``(N,)``."""

    images: np.ndarray
    labels: np.ndarray


def array_data(
    spec: str,
    train: Split,
    val: Split,
    *,
    classes: tuple[str, ...],
    resolution: int,
    num_classes: int | None,
    flip: bool,
    statistics: Statistics | None = None,
) -> ImageData:
    """Builds a data set from arrays, or from the part of them that ``num_classes`` classes make up.

    Normalised by ``statistics`` or else by those of these training images as they are in the arrays, before
    resizing. Training images are shifted by up to an eighth of the resolution: 4 pixels at 32.

    Raises:
        UsageError: There are not that many classes.
        DataError: The training images are all the same, or no held-out image is of these classes.
    """
    if num_classes is not None:
        chosen = chosen_classes(classes, num_classes)
        classes = tuple(classes[number] for number in chosen)
        train, val = (_of_classes(split, chosen) for split in (train, val))
        if not len(val.labels):
            raise DataError(
                f"{spec} has no held-out image of the {num_classes} classes {', '.join(classes)}; expected some. "
                "Add them or use more classes."
            )
    pixels = [_channels_first(split.images) for split in (train, val)]
    mean, std = statistics or channel_statistics(pixels[0])
    sets = [
        ImageDataset(
            ArrayImages(images, resolution, max_shift=round(resolution / 8), flip=flip),
            split.labels,
            classes=classes,
            mean=mean,
            std=std,
        )
        for images, split in zip(pixels, (train, val), strict=True)
    ]
    return ImageData(spec, classes, sets[0], sets[1], mean, std, resolution)


def channel_statistics(pixels: Tensor) -> Statistics:
    """Mean and standard deviation of three channels, of pixels scaled to 0..1; exact, from histograms.

    Args:
        pixels: uint8, ``(N, 1 or 3, H, W)``.

    Raises:
        DataError: A channel has the same value everywhere, so that images cannot be normalised.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in pixels.unbind(1):
        # in pieces, because bincount widens its input eightfold
        counts = torch.stack([torch.bincount(part.flatten(), minlength=256) for part in torch.split(channel, 1024)])
        shares = counts.sum(0).double() / channel.numel()
        mean.append(float(shares @ values))
        std.append(float((shares @ (values - mean[-1]) ** 2).sqrt()))
    if min(std) == 0:
        raise DataError(
            f"channel {std.index(0)} of the training images has the value {255 * mean[std.index(0)]:.0f} "
            "everywhere; expected images that differ. Check how the array was made."
        )
    red, green, blue = mean * (3 // len(mean))
    red_std, green_std, blue_std = std * (3 // len(std))
    return (red, green, blue), (red_std, green_std, blue_std)


def read_npz(path: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Training split, held-out split and class names of an npz file; classes default to the labels as text.

    Raises:
        DataError: The file is missing or no npz, or an array is missing, of another type or shape, or does
            not fit the others; names the array.
    """
    arrays = _read_arrays(path)
    for images in ("x_train", "x_test"):
        _check_images(f"{path}: {images}", arrays[images])
    for split in ("train", "test"):
        _check_labels(path, arrays, split)
    largest = int(max(arrays["y_train"].max(), arrays["y_test"].max()))
    present = np.unique(arrays["y_train"])
    if "classes" in arrays:
        classes = tuple(arrays["classes"].astype(str).ravel().tolist())
    else:
        absent = [number for number, label in enumerate(present) if number != label] or [len(present)]
        if absent[0] <= largest:
            raise DataError(_no_image_of(path, str(absent[0]), absent[0]))
        classes = tuple(str(label) for label in range(largest + 1))
    if largest >= len(classes):
        raise DataError(
            f"{path}: label {largest} is out of range of the {len(classes)} classes; expected labels 0 to "
            f"{len(classes) - 1}. Correct the labels or complete 'classes'."
        )
    if len(classes) < 2:
        raise DataError(
            f"{path} has one class, '{classes[0]}'; expected at least two. Add images and labels of other classes."
        )
    for number in np.setdiff1d(np.arange(len(classes)), present)[:1].tolist():
        raise DataError(_no_image_of(path, classes[number], number))
    train, test = (Split(arrays[f"x_{split}"], arrays[f"y_{split}"]) for split in ("train", "test"))
    return train, test, classes


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} is no file; expected an npz file. Check the path after 'npz:'.")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz file. Write one with numpy.savez(path, {'=..., '.join(REQUIRED)}=...).")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in REQUIRED if name not in file.files]
            if missing:
                raise DataError(
                    f"{path} lacks {', '.join(missing)}; it has {', '.join(file.files) or 'no arrays'}. "
                    f"Expected {', '.join(REQUIRED)} and optionally classes. Write them with numpy.savez."
                )
            names = [name for name in (*REQUIRED, "classes") if name in file.files]
            return {name: file[name] for name in names}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error}); expected an npz file of plain arrays, none of them pickled "
            "objects. Write it again with numpy.savez."
        ) from error


def _check_images(what: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise DataError(
            f"{what} has dtype {images.dtype}; expected uint8, 0 to 255. If it holds 0 to 1, save "
            "(255 * x).round().astype('uint8')."
        )
    colour = images.ndim == 4 and images.shape[-1] == 3
    if not (images.ndim == 3 or colour) or 0 in images.shape[1:]:
        raise DataError(
            f"{what} has shape {images.shape}; expected grey images (N, H, W) or colour images (N, H, W, 3), "
            "channels last. Reshape or transpose it."
        )
    if len(images) == 0:
        raise DataError(f"{what} is empty; expected at least one image. Save images in it.")


def _check_labels(path: Path, arrays: dict[str, np.ndarray], split: str) -> None:
    labels, num_images = arrays[f"y_{split}"], len(arrays[f"x_{split}"])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{path}: y_{split} has dtype {labels.dtype} and shape {labels.shape}; expected integers of "
            "shape (N,). Convert one-hot labels with argmax, names with numpy.unique(..., "
            "return_inverse=True)."
        )
    if len(labels) != num_images:
        raise DataError(
            f"{path}: y_{split} has {len(labels)} labels, but x_{split} has {num_images} images; expected "
            "one label an image. Save arrays of the same length."
        )
    if labels.min() < 0:
        raise DataError(f"{path}: y_{split} holds label {labels.min()}; expected labels from 0. Number classes from 0.")


def _no_image_of(path: Path, name: str, number: int) -> str:
    return (
        f"{path}: class '{name}' (label {number}) has no training image; expected at least one. Add some, or "
        "number the labels from 0 without gaps."
    )


def _of_classes(split: Split, chosen: list[int]) -> Split:
    wanted = np.isin(split.labels, chosen)
    return Split(split.images[wanted], np.searchsorted(chosen, split.labels[wanted]))


def _channels_first(images: np.ndarray) -> Tensor:
    ordered = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(ordered))
