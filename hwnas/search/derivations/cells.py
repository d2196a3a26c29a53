"""The derivation of DARTS: the strongest edges into every node of a cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hwnas.latency.budget import Budget, solve
from hwnas.latency.calibration import Array
from hwnas.search.derivations.band import check_floor, floor_ms
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import Unseen, log_probabilities
from hwnas.space import NONE, Architecture, SearchSpace


@dataclass(frozen=True)
class StrongestEdges(Derivation):
    """Of every node the edges whose best operator is most probable, each with that operator.

    ``none`` lowers the probability of the others and is never chosen itself. First comes what this rule finds, if it
    is within the limit and above the floor; then the architectures that keep both, the largest sum of ``log p`` over
    the kept edges first, by a 0/1 programme. Without a limit that is the rule. Choices outside nodes take their most
    probable option.

    Args:
        floor: Share of the limit to use at least, from 0 to 1; dropped where no network is in that band.

    Raises:
        UsageError: The floor is out of range.

    Source:
        DARTS, arXiv 1806.09055, section 2.4, and released code: ties go to the earlier edge and option.
        Differs: the limit is kept.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        check_floor(self)

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        scores = log_probabilities(finished.probabilities, space)
        first = strongest(scores, space)
        (ms,) = model.exact_ms_many([first])
        low, rows = floor_ms(self, budget), _kept_scores(scores, space)
        within = [first] if low <= ms <= budget.max_ms else []
        unseen = Unseen(space)
        yield from unseen.among(itertools.chain(within, solve(model, rows, max_ms=budget.max_ms, min_ms=low)))
        if not len(unseen):
            within = [first] if budget.allows(ms) else []
            yield from unseen.among(itertools.chain(within, solve(model, rows, max_ms=budget.max_ms)))


def strongest(scores: list[Array], space: SearchSpace) -> tuple[int, ...]:
    """Option indices that the rule finds.

    Args:
        scores: Per choice, one score an option.
        space: With nodes.
    """
    found = [int(np.argmax(score)) for score in scores]
    for node in space.nodes:
        positions = [space.choice_names.index(name) for name in node.choices]
        idle = {position: space.choices[position].options.index(NONE) for position in positions}
        for position in positions:
            score = scores[position].copy()
            score[idle[position]] = -np.inf
            found[position] = int(np.argmax(score))
        weakest_first = sorted(positions, key=lambda position: (scores[position][found[position]], -position))
        for position in weakest_first[: len(positions) - node.kept]:
            found[position] = idle[position]
    return tuple(found)


def _kept_scores(scores: list[Array], space: SearchSpace) -> list[Array]:
    """The same, of which edges that are not kept count nothing."""
    edges = {name for node in space.nodes for name in node.choices}
    found = [score.copy() for score in scores]
    for score, choice in zip(found, space.choices, strict=True):
        if choice.name in edges:
            score[choice.options.index(NONE)] = 0.0
    return found
