"""Finished search -> architectures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from hwnas.latency.budget import Budget, solve
from hwnas.space import Architecture


@dataclass(frozen=True)
class MostProbableWithinBudget:
    """The most probable architecture whose predicted latency uses the limit and keeps it, exactly.

    Maximises ``sum log p`` over one option a choice with ``floor * max_ms <= latency <= max_ms``, as a 0/1
    programme; where the space has no network in that band, the lower bound is dropped.

    Args:
        floor: Share of the limit to use at least; a budget left unused buys nothing.

    Source:
        The programme of LANA, arXiv 2107.10624, section 3, with log-probabilities as scores.
        Differs: the lower bound is ours.
    """

    floor: float = 0.95

    def __call__(self, probabilities: Mapping[str, Tensor], budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        model, space = budget.model, budget.model.space
        scores = [probabilities[name].double().clamp_min(1e-12).log().cpu().numpy() for name in space.choice_names]
        derived = False
        for indices in solve(model, scores, max_ms=budget.max_ms, min_ms=self.floor * budget.max_ms):
            derived = True
            yield space.architecture(indices)
        if not derived:
            yield from map(space.architecture, solve(model, scores, max_ms=budget.max_ms))
