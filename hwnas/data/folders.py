"""Data sets that are folders of image files, one folder a class."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from hwnas.data.classes import chosen_classes
from hwnas.data.dataset import ImageData, ImageDataset
from hwnas.data.images import PhotoFiles
from hwnas.errors import DataError

# Source: torchvision references/classification/presets.py; of the ImageNet training images.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def folder_data(spec: str, path: Path, resolution: int, num_classes: int | None) -> ImageData:
    """Builds a data set from ``path/train/<class>/*`` and ``path/val/<class>/*``.

    Classes are the folder names in alphabetical order. Hidden folders and files that are not images by their
    suffix are passed over; folders inside class folders are not entered. Of ``num_classes`` classes only the
    folders are read, and labels number these alone. ImageNet's mean and standard deviation are used for every
    folder, so that ImageNet weights fit.

    Raises:
        UsageError: There are not that many classes.
        DataError: A folder or its images are missing, there are fewer than two classes, the two splits have
            different ones, or class folders of ``imagenet:`` are no synsets; names the folder.
    """
    kind = spec.partition(":")[0]
    if not path.is_dir():
        raise DataError(
            f"{path} is no folder; expected one that holds train/ and val/. Check the path after '{kind}:'."
        )
    classes = _class_names(path, "train")
    if kind == "imagenet":
        _check_synsets(path / "train", classes)
    _check_same_classes(path, classes, _class_names(path, "val"))
    classes = tuple(classes[number] for number in chosen_classes(classes, num_classes))
    train, val = (_read_split(path / split, classes, resolution) for split in ("train", "val"))
    return ImageData(spec, classes, train, val, IMAGENET_MEAN, IMAGENET_STD, resolution)


def _class_names(path: Path, split: str) -> tuple[str, ...]:
    folder = path / split
    if not folder.is_dir():
        found = sorted(entry.name for entry in os.scandir(path))
        raise DataError(
            f"{path} has no folder {split}/; expected train/ and val/, each with one folder a class. "
            f"It holds {_some(found)}. Move the images there or check the path."
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        what = f"one class, '{names[0]}'" if names else "no class folders"
        raise DataError(f"{folder} has {what}; expected at least two folders, one a class. Add the others.")
    return tuple(names)


def _check_synsets(folder: Path, classes: tuple[str, ...]) -> None:
    wrong = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    if wrong:
        raise DataError(
            f"{folder} has class folders that are no WordNet synsets: {_some(wrong)}; expected n and eight "
            "digits, such as n01440764. For folders of other names use 'imagefolder:PATH'."
        )


def _check_same_classes(path: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    if train != val:
        only_train, only_val = sorted({*train} - {*val}), sorted({*val} - {*train})
        raise DataError(
            f"train/ and val/ of {path} have different class folders: only in train/: {_some(only_train)}; "
            f"only in val/: {_some(only_val)}; expected the same names in both. Rename or add the folders."
        )


def _read_split(folder: Path, classes: tuple[str, ...], resolution: int) -> ImageDataset:
    names: list[bytes] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        with os.scandir(folder / class_name) as entries:
            found = sorted(entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES))
        if not found:
            raise DataError(
                f"class folder {folder / class_name} has no images; expected at least one file ending in "
                f"{', '.join(SUFFIXES)} directly inside. Add images, or remove the class from train/ and "
                "val/."
            )
        names += [os.fsencode(f"{class_name}/{name}") for name in found]
        labels += [label] * len(found)
    images = PhotoFiles(str(folder), np.array(names), resolution)
    return ImageDataset(images, np.array(labels), classes=classes, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
