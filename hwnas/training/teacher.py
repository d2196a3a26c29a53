"""Networks of torchvision that another network learns from."""

from __future__ import annotations

import pickle
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from hwnas.data import ImageData
from hwnas.errors import DataError, UnknownNameError, UsageError


def create_teacher(name: str, data: ImageData) -> nn.Module:
    """A trained network, in evaluation mode.

    Args:
        name: ``resnet50`` for torchvision's published weights, ``resnet50:FILE.pth`` for a state dict that was
            trained on data normalised like this.
        data: Its classes must be the teacher's.

    Raises:
        UnknownNameError: torchvision has no network of that name.
        UsageError: The weights cannot be had, or are for other classes.
    """
    from torchvision import models

    name, _, file = name.partition(":")
    known = models.list_models(module=models)
    if name not in known:
        raise UnknownNameError.among("teacher", name, known)
    network: nn.Module = _loaded(name, Path(file), len(data.classes)) if file else _published(name, data)
    return network.eval().requires_grad_(False)


def _loaded(name: str, path: Path, num_classes: int) -> nn.Module:
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise UsageError(f"teacher file {path} cannot be read: {error.strerror}. Give NAME:FILE.pth.") from error
    except (RuntimeError, pickle.UnpicklingError, TypeError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UsageError(
            f"teacher file {path} is no state dict of {name} with {num_classes} classes ({reason}). "
            "Save the state_dict() of a network trained on the same classes."
        ) from error
    return network


def _published(name: str, data: ImageData) -> nn.Module:
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    num_classes, expected = len(weights.meta["categories"]), weights.transforms()
    if num_classes != len(data.classes):
        raise UsageError(
            f"teacher '{name}' knows {num_classes} classes, data set '{data.spec}' has {len(data.classes)}. "
            f"Train a {name} on that data and give --teacher {name}:FILE.pth."
        )
    if (list(data.mean), list(data.std)) != (list(expected.mean), list(expected.std)):
        raise DataError(
            f"teacher '{name}' expects images of mean {expected.mean} and deviation {expected.std}; '{data.spec}' is "
            f"normalised by {data.mean} and {data.std}. Give --teacher {name}:FILE.pth trained on that data."
        )
    try:
        network: nn.Module = models.get_model(name, weights=weights)
    except URLError as error:
        raise UsageError(
            f"the weights of teacher '{name}' cannot be downloaded ({error.reason}). Fetch {weights.url} elsewhere "
            f"and give --teacher {name}:FILE.pth."
        ) from error
    return network
