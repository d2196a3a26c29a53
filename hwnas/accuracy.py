"""Accuracy of the paths of a trained supernet."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field

import numpy as np

from hwnas.compute import Compute
from hwnas.data import BatchStream, ImageDataset
from hwnas.space import Architecture
from hwnas.supernet.supernet import Network, Supernet, extract, recalibrate_batchnorm
from hwnas.training import score


@dataclass(frozen=True)
class PathAccuracy:
    """Top-1 accuracy, from 0 to 1, of architectures with the supernet's weights; answers are kept.

    Args:
        supernet: Trained; left as it is.
        weight_images: For batch-norm statistics, which are averaged over ``num_batches`` batches of them.
        held_out: Images that trained no weights.
        compute: Where and how.
        seed: Of the batches.
        num_batches: Batches for the statistics.
        batch_size: Images a batch.
        max_images: Held-out images at most, the same for every architecture.

    Source:
        SPOS, arXiv 1904.00420, section 3.4: statistics of all paths together rank single paths at random.
    """

    supernet: Supernet
    weight_images: ImageDataset
    held_out: ImageDataset
    compute: Compute
    seed: int = 0
    num_batches: int = 16
    batch_size: int = 128
    max_images: int = 10_000
    _known: dict[tuple[str, ...], float] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, architecture: Architecture) -> float:
        """Accuracy after batch-norm recalibration."""
        key = tuple(map(str, self.supernet.space.operators(architecture)))
        if key not in self._known:
            self._known[key] = self._accuracy(self._recalibrated(architecture))
        return self._known[key]

    def as_trained(self, architecture: Architecture) -> float:
        """Accuracy with the batch-norm statistics of all paths together."""
        return self._accuracy(extract(self.supernet, architecture))

    @property
    def _images(self) -> ImageDataset:
        count = min(self.max_images, len(self.held_out))  # spread evenly, as folders are read class by class
        return self.held_out.subset(np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64))

    def _accuracy(self, network: Network) -> float:
        return score(network, self._images, num_workers=self.compute.num_workers).top1

    def _recalibrated(self, architecture: Architecture) -> Network:
        network = extract(self.supernet, architecture)
        size = min(self.batch_size, len(self.weight_images))
        stream = BatchStream(
            self.weight_images, size, seed=self.seed, augment=False, num_workers=self.compute.num_workers
        )
        place, memory_format = self.compute.place, self.compute.memory_format
        with contextlib.closing(stream.batches(0)) as batches:
            images = (batch.to(place, memory_format=memory_format) for batch, _ in batches)
            recalibrate_batchnorm(network, itertools.islice(images, self.num_batches))
        return network
