"""Batches for training, addressable by step number, and batches for one evaluation pass."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

from hwnas.data.augmentation import Augmentation
from hwnas.data.dataset import ImageDataset, Item
from hwnas.data.loading import Batches, read_batch, read_batches
from hwnas.data.splitting import checked_seed
from hwnas.errors import UsageError

MIN_IMAGES = 2  # of a training batch: batch-norm cannot take the variance of one


class BatchStream:
    """An endless stream of shuffled training batches in which every batch has a number.

    Batch ``step`` belongs to epoch ``step // steps_per_epoch``. The order of an epoch depends on ``(seed,
    epoch)`` only, the augmentation of an image on ``(seed, epoch, index)`` only; there is no state to save. A
    run that resumes at a step sees the batches that the uninterrupted run would have seen, with any number of
    workers. The incomplete batch at the end of an epoch is dropped.

    With several ranks, each reads an equal part of every batch, in order of ranks: joined, the parts are the
    batch of a single process, bit for bit. They take every batch together, as with each they tell one another which
    images cannot be read.

    An image that cannot be read is left out: its batch is smaller by one, and a warning names the file once. If
    fewer than two images of a batch (of a rank's part) are left, the next batch takes its place, so that
    there is one for every step, on every rank, and a resumed run sees the same.

    Args:
        dataset: Images to draw from.
        batch_size: Images in every batch, of all ranks together; at least 2 a rank, at most ``len(dataset)``.
        seed: Decides order and augmentation; at least 0.
        augment: Whether images are augmented; otherwise they are as in evaluation.
        extra: Augmentation after the standard one, such as ``randaugment()``.
        num_workers: Processes that prepare batches ahead; 0 prepares them in this process.
        rank: Which part of every batch this process reads, from 0.
        num_ranks: Parts of every batch; divides ``batch_size``.

    Raises:
        UsageError: A value is out of range, the batch does not divide among the ranks, or ``extra`` could have
            no effect, since images are not augmented.

    Example:
        >>> from hwnas.data import BatchStream, load_data
        >>> stream = BatchStream(load_data("digits", resolution=8).train, 32, seed=0)
        >>> images, labels = next(stream.batches(1000))
        >>> images.shape, labels.shape
        (torch.Size([32, 3, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        augment: bool = True,
        extra: Augmentation | None = None,
        num_workers: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        _check_workers(num_workers)
        _check_rank(rank, num_ranks)
        _check_joint_batch(batch_size, len(dataset), num_ranks)
        if extra is not None and not augment:
            raise UsageError(
                "'extra' has no effect on images that are not augmented. Leave it out, or set augment=True."
            )
        self.dataset = dataset if extra is None else dataset.augmented_by(extra)
        self.batch_size = batch_size
        self.seed = checked_seed(seed)
        self.augment = augment
        self.num_workers = num_workers
        self.rank = rank
        self.num_ranks = num_ranks

    @property
    def steps_per_epoch(self) -> int:
        """Number of complete batches in one pass over the data set."""
        return len(self.dataset) // self.batch_size

    def batches(self, start_step: int) -> Batches:
        """Endless iterator over batch ``start_step`` and those after it.

        Workers end when the iterator is closed (``close()``), exhausted by an error, or no longer referenced.

        Args:
            start_step: Number of the first batch, counted from 0.

        Returns:
            Iterator over images ``(n, 3, resolution, resolution)``, float32, and labels ``(n,)``, int64; n is
            ``batch_size / num_ranks`` less the images that cannot be read.

        Raises:
            UsageError: ``start_step`` is negative.
            DataError: While iterating: more than one in a thousand images cannot be read; lists the files.
        """
        if start_step < 0:
            raise UsageError(f"start_step {start_step} is negative; batches are numbered from 0. Use 0 or more.")
        return self._batches(start_step)

    def _batches(self, start_step: int) -> Batches:
        found = read_batches(self.dataset, self._addresses(start_step), num_workers=self.num_workers)
        with contextlib.closing(found):
            for step, batch in enumerate(found, start_step):
                later = itertools.count(step + 1)
                while len(batch[1]) < MIN_IMAGES and not self.dataset.unreadable.too_many:
                    batch = read_batch(self.dataset, next(self._addresses(next(later))))
                if self.num_ranks > 1:
                    self.dataset.unreadable.tell()
                self.dataset.unreadable.check()
                yield batch

    def _addresses(self, start_step: int) -> Iterator[list[Item]]:
        epoch, step = divmod(start_step, self.steps_per_epoch)
        share = self.batch_size // self.num_ranks
        while True:
            order = self._rng(epoch, 0).permutation(len(self.dataset))
            seeds = self._rng(epoch, 1).integers(2**63, size=len(self.dataset))
            for number in range(step, self.steps_per_epoch):
                first = number * self.batch_size + self.rank * share
                chosen = order[first : first + share]
                indices: list[int] = chosen.tolist()
                yield list(zip(indices, seeds[chosen].tolist(), strict=True)) if self.augment else [*indices]
            epoch, step = epoch + 1, 0

    def _rng(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, purpose)))


def evaluation_batches(
    dataset: ImageDataset, batch_size: int, *, num_workers: int = 0, rank: int = 0, num_ranks: int = 1
) -> Batches:
    """One pass over a data set in its own order, without augmentation; the last batch may be smaller.

    With several ranks, each reads another stretch of the data set; together they read every image once. At the end,
    to which all must come, they tell one another which images cannot be read. Those are left out, so count the labels:
    they may be fewer than the images of the data set.

    Args:
        dataset: Images to evaluate on.
        batch_size: Images in every batch but the last, on each rank.
        num_workers: Processes that prepare batches ahead; 0 prepares them in this process.
        rank: Which stretch this process reads, from 0.
        num_ranks: Number of stretches, of which some are empty if there are fewer images.

    Returns:
        Iterator over images ``(B, 3, resolution, resolution)``, float32, and labels ``(B,)``, int64.

    Raises:
        UsageError: A value is out of range.
        DataError: While iterating: more than one in a thousand images cannot be read; lists the files.
    """
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} holds no image; expected 1 or more. Use for example 64.")
    _check_workers(num_workers)
    _check_rank(rank, num_ranks)
    first, end = (len(dataset) * number // num_ranks for number in (rank, rank + 1))
    addresses = ([*range(start, min(start + batch_size, end))] for start in range(first, end, batch_size))
    return _checked(dataset, read_batches(dataset, addresses, num_workers=num_workers), num_ranks)


def _checked(dataset: ImageDataset, batches: Batches, num_ranks: int) -> Batches:
    """The batches that have images."""
    with contextlib.closing(batches):
        for images, labels in batches:
            if num_ranks == 1:
                dataset.unreadable.check()
            if len(labels):
                yield images, labels
    if num_ranks > 1:  # that have other numbers of batches
        dataset.unreadable.tell()
        dataset.unreadable.check()


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise UsageError(f"num_workers {num_workers} is negative; expected 0 or more. Use 0 to load in this process.")


def _check_rank(rank: int, num_ranks: int) -> None:
    if not 0 <= rank < num_ranks:
        raise UsageError(f"rank {rank} of {num_ranks} ranks cannot be; expected 0 <= rank < num_ranks. Count from 0.")


def _check_joint_batch(batch_size: int, num_images: int, num_ranks: int) -> None:
    if num_ranks > num_images:
        raise UsageError(
            f"{num_ranks} ranks are more than the data set has images, {num_images}; expected at least "
            f"{MIN_IMAGES} images for each. Start fewer processes or use more images."
        )
    if batch_size > num_images:
        raise UsageError(
            f"batch size {batch_size} is larger than the data set, which has {num_images} images; "
            f"expected at most {num_images}. Use a smaller batch or more images."
        )
    if batch_size < MIN_IMAGES * num_ranks or batch_size % num_ranks:
        raise UsageError(
            f"batch size {batch_size} cannot be shared among {num_ranks} rank(s); expected a multiple of {num_ranks}, "
            f"at least {MIN_IMAGES} images each, for batch-norm. Use for example {32 * num_ranks}."
        )
