"""Values that change with the progress of a search or a training, from 0 at its start to 1 at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hwnas.errors import UsageError


@runtime_checkable
class Schedule(Protocol):
    """Progress -> value."""

    def __call__(self, progress: float) -> float:
        """Value at a progress from 0 to 1."""


Scalar = float | Schedule
"""Every scalar hyper-parameter may be a number or a schedule."""


def value_at(scalar: Scalar, progress: float) -> float:
    """The number itself, or the schedule's value."""
    return scalar(progress) if isinstance(scalar, Schedule) else float(scalar)


def probed(scalar: Scalar) -> list[float]:
    """Its values all through a search, for checks of its range: at its start, middle and end first."""
    return [value_at(scalar, number / 20) for number in sorted(range(21), key=lambda number: number % 10)]


def check_weight(scalar: Scalar, what: str) -> None:
    """Refuses a weight that would turn a term round, or drown all others.

    Raises:
        UsageError: Names the term.
    """
    for number in probed(scalar):
        if not 0 <= number < math.inf:
            raise UsageError(f"the weight of {what} is {number:g}; expected a finite number of at least 0.")


@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in a straight line."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Exponential:
    """From ``start`` to ``end`` by a constant factor per unit of progress; both positive."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start * math.exp(math.log(self.end / self.start) * progress)


@dataclass(frozen=True)
class Cosine:
    """From ``start`` to ``end`` along half a cosine, after a linear warm-up from zero.

    Source:
        SGDR, arXiv 1608.03983, equation 5, without restarts.
    """

    start: float
    end: float = 0.0
    warm_up: float = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.warm_up:
            return self.start * progress / self.warm_up
        done = (progress - self.warm_up) / (1 - self.warm_up)
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Phases:
    """One schedule up to a progress, another after it, each from its own start to its own end.

    Args:
        boundary: Progress at which the second one takes over, between 0 and 1.
        first: Up to there; a number stays.
        second: From there on.
    """

    boundary: float
    first: Scalar
    second: Scalar

    def __call__(self, progress: float) -> float:
        if progress < self.boundary:
            return value_at(self.first, progress / self.boundary)
        return value_at(self.second, (progress - self.boundary) / (1 - self.boundary))
