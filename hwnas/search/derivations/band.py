"""The band of latencies just below a limit, which several derivations look for networks in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.search.protocols import Finished
from hwnas.search.sampling import BandSampler, log_probabilities

HIGHEST_DRAWN = 0.99
"""Highest floor to draw under; narrower bands of large spaces can hide their networks from draws."""


class Floored(Protocol):
    """A derivation with a ``floor``: the share of the limit that a network has to use."""

    @property
    def floor(self) -> float:
        """From 0 to 1."""


def check_floor(derivation: Floored, *, highest: float = 1.0) -> None:
    """Refuses a floor that is out of range.

    Raises:
        UsageError: It is below 0, above the highest or NaN.
    """
    if not 0 <= derivation.floor <= highest:
        raise UsageError(
            f"{type(derivation).__name__} got floor={derivation.floor}; expected a share of the limit from 0 to "
            f"{highest:g}. Use 0.95 to make use of the limit, or 0 for any network that keeps it."
        )


def floor_ms(derivation: Floored, budget: Budget) -> float:
    """Least latency that the floor asks for; none where every network keeps the limit."""
    return derivation.floor * budget.max_ms if derivation.floor and budget.binds else -math.inf


def lowered_floor_ms(derivation: Floored, budget: Budget) -> float:
    """The same share of the slowest network that keeps the limit, for one that none comes near."""
    return derivation.floor * budget.slowest_ms if derivation.floor and budget.binds else -math.inf


def sampler_within(derivation: Floored, finished: Finished, budget: Budget) -> BandSampler:
    """Draws from the final probabilities between floor and limit; from a lower floor where that band is empty."""
    scores = log_probabilities(finished.probabilities, budget.model.space)
    sampler = BandSampler(budget.model, scores, max_ms=budget.max_ms, min_ms=floor_ms(derivation, budget))
    empty = next(sampler.distinct(finished.seed), None) is None
    return replace(sampler, min_ms=lowered_floor_ms(derivation, budget)) if empty else sampler
