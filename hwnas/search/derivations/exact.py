"""Derivations that ask for no accuracies: the most probable architecture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwnas.latency.budget import Budget, solve
from hwnas.search.derivations.band import check_floor, floor_ms, lowered_floor_ms
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import Unseen, log_probabilities
from hwnas.space import Architecture, whole


@dataclass(frozen=True)
class Argmax(Derivation):
    """The most probable option of every choice.

    Where that breaks the limit, and after it, the most probable architectures that keep it, by a 0/1 programme.

    Source:
        ProxylessNAS, arXiv 1812.00332, section 3.3.
        Differs: the limit is kept.
    """

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        scores = log_probabilities(finished.probabilities, space)
        top = tuple(int(np.argmax(score)) for score in scores)
        right = space.permits(top) and whole(top, space)
        first = [top] if right and budget.allows(model.exact_ms(space.architecture(top))) else []
        yield from Unseen(space).among(itertools.chain(first, solve(model, scores, max_ms=budget.max_ms)))


@dataclass(frozen=True)
class MostProbableWithinBudget(Derivation):
    """The most probable architecture whose predicted latency uses the limit and keeps it, exactly.

    Maximises ``sum log p`` over one option a choice with ``floor * max_ms <= latency <= max_ms``, as a 0/1
    programme; where the space has no network in that band, the lower bound is that share of the slowest network that
    keeps the limit, or nothing where all networks keep it.

    Args:
        floor: Share of the limit to use at least, from 0 to 1; a budget left unused buys nothing.

    Raises:
        UsageError: The floor is out of range.

    Source:
        The programme of LANA, arXiv 2107.10624, section 3, with log-probabilities as scores.
        Differs: the lower bound is ours.
    """

    floor: float = 0.98

    def __post_init__(self) -> None:
        check_floor(self)

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        scores = log_probabilities(finished.probabilities, space)
        unseen = Unseen(space)
        for min_ms in (floor_ms, lowered_floor_ms):
            if not len(unseen):
                yield from unseen.among(solve(model, scores, max_ms=budget.max_ms, min_ms=min_ms(self, budget)))
