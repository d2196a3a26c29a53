"""Derivations for options that do not compete: what is strong enough, or what is left."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, solve
from hwnas.latency.calibration import Array
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import Unseen, log_probabilities
from hwnas.search.surviving import surviving
from hwnas.space import NONE, Architecture, Joined, SearchSpace, tidied

LOGGER = logging.getLogger("hwnas")


@dataclass(frozen=True)
class Threshold(Derivation):
    """Every edge whose strongest operator is strong enough, with that operator; into a node the strongest few.

    The weight of option k is ``(1 - p(none)) p_k / max p``, which under logistic gates is their ``sigma_k``. A node
    may end without any edge; it is then zero, and edges from it are given up, too.

    First comes what this rule finds, if it is within the limit; then the networks that keep it and have no other edges,
    the largest product of kept ``sigma_k``, and of ``1 - max sigma`` of edges given up, first, by a 0/1 programme.
    Where no image reaches the output by strong edges alone, the log says so, and the programme chooses among the
    strongest edges into every node.

    Args:
        threshold: Least weight, from 0 to 1.
        at_most: Edges into a node.

    Raises:
        UsageError: A number is out of range; or, before the first step, the space has other rules for its nodes.

    Source:
        FairDARTS, arXiv 1911.12126, section 4 and released code: 0.85 and 2.
        Differs: the limit is kept; a node without edges stays among those that are joined, as zeros; a network always
        has a way from the image to the output; the variant with two operators on an edge is left out.
    """

    threshold: float = 0.85
    at_most: int = 2

    competing: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or self.at_most < 1:
            raise UsageError(
                f"Threshold got a threshold of {self.threshold:g} and at most {self.at_most} edges into a node; "
                "expected from 0 to 1, and at least 1 edge. Leave them out for the published 0.85 and 2."
            )

    def check(self, space: SearchSpace) -> None:
        """See ``Derivation``."""
        nodes = _ends(space)
        edges = [position for node in nodes for position in node]
        free = all(space.choices[position].name in space.idle for position in edges)
        if space.nodes or not free or len(set(edges)) < len(space.choices):
            raise UsageError(
                f"a threshold decides which edges a node keeps; it needs cells of one choice an edge, any number of "
                f"edges and no searched '{NONE}', which space '{space.name}' has not. Use "
                "darts-cell:inputs=0,with_none=0."
            )

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        self.check(space)
        weights = [_weights(finished, space, position) for position in range(len(space.choices))]
        first, connected = tidied(self._kept(weights, space, self.threshold), space)
        if not connected:
            LOGGER.warning(
                "no way from the image to the output has weights of %g and more; weaker edges are taken. Search "
                "longer, or derive with a lower threshold",
                self.threshold,
            )
            first, _ = tidied(self._kept(weights, space, 0.0), space)
        lost = [space.idle[choice.name] for choice in space.choices]
        scores = [np.log(np.clip(weight, 1e-12, None)) for weight in weights]
        other = [
            (position, option)
            for position, (kept, none) in enumerate(zip(first, lost, strict=True))
            for option in range(len(scores[position]))
            if kept == none != option
        ]
        found = solve(model, scores, max_ms=budget.max_ms, rare=other)
        within = [first] if connected and budget.allows(float(model.exact_ms_many([first])[0])) else []
        yield from Unseen(space).among(itertools.chain(within, found))

    def _kept(self, weights: Sequence[Array], space: SearchSpace, threshold: float) -> tuple[int, ...]:
        row = [space.idle[choice.name] for choice in space.choices]
        for node in _ends(space):
            best = {}
            for position in node:
                others = weights[position].copy()
                others[row[position]] = -1
                best[position] = int(np.argmax(others))
            strong = [position for position in node if weights[position][best[position]] >= threshold]
            strongest = sorted(strong, key=lambda position: (-weights[position][best[position]], position))
            for position in strongest[: self.at_most]:
                row[position] = best[position]
        return tuple(row)


@dataclass(frozen=True)
class Survivors(Derivation):
    """What pruning has left: of every choice the most probable option that is not pruned.

    Of a choice whose ``none`` is not searched that is an operator, for as long as one is left. First comes this
    network, if it is within the limit; then those within it that keep most, by a 0/1 programme: the largest sum of
    ``p`` of kept operators where ``none`` is not searched, and of ``log p`` elsewhere.

    Raises:
        UsageError: Before the first step: nodes of the space keep a fixed number of edges.

    Source:
        ASAP, arXiv 1904.04123, section 3; GOLD-NAS, arXiv 2007.03331, section 3.
        Differs: the limit is kept.
    """

    def check(self, space: SearchSpace) -> None:
        """See ``Derivation``."""
        if space.nodes:
            raise UsageError(
                f"what survives in a node of space '{space.name}' need not be the {space.nodes[0].kept} edges that it "
                "keeps. Create the space with inputs=0, for any number of edges, or derive with StrongestEdges()."
            )

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        self.check(space)
        first, connected = tidied(surviving(finished.probabilities, space), space)
        within = [first] if connected and budget.allows(float(model.exact_ms_many([first])[0])) else []
        scores = log_probabilities(finished.probabilities, space)
        for position, choice in enumerate(space.choices):
            if choice.name in space.idle:
                p = finished.probabilities[choice.name].double().cpu().numpy()
                scores[position] = np.where(p > 0, p, -len(scores))  # what is pruned comes back only where it has to
                scores[position][space.idle[choice.name]] = 0.0
        yield from Unseen(space).among(itertools.chain(within, solve(model, scores, max_ms=budget.max_ms)))


def _ends(space: SearchSpace) -> list[tuple[int, ...]]:
    """Of every node, into which edges come from different places, the positions of their choices."""
    found: dict[tuple[int, ...], None] = {}
    for sources in space.wiring:
        edges = [space.layers[i] for i in sources if i >= 0 and space.layers[i].is_edge]
        if edges and not isinstance(sources, Joined) and len({edge.inputs for edge in edges}) == len(edges):
            found[tuple(space.choice_names.index(edge.choices[0]) for edge in edges)] = None
    return list(found)


def _weights(finished: Finished, space: SearchSpace, position: int) -> Array:
    """Weights of the options of one choice; that of ``none`` is its probability."""
    choice = space.choices[position]
    p = finished.probabilities[choice.name].double().cpu().numpy()
    none = space.idle[choice.name]
    weights: Array = p * (1 - p[none]) / max(np.delete(p, none).max(), 1e-12)
    weights[none] = p[none]
    return weights
