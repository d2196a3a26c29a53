"""A labelled set of images, and the pair of them that makes a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hwnas.data.augmentation import Augmentation
from hwnas.data.images import Images
from hwnas.data.unreadable import UnreadableImages

Item = int | tuple[int, int]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled, normalised images; addressed by number, or by number and seed for training augmentation.

    ``dataset[index]`` is deterministic. ``dataset[index, seed]`` is augmented; the same pair gives the same
    bits in any process, and the global random state is neither read nor changed.

    Args:
        images: The images of this set and perhaps others (see ``subset``).
        labels: Class of each image, integers ``(N,)`` in ``0 .. len(classes) - 1``.
        classes: Class names.
        mean: Mean of each channel, of images scaled to 0..1; subtracted.
        std: Standard deviation of each channel on the same scale; divided by.

    Attributes:
        unreadable: Images that could not be read in any batch so far; one record for all subsets.

    Example:
        >>> from hwnas.data import load_data
        >>> digits = load_data("digits", resolution=16).train
        >>> image, label = digits[0]
        >>> image.shape, image.dtype, type(label)
        (torch.Size([3, 16, 16]), torch.float32, <class 'int'>)
        >>> torch.equal(digits[0, 7][0], digits[0, 7][0])
        True
    """

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        *,
        classes: tuple[str, ...],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.classes = classes
        self.unreadable = UnreadableImages(len(self.labels))
        self._images = images
        self._extra: Augmentation | None = None
        self._normalises = True
        self._positions = np.arange(len(self.labels))
        self._shift = 255 * torch.tensor(mean).view(3, 1, 1)
        self._scale = 1 / (255 * torch.tensor(std).view(3, 1, 1))

    @property
    def num_classes(self) -> int:
        """Number of classes, also of those that a subset may lack."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: Item) -> tuple[Tensor, int]:
        """One image and its label.

        Args:
            item: Index for the evaluation image, or ``(index, seed)`` for an augmented one; seed in ``0 ..
                2**64 - 1``.

        Returns:
            Normalised float32 image of shape ``(3, resolution, resolution)``, grey repeated in all channels, or
            what ``unnormalised`` says; label.

        Raises:
            DataError: The image's file cannot be read; names it.
            IndexError: There is no image of that number.
        """
        if isinstance(item, tuple):
            index, seed = item
            generator = torch.Generator().manual_seed(seed)
            pixels = self._images.augmented_image(int(self._positions[index]), generator)
            if self._extra is not None:
                pixels = self._extra(pixels.expand(3, -1, -1).contiguous(), generator)
        else:
            index = item
            pixels = self._images.evaluation_image(int(self._positions[index]))
        return self.normalised(pixels) if self._normalises else pixels, int(self.labels[index])

    def normalised(self, pixels: Tensor) -> Tensor:
        """What this data set makes of the pixels of an image or a batch, on their device.

        Args:
            pixels: uint8, ``(..., 1 or 3, resolution, resolution)``, as ``unnormalised`` hands them out.
        """
        return pixels.float().sub(self._shift.to(pixels.device)).mul_(self._scale.to(pixels.device))

    def unnormalised(self) -> ImageDataset:
        """The same images as uint8, ``(1 or 3, resolution, resolution)``: a quarter of the memory, to keep them."""
        part = self.subset(np.arange(len(self)))
        part._normalises = False
        return part

    @property
    def resolution(self) -> int:
        """Side of every image, in pixels."""
        return self._images.resolution

    def name(self, index: int) -> str:
        """What the image of that number is called in messages: the path of its file, if it has one."""
        return self._images.name(int(self._positions[index]))

    @property
    def fingerprint(self) -> str:
        """Says which images these are: their number, and a hash of labels, classes, traits and treatment.

        The same in any order, and wherever the data set lies. Files are told apart by their names alone, relative to
        ``train/`` or ``val/``: none is opened, and one that was overwritten goes unnoticed. Of images in memory some
        pixels count.
        """
        made = (self.classes, self._images.treatment, self._shift.tolist(), self._scale.tolist())
        digest = hashlib.sha256(repr(made).encode("utf-8", "surrogateescape"))
        order = np.argsort(self._positions, kind="stable")
        digest.update(self.labels[order].tobytes())
        digest.update(self._images.traits(self._positions[order]))
        return f"{len(self)} images ({digest.hexdigest()[:16]})"

    def augmented_by(self, extra: Augmentation) -> ImageDataset:
        """The same images; those addressed by number and seed go through one more augmentation.

        Args:
            extra: Applied after the standard augmentation, before normalisation.
        """
        augmented = self.subset(np.arange(len(self)))
        augmented._extra = extra
        return augmented

    def subset(self, indices: np.ndarray) -> ImageDataset:
        """The images of the given numbers, in that order; pixels are shared, not copied.

        Args:
            indices: Numbers in this data set, integers ``(M,)``.
        """
        part: ImageDataset = ImageDataset.__new__(ImageDataset)
        part.__dict__.update(self.__dict__)
        part.labels, part._positions = self.labels[indices], self._positions[indices]
        return part

    def spread(self, num_images: int) -> ImageDataset:
        """So many images, spread evenly, as folders are read class by class; all of them if there are fewer."""
        numbers = np.linspace(0, len(self) - 1, min(num_images, len(self))).round().astype(np.int64)
        return self.subset(numbers)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set ready for search: training images, held-out images, and what they were normalised with.

    Args:
        spec: The text it was loaded from, such as ``imagenet:/data/imagenet``; together with the number of
            classes it says which images these are.
        classes: Class names; a label is an index into them.
        train: Training images.
        val: Held-out images: for reporting, never for training weights or architecture.
        mean: Mean of each channel (red, green, blue) of images scaled to 0..1.
        std: Standard deviation of each channel on the same scale.
        resolution: Side of every image, in pixels.
    """

    spec: str
    classes: tuple[str, ...]
    train: ImageDataset
    val: ImageDataset
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resolution: int

    @property
    def fingerprint(self) -> str:
        """Says which images these are: those of the training and the held-out set, and their number.

        Example:
            >>> from hwnas.data import load_data
            >>> load_data("digits", resolution=8).fingerprint[:20]
            'training 1438 images'
        """
        return f"training {self.train.fingerprint}, held out {self.val.fingerprint}"
