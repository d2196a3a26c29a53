"""Dividing a data set in two while keeping the share of every class."""

from __future__ import annotations

import numpy as np

from hwnas.data.dataset import ImageDataset
from hwnas.errors import DataError, UsageError


def split_stratified(dataset: ImageDataset, fraction: float, *, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Splits into two disjoint parts that together hold every image; each class is split in the same ratio.

    Of a class with n images, ``fraction * n`` drawn ones, to the nearest integer, go to the first part. Both
    parts keep the order of the data set and share its pixels.

    Args:
        dataset: What to split.
        fraction: Share of the first part, between 0 and 1, both excluded.
        seed: Which images are drawn; at least 0.

    Raises:
        UsageError: ``fraction`` or ``seed`` is out of range.
        DataError: A part would lack a class; names the class and how many images it has.

    Example:
        >>> from hwnas.data import load_data, split_stratified
        >>> weights, architecture = split_stratified(load_data("digits", resolution=8).train, 0.8, seed=0)
        >>> len(set(weights.labels)), len(set(architecture.labels))
        (10, 10)

    Source:
        DARTS, arXiv 1806.09055 (0.5), and FBNet, arXiv 1812.03443 (0.8), split the training set between
        weights and architecture. Differs: stratified, so that small sets keep every class in both parts.
    """
    first, second = stratified_indices(dataset.labels, fraction, classes=dataset.classes, seed=seed)
    return dataset.subset(first), dataset.subset(second)


def stratified_indices(
    labels: np.ndarray, fraction: float, *, classes: tuple[str, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the two parts that ``split_stratified`` makes; same arguments and errors."""
    if not 0 < fraction < 1:
        raise UsageError(
            f"fraction {fraction} leaves one part of the split empty; expected a value between 0 and 1, both "
            "excluded. Use for example 0.5 or 0.8."
        )
    rng = np.random.default_rng(checked_seed(seed))
    in_first = np.zeros(len(labels), dtype=bool)
    ends = np.cumsum(np.bincount(labels, minlength=len(classes)))
    members_of = np.split(np.argsort(labels, kind="stable"), ends[:-1])
    for name, members in zip(classes, members_of, strict=True):
        num_first = int(fraction * len(members) + 0.5)
        if not 0 < num_first < len(members):
            raise DataError(
                f"class '{name}' has {len(members)} images, of which a split with fraction {fraction} would "
                f"put {num_first} into the first part and {len(members) - num_first} into the second; "
                "expected at least one in each. Add images of that class or use a fraction nearer to 0.5."
            )
        in_first[rng.permutation(members)[:num_first]] = True
    return np.flatnonzero(in_first), np.flatnonzero(~in_first)


def checked_seed(seed: int) -> int:
    """The seed itself.

    Raises:
        UsageError: It is negative.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; expected 0 or more. Use for example 0.")
    return seed
