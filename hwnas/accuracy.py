"""Accuracy of the paths of a trained supernet."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hwnas.compute import Compute, evaluation_guard
from hwnas.data import BatchStream, ImageDataset, evaluation_batches
from hwnas.documents import ScoredPath, fitting
from hwnas.errors import OutputError, RunError
from hwnas.files import write_atomic
from hwnas.metrics import read_log
from hwnas.space import Architecture, SearchSpace
from hwnas.supernet.supernet import Network, Supernet, extract, recalibrate_batchnorm

SCORED_AT_A_TIME = 256


@dataclass(frozen=True)
class PathAccuracy:
    """Top-1 accuracy, from 0 to 1, of architectures with the supernet's weights; answers are kept.

    Images are decoded for the first architecture and then kept in memory as bytes: at 224 pixels 1.4 GiB for 10,000
    held-out images and 0.3 GiB for the statistics.

    Args:
        supernet: Trained; left as it is.
        weight_images: For batch-norm statistics, which are averaged over ``num_batches`` batches of them.
        held_out: Images that trained no weights.
        compute: Where and how.
        seed: Of the batches.
        num_batches: Batches for the statistics.
        batch_size: Images a batch.
        max_images: Held-out images at most, the same for every architecture.
        path: A file that keeps the answers too, for another time with the same weights and images.

    Raises:
        RunError: When called: the file is damaged; names the line.
        OutputError: When called: the file cannot be written.
        MemoryExhaustedError: When called: the GPU is too small; says what would help.

    Source:
        SPOS, arXiv 1904.00420, section 3.4: statistics of all paths together rank single paths at random.
        Differs: 16 batches for the statistics, its released code takes 200 of 128 images; up to 10,000 images held
        out, there 8,000.
    """

    supernet: Supernet
    weight_images: ImageDataset
    held_out: ImageDataset
    compute: Compute
    seed: int = 0
    num_batches: int = 16
    batch_size: int = 128
    max_images: int = 10_000
    path: Path | None = None

    def __call__(self, architecture: Architecture) -> float:
        """Accuracy after batch-norm recalibration."""
        known = self._answers.get(architecture)
        if known is None:
            with self._guard():
                known = self._accuracy(self._recalibrated(architecture))
            self._answers.add(architecture, known)
        return known

    def as_trained(self, architecture: Architecture) -> float:
        """Accuracy with the batch-norm statistics of all paths together."""
        with self._guard():
            return self._accuracy(extract(self.supernet, architecture))

    def _guard(self) -> contextlib.AbstractContextManager[None]:
        return evaluation_guard(self.compute.place, SCORED_AT_A_TIME)

    @cached_property
    def _answers(self) -> _Answers:
        return _Answers(self.supernet.space, self.path, self._identity if self.path else "")

    @property
    def _identity(self) -> str:
        """Digest of what decides the answers: settings, all images and their order, weights."""
        digest = hashlib.sha256(repr((self.seed, self.num_batches, self.batch_size, self.max_images)).encode())
        for images in (self.weight_images, self.held_out):
            digest.update(images.fingerprint.encode() + images.labels.tobytes())
        for name, value in self.supernet.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _scored(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of pixels and labels."""
        images = self.held_out.spread(self.max_images).unnormalised()
        batches = evaluation_batches(images, SCORED_AT_A_TIME, num_workers=self.compute.num_workers)
        return [(_own(pixels), labels) for pixels, labels in batches]

    @cached_property
    def _recalibrating(self) -> list[Tensor]:
        """Batches of pixels."""
        stream = BatchStream(
            self.weight_images.unnormalised(),
            min(self.batch_size, len(self.weight_images)),
            seed=self.seed,
            augment=False,
            num_workers=self.compute.num_workers,
        )
        with contextlib.closing(stream.batches(0)) as batches:
            return [_own(pixels) for pixels, _ in itertools.islice(batches, self.num_batches)]

    def _ready(self, dataset: ImageDataset, pixels: Tensor) -> Tensor:
        images = dataset.normalised(pixels.to(self.compute.place, non_blocking=True))
        return images.contiguous(memory_format=self.compute.memory_format)

    @torch.no_grad()
    def _accuracy(self, network: Network) -> float:
        network.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.compute.place)
        for pixels, labels in self._scored:
            found = network(self._ready(self.held_out, pixels)).argmax(1)
            right += (found == labels.to(found.device, non_blocking=True)).sum()
        return int(right) / sum(len(labels) for _, labels in self._scored)

    def _recalibrated(self, architecture: Architecture) -> Network:
        network = extract(self.supernet, architecture)
        recalibrate_batchnorm(network, (self._ready(self.weight_images, pixels) for pixels in self._recalibrating))
        return network


def _own(pixels: Tensor) -> Tensor:
    """Memory of this process; what workers hand over lies in shared memory, of which there is little."""
    return pixels.clone() if pixels.is_shared() else pixels  # type: ignore[no-untyped-call]


def scored_paths(path: Path) -> list[ScoredPath]:
    """Accuracies that were kept in a file; none where there is no file.

    Raises:
        RunError: The file is damaged; names the line.
    """
    entries = read_log(path)
    for number, entry in enumerate(entries, start=1):
        try:
            fitting(entry, ScoredPath)
        except ValueError as error:
            raise RunError(f"line {number} of {path} is no score ({error}). Delete that line.") from error
    return entries  # type: ignore[return-value]


class _Answers:
    """Accuracies of networks; in a file too, one JSON line an answer, if there is a path.

    Lines of another identity, and a last one that a kill cut short, are dropped from the file.
    """

    def __init__(self, space: SearchSpace, path: Path | None, identity: str) -> None:
        self._space, self._path, self._identity = space, path, identity
        entries = [entry for entry in scored_paths(path) if entry["identity"] == identity] if path else []
        if path and path.exists():
            write_atomic(path, "".join(map(_line, entries)))
        self._known = {self._key(space.architecture(entry["architecture"])): entry["accuracy"] for entry in entries}

    def get(self, architecture: Architecture) -> float | None:
        """The accuracy, if it is known."""
        return self._known.get(self._key(architecture))

    def add(self, architecture: Architecture, accuracy: float) -> None:
        """Keeps an answer, at once."""
        entry = {"step": len(self._known), "architecture": dict(architecture.options), "accuracy": accuracy}
        self._known[self._key(architecture)] = accuracy
        if self._path:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_line(entry | {"identity": self._identity}))
            except OSError as error:
                raise OutputError(
                    f"cannot write {self._path}: {error.strerror}. Free some space and resume."
                ) from error

    def _key(self, architecture: Architecture) -> tuple[str, ...]:
        return tuple(map(str, self._space.operators(architecture)))  # the same operators share all weights


def _line(entry: Mapping[str, object]) -> str:
    return json.dumps(entry) + "\n"
