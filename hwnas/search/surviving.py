"""Networks that pruning leaves, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hwnas.latency.model import LatencyModel
from hwnas.search.protocols import Epoch
from hwnas.space import Architecture, SearchSpace


class Survivor(NamedTuple):
    """What was left during an epoch.

    Args:
        epoch: The first, from 1, that it was left in.
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
    row = []
    for choice in space.choices:
        p = probabilities[choice.name].detach().double().cpu().numpy().copy()
        none = space.idle.get(choice.name)
        if none is not None and p.sum() > p[none]:
            p[none] = -1
        row.append(int(np.argmax(p)))
    return tuple(row)


def survivors(history: Sequence[Epoch], model: LatencyModel) -> list[Survivor]:
    """The series of networks that a pruning search went through, the largest first: a choice of accuracy and latency.

    Of cells whose nodes keep a fixed number of edges there is no such series.

    Args:
        history: Of the search; see ``SearchResult``.
        model: Predicts latency.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3: one run yields a Pareto series.
    """
    series: list[Survivor] = []
    for number, epoch in enumerate(history, start=1):
        architecture = model.space.architecture(surviving(epoch.probabilities, model.space))
        if not series or series[-1].architecture != architecture:
            series.append(Survivor(number, architecture, model.exact_ms(architecture)))
    return series
