"""Where pixels come from and how they are augmented: arrays in memory, or photographs in files.

Both kinds hand out uint8 tensors of shape ``(1 or 3, resolution, resolution)``. Every random number is drawn
from the generator that is passed in, in the order in which the torchvision transform of the same name draws
it, so results equal those of the torchvision classes and the global random state is never touched.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hwnas.errors import DataError

NUM_SAMPLED = 64  # numbers of an image in memory that tell it from others
MAX_ASPECT = 8  # longer images are cut before they are resized; their long side could fill the memory
LOG_ASPECT_RATIOS: tuple[float, float] = tuple(torch.log(torch.tensor((3 / 4, 4 / 3))).tolist())
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, IndexError, EOFError, OverflowError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class Images(Protocol):
    """Numbered images, with and without augmentation; picklable, for the workers of a ``DataLoader``."""

    @property
    def resolution(self) -> int:
        """Side of every image handed out, in pixels."""

    @property
    def treatment(self) -> tuple[Any, ...]:
        """Everything that decides what is made of the images."""

    def evaluation_image(self, index: int) -> Tensor:
        """The image as it is evaluated: uint8, ``(1 or 3, resolution, resolution)``."""

    def augmented_image(self, index: int, generator: torch.Generator) -> Tensor:
        """The image as one training step sees it; same shape and type."""

    def name(self, index: int) -> str:
        """What the image is called in messages."""

    def traits(self, indices: np.ndarray) -> bytes:
        """What tells these images, integers ``(M,)``, from others, without opening a file."""


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images kept in memory; augmented by a zero-padded random crop and, where allowed, a flip.

    Images of another size are resized to ``resolution x resolution`` (bilinear; a non-square image is
    stretched).

    Args:
        pixels: uint8, ``(N, 1 or 3, H, W)``.
        resolution: Side handed out, in pixels.
        max_shift: Padding of the random crop, in pixels of the resized image.
        flip: Whether half of the training images are mirrored left to right.

    Source:
        He et al., arXiv 1512.03385, section 4.2: pad 4 pixels at 32 x 32, random crop, horizontal flip;
        equals torchvision ``RandomCrop(resolution, padding=max_shift)`` followed by ``RandomHorizontalFlip``.
    """

    pixels: Tensor
    resolution: int
    max_shift: int
    flip: bool

    @property
    def treatment(self) -> tuple[Any, ...]:
        """See ``Images``."""
        return self.resolution, self.max_shift, self.flip

    def evaluation_image(self, index: int) -> Tensor:
        """The image, resized where its size differs."""
        return resized(self.pixels[index], self.resolution)

    def augmented_image(self, index: int, generator: torch.Generator) -> Tensor:
        """The image, resized, shifted with zeros moving in, and perhaps mirrored."""
        size, span = self.resolution, 2 * self.max_shift + 1
        top = int(torch.randint(0, span, size=(), generator=generator)) - self.max_shift
        left = int(torch.randint(0, span, size=(), generator=generator)) - self.max_shift
        padded = pad(self.evaluation_image(index), [self.max_shift] * 4)
        top, left = top + self.max_shift, left + self.max_shift
        image = padded[:, top : top + size, left : left + size]
        return _maybe_mirrored(image, generator) if self.flip else image

    def name(self, index: int) -> str:
        """The image's number."""
        return f"image {index}"

    def traits(self, indices: np.ndarray) -> bytes:
        """Their shape, and of each image numbers at ``NUM_SAMPLED`` or more places spread over it."""
        numbers = self.pixels.flatten(1)
        places = numbers[:, :: max(1, numbers.shape[1] // NUM_SAMPLED) | 1]  # odd, to meet every column
        return repr(self.pixels.shape[1:]).encode() + places[torch.from_numpy(indices)].numpy().tobytes()


@dataclass(frozen=True, eq=False)
class PhotoFiles:
    """Images read from files when asked for; augmented by a random resized crop and a flip.

    Evaluation resizes the short side to ``round(resolution / 0.875)`` and cuts out the centre. Whatever mode
    a file has (grey, palette, CMYK, alpha), it is converted to RGB.

    Args:
        root: Folder the names are relative to.
        names: File names as bytes, shape ``(N,)``; one array, since a million Python strings would cost each
            worker hundreds of MiB.
        resolution: Side handed out, in pixels.

    Source:
        Szegedy et al., arXiv 1409.4842, section 6 (training), and torchvision
        references/classification/presets.py (evaluation, 256 -> 224); equals ``RandomResizedCrop`` +
        ``RandomHorizontalFlip`` and ``Resize`` + ``CenterCrop`` with Pillow's bilinear filter. Differs: for
        evaluation, images longer than 8:1 are first cut to 8:1.
    """

    root: str
    names: np.ndarray
    resolution: int

    @property
    def treatment(self) -> tuple[Any, ...]:
        """See ``Images``."""
        return (self.resolution,)

    def __post_init__(self) -> None:
        import torchvision.transforms.v2.functional  # noqa: F401 - takes seconds: once here, not in every worker

    def evaluation_image(self, index: int) -> Tensor:
        """The centre of the image: 87.5 % of its short side, resized."""
        import torchvision.transforms.v2.functional as F

        image = self._read(index)
        longest = MAX_ASPECT * min(image.size)
        if max(image.size) > longest:
            image = F.center_crop(image, [min(image.height, longest), min(image.width, longest)])
        image = F.resize(image, [round(self.resolution / 0.875)])
        centre: Tensor = F.pil_to_tensor(F.center_crop(image, [self.resolution, self.resolution]))
        return centre

    def augmented_image(self, index: int, generator: torch.Generator) -> Tensor:
        """A random part of the image, resized and perhaps mirrored."""
        import torchvision.transforms.v2.functional as F

        image = self._read(index)
        top, left, height, width = _random_box(image.height, image.width, generator)
        crop = F.resized_crop(image, top, left, height, width, [self.resolution, self.resolution])
        return _maybe_mirrored(F.pil_to_tensor(crop), generator)

    def name(self, index: int) -> str:
        """The path of the image's file."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def traits(self, indices: np.ndarray) -> bytes:
        """Their names, relative to the root."""
        chosen: bytes = self.names[indices].tobytes()
        return chosen

    def _read(self, index: int) -> Image.Image:
        path = self.name(index)
        try:
            with Image.open(path) as image:
                image.load()
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels have mode {image.mode}, expected 8 bits a channel")
                if image.mode == "P" and "transparency" in image.info:
                    return image.convert("RGBA").convert("RGB")
                return image.convert("RGB")
        except DECODING_ERRORS as error:
            raise DataError(
                f"image {path} cannot be read ({error}); expected a complete 8-bit image file. "
                "Replace the file or remove it from its class folder."
            ) from error


def resized(images: Tensor, resolution: int) -> Tensor:
    """Resizes uint8 images ``(N, C, H, W)`` or ``(C, H, W)`` to a square: bilinear, antialiased."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    batch = images.reshape(-1, *images.shape[-3:])
    result = interpolate(batch, (resolution, resolution), mode="bilinear", antialias=True)
    return result.reshape(*images.shape[:-2], resolution, resolution)


def _maybe_mirrored(image: Tensor, generator: torch.Generator) -> Tensor:
    if float(torch.rand(1, generator=generator)) >= 0.5:
        return image
    return image.flip(-1)


def _random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a part with 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3.

    After ten tries that do not fit: the largest central part whose ratio is within that range.
    """
    for _ in range(10):
        area = height * width * _uniform(0.08, 1.0, generator).item()
        ratio = torch.exp(_uniform(*LOG_ASPECT_RATIOS, generator)).item()
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(torch.randint(0, height - box_height + 1, size=(1,), generator=generator))
            left = int(torch.randint(0, width - box_width + 1, size=(1,), generator=generator))
            return top, left, box_height, box_width
    box_height = min(height, round(width / (3 / 4)))
    box_width = min(width, round(height * (4 / 3)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(1).uniform_(low, high, generator=generator)
