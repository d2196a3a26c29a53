"""The best of the most probable architectures and of others drawn from the final probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.search.derivations.band import HIGHEST_DRAWN, check_floor, sampler_within
from hwnas.search.derivations.exact import MostProbableWithinBudget
from hwnas.search.derivations.scoring import Scoring
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.sampling import Unseen
from hwnas.space import Architecture


@dataclass(frozen=True)
class SampleAndScore(Derivation):
    """Scores the most probable architectures and others drawn from the final probabilities; the most accurate first.

    All are within the limit, and no two are the same network. The first ``num_likely`` are what
    ``MostProbableWithinBudget(floor)`` derives, in its order. Uniform probabilities have no such networks: all are
    drawn, which is random search with shared weights.

    Args:
        num_samples: Architectures to score; fewer where draws find no more.
        num_likely: The most probable ones among them; the rest is drawn.
        floor: Share of the limit to use at least, from 0 to 0.99; lowered where the space has no network in that band.

    Raises:
        UsageError: A number is out of range.

    Source:
        FBNet, arXiv 1812.03443, section 3.3, draws all. LANA, arXiv 2107.10624, section 3, scores the best solutions
        of its programme: ``num_likely = num_samples``.
        Differs: samples are compared with the weights of the supernet, where FBNet trains each from scratch; they are
        drawn under the condition that they keep the limit; the most probable one is always among them.
    """

    num_samples: int
    num_likely: int = 1
    floor: float = 0.95

    evaluates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_floor(self, highest=HIGHEST_DRAWN)
        if self.num_samples < 1:
            raise UsageError(
                f"SampleAndScore got num_samples={self.num_samples}; expected at least 1. Give a number of samples."
            )
        if not 1 <= self.num_likely <= self.num_samples:
            raise UsageError(
                f"SampleAndScore got num_likely={self.num_likely} of {self.num_samples} samples; expected at least 1 "
                "and no more than all. Give num_samples to draw none."
            )

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        """See ``Derivation``."""
        sampler, space = sampler_within(self, finished, budget), budget.model.space
        candidates = sampler.distinct(finished.seed)
        if any(np.ptp(score) > 0 for score in sampler.scores):
            likely = MostProbableWithinBudget(self.floor)(finished, budget)
            candidates = itertools.chain(itertools.islice(likely, self.num_likely), candidates)
        different = Unseen(space).among(map(space.indices, candidates))
        chosen = list(itertools.islice(different, self.num_samples))
        yield from sorted(chosen, key=Scoring(finished, budget, len(chosen)), reverse=True)
