"""Networks that pruning leaves, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from hwnas.latency.model import LatencyModel
from hwnas.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from hwnas.search.loop import SearchResult


class Survivor(NamedTuple):
    """What was left during an epoch.

    Args:
        epoch: The first, from 1, that it was left in; of what was left at the end of the last one the next number.
        architecture: Of every choice the most probable option that is not pruned.
        exact_ms: Its predicted latency.
    """

    epoch: int
    architecture: Architecture
    exact_ms: float


def surviving(probabilities: Mapping[str, Tensor], space: SearchSpace) -> tuple[int, ...]:
    """Option indices of the most probable options that are not pruned; see ``Survivors``.

    Args:
        probabilities: Choice name -> probability of every option; 0 of those that are pruned.
        space: Says of which choices ``none`` is not searched, so that it is taken only where nothing else is left.
    """
    idle, row = space.idle, []
    for choice in space.choices:
        p = probabilities[choice.name].tolist()
        row.append(strongest(p, [k for k, each in enumerate(p) if each > 0], idle.get(choice.name)))
    return tuple(row)


def strongest(probabilities: Sequence[float], left: Sequence[int], none: int | None) -> int:
    """Number of the most probable option.

    Args:
        probabilities: Of all options of a choice.
        left: Those that are not pruned.
        none: The one that is taken only where no other is left.
    """
    return max([k for k in left if k != none] or left, key=probabilities.__getitem__)


def survivors(result: SearchResult, model: LatencyModel) -> list[Survivor]:
    """The series of networks that a pruning search went through, the largest first: a choice of accuracy and latency.

    The last is what was left at its end. Of cells whose nodes keep a fixed number of edges there is no such series.

    Args:
        result: Of the search.
        model: Predicts latency.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3: one run yields a Pareto series.
    """
    series: list[Survivor] = []
    for number, probabilities in enumerate([*(each.probabilities for each in result.history), result.probabilities], 1):
        architecture = model.space.architecture(surviving(probabilities, model.space))
        if architecture not in [each.architecture for each in series]:
            series.append(Survivor(number, architecture, model.exact_ms(architecture)))
    return series
