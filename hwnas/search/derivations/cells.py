"""The derivation of DARTS: the strongest edges into every node of a cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, solve
from hwnas.latency.calibration import Array
from hwnas.search.derivations.band import check_floor, floor_ms
from hwnas.search.derivations.exact import MostProbableWithinBudget
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import Unseen, log_probabilities
from hwnas.space import NONE, Architecture, SearchSpace, tidied

RULED_OUT = -1e9
"""Score of an option that no network should have."""


@dataclass(frozen=True)
class StrongestEdges(Derivation):
    """Of every node the edges whose best operator is most probable, each with that operator.

    ``none`` lowers the probability of the others and is never chosen itself. First comes what this rule finds, if it
    is within the limit and above the floor; then the architectures that keep both, the largest sum of ``log p`` over
    the kept edges first, by a 0/1 programme. Without a limit that is the rule. Choices outside nodes take their most
    probable option, ``none`` among them, and operators that change nothing then become ``none``, too. In a chain of
    blocks, which has no edges, ``MostProbableWithinBudget`` derives, with its floor unless this one is higher: no
    published rule is lost there, and a budget left unused buys nothing.

    With ``max_skips`` the least probable skip that the rule keeps loses its place, and the rule is applied again,
    until there are no more than that; the programme keeps to it too.

    Args:
        floor: Share of the limit to use at least, from 0 to 1; dropped where no network is in that band.
        max_skips: Skips in the cell that does not stride; any number if None. Where no network within the limit has so
            few, it has as few as there are.

    Raises:
        UsageError: The floor is out of range, or the number negative.

    Source:
        DARTS, arXiv 1806.09055, section 2.4, and released code: ties go to the earlier edge and option. Skips: P-DARTS,
        arXiv 1904.12760, section 3.3.2, and released code. The most probable option of every edge: NAS-Bench-201,
        arXiv 2001.00326, and SNAS, arXiv 1812.09926.
        Differs: the limit is kept; where no image reaches the output by the options of free edges, the programme
        chooses others.
    """

    floor: float = 0.0
    max_skips: int | None = None

    def __post_init__(self) -> None:
        check_floor(self)
        if self.max_skips is not None and self.max_skips < 0:
            raise UsageError(f"StrongestEdges got max_skips={self.max_skips}; expected 0 or more, or None for any.")

    def check(self, space: SearchSpace) -> None:
        """See ``Derivation``."""
        if self.max_skips is not None and not plain_skips(space):
            raise UsageError(
                f"space '{space.name}' has no cell whose skips max_skips={self.max_skips} would limit. Leave it out, "
                "or use a space of cells with nodes, such as darts-cell."
            )

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        if not any(layer.is_edge for layer in space.layers):
            yield from MostProbableWithinBudget(max(self.floor, MostProbableWithinBudget.floor))(finished, budget)
            return
        scores = log_probabilities(finished.probabilities, space)
        rare = [] if self.max_skips is None else plain_skips(space)
        few = self.max_skips or 0
        rows = _kept_scores(scores, space)
        first, connected = tidied(_with_few(scores, space, rare, few), space)
        (ms,) = model.exact_ms_many([first])
        bands = [(floor_ms(self, budget), few), *((-math.inf, more) for more in range(few, max(few, len(rare)) + 1))]
        unseen = Unseen(space)
        for low, most in bands:
            right = connected and low <= ms <= budget.max_ms and len(_had(first, rare)) <= most
            within = [first] if right else []
            others = solve(model, rows, max_ms=budget.max_ms, min_ms=low, rare=rare, max_rare=most)
            yield from unseen.among(itertools.chain(within, others))
            if len(unseen):
                return


def plain_skips(space: SearchSpace) -> list[tuple[int, int]]:
    """Number of a choice and of its option, of every skip in the nodes into which no edge strides.

    Args:
        space: With nodes; without them there are no such skips.
    """
    found = []
    for node in space.nodes:
        layers = [layer for layer in space.layers if {*layer.choices} & {*node.choices}]
        if all(signature.stride == 1 for layer in layers for signature in layer.signatures):
            skips = {
                (space.choice_names.index(layer.choices[0]), option)
                for layer in layers
                for option, signature in enumerate(layer.signatures)
                if signature.op == "skip"
            }
            found += sorted(skips)
    return found


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


def _with_few(scores: list[Array], space: SearchSpace, rare: Sequence[tuple[int, int]], most: int) -> tuple[int, ...]:
    """What the rule finds once the least probable of its rare options are ruled out, one by one."""
    scores = [score.copy() for score in scores]
    for _ in rare:
        had = _had(strongest(scores, space), rare)
        if len(had) <= most:
            break
        choice, option = min(had, key=lambda each: float(scores[each[0]][each[1]]))
        scores[choice][option] = RULED_OUT
    return strongest(scores, space)


def _had(row: Sequence[int], rare: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(choice, option) for choice, option in rare if row[choice] == option]


def _kept_scores(scores: list[Array], space: SearchSpace) -> list[Array]:
    """The same, of which edges that are not kept count nothing."""
    edges = {name for node in space.nodes for name in node.choices}
    found = [score.copy() for score in scores]
    for score, choice in zip(found, space.choices, strict=True):
        if choice.name in edges:
            score[choice.options.index(NONE)] = 0.0
    return found
