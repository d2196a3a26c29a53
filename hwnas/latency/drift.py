"""How the machine's speed changed during a sweep, seen by an operator that is timed all along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hwnas.latency.measurement import Measurement

Visits = Mapping[int, list[float]]
"""Round -> run times in milliseconds."""

THROTTLED = 1.1
"""A round whose fastest reference run is this much slower than in the best round was at a lower clock.

Disturbance by other programs comes and goes within a round and leaves its fastest run alone. On a shared 2-core Xeon a
10 % quantile in place of the fastest run took neighbours for a lower clock in 8 of 24 rounds, and correcting those
raised the held-out error from 1.4 to 1.7 %; the fastest run never did.
"""

GRADES = (("quiet", 1.03), ("moderate", 1.1))
"""Noise grade -> most that the reference's median may lie above its best."""


@dataclass(frozen=True)
class Drift:
    """By how much the reference operator's fastest run of each round is slower than in the best round.

    Args:
        factors: Round -> ratio, at least one.
    """

    factors: Mapping[int, float]

    @classmethod
    def of(cls, visits: Visits) -> Drift:
        """From the reference operator's runs."""
        floors = {number: min(samples) for number, samples in visits.items() if samples}
        best = min(floors.values(), default=1.0)
        return cls({number: floor / best for number, floor in floors.items()})

    @property
    def num_throttled(self) -> int:
        """Rounds at a clearly lower clock."""
        return sum(factor > THROTTLED for factor in self.factors.values())

    def corrected(self, visits: Visits) -> list[list[float]]:
        """Run times by round; those of throttled rounds as they would have been at full clock."""
        factors = {number: factor for number, factor in self.factors.items() if factor > THROTTLED}
        return [[sample / factors.get(number, 1.0) for sample in samples] for number, samples in visits.items()]

    def grade(self, reference: Measurement) -> str:
        """``quiet``, ``moderate`` or ``noisy``, by how far the reference's median lies above its best."""
        ratio = reference.p50_ms / reference.ms
        return next((name for name, limit in GRADES if ratio <= limit), "noisy")
