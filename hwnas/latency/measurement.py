"""What is known about the latency of one operator or network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.errors import MeasurementError


@dataclass(frozen=True)
class Measurement:
    """Statistics of repeated runs, or the reason why there are none.

    Args:
        ms: The statistic that stands for the operator: the 5 % quantile over rounds of the rounds' 10 %
            quantiles, what it takes in the quieter rounds.
        p50_ms: Median of all runs.
        p90_ms: 90th percentile of all runs.
        spread: How far the lower quartile of the rounds' 10 % quantiles lies above ``ms``, relative to it.
        num_samples: Number of timed runs.
        status: ``ok``, ``unstable`` (``spread`` above ``MAX_SPREAD``) or ``failed``.
        error: Why it failed; empty otherwise.
    """

    ms: float
    p50_ms: float
    p90_ms: float
    spread: float
    num_samples: int
    status: str = "ok"
    error: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a number at all."""
        return self.status != "failed"


QUANTILE = 0.1
"""Within a round a low quantile: other tenants of the machine only ever add time."""

ACROSS = 0.05
"""Across rounds a lower one: most of them may be disturbed."""

STATISTIC = f"{ACROSS:.0%} quantile over rounds of the rounds' {QUANTILE:.0%} quantiles"

MAX_SPREAD = 0.1


def summarise(rounds: Sequence[Sequence[float]]) -> Measurement:
    """Statistics over rounds of raw run times in milliseconds.

    Both quantiles are low because disturbance only adds time, and not the least because a processor that clocks in
    steps shows a few operators its highest step and others never. ``benchmarks/statistic.py`` compares statistics by
    the error that they leave in predicted networks; figures are in ``benchmarks/results``.

    Raises:
        MeasurementError: No samples, or a sample that is not a positive finite number.
    """
    samples = np.asarray([sample for samples in rounds for sample in samples], dtype=np.float64)
    if not samples.size or not np.isfinite(samples).all() or (samples <= 0).any():
        raise MeasurementError("a measurement needs at least one run time, each positive and finite.")
    p50, p90 = (float(q) for q in np.quantile(samples, (0.5, 0.9)))
    per_round = [float(np.quantile(samples, QUANTILE)) for samples in rounds if len(samples)]
    ms = float(np.quantile(per_round, ACROSS))
    spread = float(np.quantile(per_round, 0.25)) / ms - 1
    return Measurement(ms, p50, p90, spread, int(samples.size), "unstable" if spread > MAX_SPREAD else "ok")


def failure(error: str) -> Measurement:
    """The record of a measurement that did not succeed."""
    return Measurement(math.nan, math.nan, math.nan, math.nan, 0, "failed", " ".join(error.split())[:300])


def said_slowdown(slowdown: float) -> str:
    """What to say behind a latency; nothing where the device was as fast as in its sweep."""
    if slowdown == 1:
        return ""
    return f" (the device is {slowdown:.2f} times slower than in its sweep; the latency is given at the sweep's speed)"
