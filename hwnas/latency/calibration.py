"""From sums of table entries to whole networks, and how well that works on networks not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hwnas.errors import TableFormatError, UsageError
from hwnas.space import Architecture, SearchSpace

Array = np.ndarray[Any, np.dtype[np.float64]]

LEAVE_ONE_OUT = 60
"""Up to so many networks are held out one at a time; more are held out by tenths, to save time."""

POOR_MAPE = 5.0
"""Percent; above it a predicted latency says too little to search with, and hwnas says so loudly."""


@dataclass(frozen=True)
class PredictionError:
    """How far predictions are from measured networks.

    Args:
        mape: Mean absolute error in percent of the measured latency.
        within_5: Share of networks predicted within 5 %, from 0 to 1.
        within_10: The same within 10 %.
        bias: Mean signed error in percent; positive means predicted too slow.
        spearman: Rank correlation; 0 where all networks or all predictions are alike.
        num_networks: How many networks the figures rest on.
    """

    mape: float
    within_5: float
    within_10: float
    bias: float
    spearman: float
    num_networks: int

    @classmethod
    def between(cls, predicted: Array, measured: Array) -> PredictionError:
        """Figures for predictions of measured latencies, both in milliseconds and of equal length."""
        from scipy.stats import spearmanr  # half a second to import, so only where it is used

        relative = (predicted - measured) / measured
        varied = len(measured) > 1 and np.ptp(measured) > 0 and np.ptp(predicted) > 0
        return cls(
            mape=float(100 * np.abs(relative).mean()),
            within_5=float((np.abs(relative) <= 0.05).mean()),
            within_10=float((np.abs(relative) <= 0.10).mean()),
            bias=float(100 * relative.mean()),
            spearman=float(spearmanr(predicted, measured).statistic) if varied else 0.0,
            num_networks=len(measured),
        )

    def to_dict(self) -> dict[str, float]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"MAPE {self.mape:.1f} %, {self.within_5:.0%} within 5 %, {self.within_10:.0%} within 10 %, "
            f"bias {self.bias:+.1f} %, Spearman {self.spearman:.2f} ({self.num_networks} networks)"
        )


@dataclass(frozen=True)
class Affine:
    """``ms = slope * sum + intercept``."""

    slope: float
    intercept: float

    def __call__(self, sums: Array) -> Array:
        return self.slope * sums + self.intercept

    @classmethod
    def fit(cls, sums: Array, measured: Array) -> Affine:
        """Least squares of the relative error; falls back to a pure scale where the slope is not positive."""
        weighted = np.stack([sums / measured, 1 / measured], axis=1)
        slope, intercept = np.linalg.lstsq(weighted, np.ones_like(measured), rcond=None)[0]
        if len(measured) < 3 or slope <= 0 or np.ptp(sums) == 0:
            ratio = sums / measured
            return cls(float(ratio.sum() / (ratio**2).sum()), 0.0)
        return cls(float(slope), float(intercept))


def held_out(
    inputs: Array, measured: Array, fit: Callable[[Array, Array], Callable[[Array], Array]]
) -> PredictionError:
    """Error by cross-validation: every network is predicted by a fit, from scratch, to others.

    Leaves out one network at a time, or a tenth where there are more than ``LEAVE_ONE_OUT``. What is measured
    several times is left out all at once, unless there would be nothing else to fit to. The figures describe fits
    to slightly fewer networks than there are, and say what to expect of networks drawn like these.

    Args:
        inputs: What each prediction rests on, networks first.
        measured: Milliseconds.
        fit: Inputs and latencies -> a function from inputs to predicted latencies.

    Raises:
        UsageError: There are fewer than 3 networks.

    Source:
        Stone, J. R. Stat. Soc. B 36 (1974); that choosing hyper-parameters belongs inside: Cawley and Talbot,
        JMLR 11 (2010), section 5.
    """
    if len(measured) < 3:
        raise UsageError(
            f"a held-out error needs at least 3 measured networks; got {len(measured)}. Measure more networks."
        )
    _, same = np.unique(inputs, axis=0, return_inverse=True)
    groups = same.ravel() if same.max() >= 2 else np.arange(len(measured))
    folds = groups if groups.max() < LEAVE_ONE_OUT else groups % 10
    predicted = np.empty(len(measured))
    for fold in range(int(folds.max()) + 1):
        out = folds == fold
        predicted[out] = fit(inputs[~out], measured[~out])(inputs[out])
    return PredictionError.between(predicted, measured)


def calibration_record(space: SearchSpace, networks: Sequence[tuple[Architecture, float]]) -> dict[str, Any]:
    """What a table's sidecar keeps about whole networks of one space."""
    return {
        "space": space.describe(),
        "networks": [{"options": list(space.indices(a)), "ms": ms} for a, ms in networks],
    }


def measured_networks(record: Mapping[str, Any]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Array]:
    """Option indices of shape ``(networks, choices)`` and latencies in milliseconds of a record.

    Raises:
        TableFormatError: The networks are not of one space.
    """
    options = [network["options"] for network in record["networks"]]
    if len({len(row) for row in options}) > 1:
        raise TableFormatError("the measured networks have different numbers of choices. Profile again.")
    indices = np.asarray(options, dtype=np.int64)
    return indices, np.asarray([network["ms"] for network in record["networks"]], dtype=np.float64)
