"""Two tables side by side: two devices, or two sweeps of one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hwnas.errors import UsageError
from hwnas.latency.calibration import Array
from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature


@dataclass(frozen=True)
class Comparison:
    """What two tables say about the operators that both hold.

    Args:
        a: One table.
        b: The other.

    Raises:
        UsageError: There is no operator that both have measured.
    """

    a: LatencyTable
    b: LatencyTable

    def __post_init__(self) -> None:
        if not self.signatures:
            raise UsageError(
                f"{self.a.name} and {self.b.name} have no measured operator in common. Compare tables of one space."
            )

    @cached_property
    def signatures(self) -> list[OpSignature]:
        """Operators that both have measured."""
        return [s for s, entry in self.a.entries.items() if entry.usable and not self.b.missing([s])]

    @cached_property
    def only_in_a(self) -> list[OpSignature]:
        """Operators that only ``a`` has measured; a failed record is no measurement."""
        return _measured_here_only(self.a, self.b)

    @cached_property
    def only_in_b(self) -> list[OpSignature]:
        """Operators that only ``b`` has measured."""
        return _measured_here_only(self.b, self.a)

    @cached_property
    def ms(self) -> tuple[Array, Array]:
        """Latencies of ``signatures`` in ``a`` and in ``b``."""
        a, b = (np.asarray([t.entries[s].ms for s in self.signatures]) for t in (self.a, self.b))
        return a, b

    @cached_property
    def ratio(self) -> Array:
        """``a / b`` of every operator in ``signatures``."""
        return np.asarray(self.ms[0] / self.ms[1])

    @cached_property
    def overall_ratio(self) -> float:
        """Median of ``ratio``."""
        return float(np.median(self.ratio))

    @property
    def difference(self) -> float:
        """By how much the median entry differs, ``median |a / b - 1|``."""
        return float(np.median(np.abs(self.ratio - 1)))

    @property
    def difference_in_shape(self) -> float:
        """The same after one table is scaled by ``overall_ratio``."""
        return float(np.median(np.abs(self.ratio / self.overall_ratio - 1)))

    def quantiles(self, *shares: float) -> list[float]:
        """Quantiles of ``ratio``."""
        return [float(value) for value in np.quantile(self.ratio, shares)]

    def rank_correlations(self) -> dict[str, float]:
        """Spearman and Kendall; empty where a table does not vary over the common operators."""
        from scipy.stats import kendalltau, spearmanr  # half a second to import

        if any(np.ptp(values) == 0 for values in self.ms):
            return {}
        results: dict[str, Any] = {"Spearman": spearmanr(*self.ms), "Kendall": kendalltau(*self.ms)}
        return {name: float(result.statistic) for name, result in results.items()}

    def farthest(self, count: int) -> list[tuple[OpSignature, float]]:
        """The operators that disagree most, each with its ratio relative to ``overall_ratio``."""
        relative = self.ratio / self.overall_ratio
        order = np.argsort(-np.abs(np.log(relative)), kind="stable")[:count]
        return [(self.signatures[i], float(relative[i])) for i in order]


def _measured_here_only(table: LatencyTable, other: LatencyTable) -> list[OpSignature]:
    return [s for s in other.missing(table.entries) if table.entries[s].usable]
