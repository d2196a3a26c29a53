"""Finished search -> architectures within the budget, best first.

By probability alone: ``Argmax``, ``MostProbableWithinBudget``, and of cells ``StrongestEdges`` and ``Threshold``; after
pruning ``Survivors``. By accuracy with the supernet's weights: ``SampleAndScore`` draws, ``Evolution`` breeds.
"""

from hwnas.search.derivations.cells import StrongestEdges
from hwnas.search.derivations.evolution import Evolution
from hwnas.search.derivations.exact import Argmax, MostProbableWithinBudget
from hwnas.search.derivations.scored import SampleAndScore
from hwnas.search.derivations.thresholds import Survivors, Threshold

__all__ = [
    "Argmax",
    "Evolution",
    "MostProbableWithinBudget",
    "SampleAndScore",
    "StrongestEdges",
    "Survivors",
    "Threshold",
]
