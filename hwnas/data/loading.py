"""Reading batches, here or in worker processes, without the images that cannot be read."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hwnas.data.dataset import ImageDataset, Item
from hwnas.errors import DataError

Batch = tuple[Tensor, Tensor]
Batches = Generator[Batch, None, None]  # a generator, so that close() can be called
T = TypeVar("T")


class Loaded(NamedTuple):
    """What was read of a batch: images ``(n, 3, H, W)``, labels ``(n,)``, and name -> message of the others."""

    images: Tensor
    labels: Tensor
    unreadable: dict[str, str]


@dataclass(frozen=True, eq=False)
class BatchReader(Dataset[Loaded]):
    """Reads the images of a batch; those that cannot be read are left out and named.

    Args:
        dataset: Where the images are.
    """

    dataset: ImageDataset

    def __getitem__(self, items: Sequence[Item]) -> Loaded:
        """The readable images of these addresses, in their order."""
        found: list[tuple[Tensor, int]] = []
        unreadable: dict[str, str] = {}
        for item in items:
            try:
                found.append(self.dataset[item])
            except DataError as error:
                unreadable[self.dataset.name(item[0] if isinstance(item, tuple) else item)] = str(error)
        if not found:
            side = self.dataset.resolution
            return Loaded(torch.empty(0, 3, side, side), torch.empty(0, dtype=torch.int64), unreadable)
        images, labels = default_collate(found)  # in a worker: straight into shared memory
        return Loaded(images, labels, unreadable)


def read_batch(dataset: ImageDataset, items: Sequence[Item]) -> Batch:
    """The readable images and labels of these addresses, read in this process; there may be none."""
    images, labels, unreadable = BatchReader(dataset)[items]
    dataset.unreadable.add(unreadable)
    return images, labels


def read_batches(dataset: ImageDataset, addresses: Iterator[Sequence[Item]], *, num_workers: int) -> Batches:
    """One batch for every list of addresses, without the images that cannot be read; there may be none.

    Each worker has one thread, two batches in hand, and leaves Ctrl-C to the process that reads from it. Batches
    lie in page-locked memory where there is CUDA.

    Args:
        dataset: Where the images are.
        addresses: Numbers of images, with or without seeds, of each batch.
        num_workers: Processes that prepare batches ahead; 0 prepares them in this process.

    Raises:
        DataError: While iterating: a worker was killed.
    """
    loader = DataLoader(
        BatchReader(dataset),
        batch_size=None,
        sampler=addresses,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
        # it draws a base seed even when nothing uses it: let it be from a generator of its own
        generator=torch.Generator(),
    )
    batches = iter(loader)
    try:
        for images, labels, unreadable in batches:
            dataset.unreadable.add(unreadable)
            yield images, labels
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"one of the {num_workers} processes that prepare images was killed ({error}). Most often memory, or "
            "shared memory (df -h /dev/shm), ran out: use fewer workers or a smaller batch, or make them larger."
        ) from error
    finally:
        # Workers end when the loader's iterator is deleted, but a traceback may keep it: end them now.
        getattr(batches, "_shutdown_workers", lambda: None)()


def _ignore_interrupts(worker: int) -> None:
    """The terminal sends Ctrl-C to workers too, which would die of it with tracebacks, before the training ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(loaded: T) -> T:
    return loaded
