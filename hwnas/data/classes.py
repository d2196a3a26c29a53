"""Which classes a search on part of a data set uses."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from hwnas.errors import UsageError


def chosen_classes(names: Sequence[str], num_classes: int | None) -> list[int]:
    """Ascending numbers of the classes whose names have the smallest SHA-256 digests; all for None.

    As good as drawn at random, but the same on every machine and with every seed; the subset of 10 is part of
    that of 100. Whoever wants to know it without this package sorts the class names by ``sha256sum``.

    Args:
        names: All classes.
        num_classes: How many are wanted.

    Raises:
        UsageError: Fewer than two are wanted, or more than there are.

    Example:
        >>> names = ["cat", "cow", "dog", "pig"]
        >>> [[names[number] for number in chosen_classes(names, count)] for count in (2, 3, None)]
        [['cat', 'cow'], ['cat', 'cow', 'dog'], ['cat', 'cow', 'dog', 'pig']]

    Source:
        FBNet, arXiv 1812.03443, searches on 100 random classes of ImageNet's 1000.
    """
    if num_classes is None:
        return [*range(len(names))]
    if not 2 <= num_classes <= len(names):
        raise UsageError(
            f"{num_classes} classes cannot be taken from a data set of {len(names)}; expected 2 to {len(names)}. "
            "Ask for fewer, or for all of them."
        )
    digests = [hashlib.sha256(os.fsencode(name)).digest() for name in names]
    return sorted(sorted(range(len(names)), key=digests.__getitem__)[:num_classes])
