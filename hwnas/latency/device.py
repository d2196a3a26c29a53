"""The device of a table: measures one model, and tells a slow model from a device that is slow at the moment."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hwnas.errors import MeasurementError
from hwnas.latency.calibration import measured_networks
from hwnas.latency.items import Item, models_for
from hwnas.latency.measure import as_consumed, time_rounds, time_together
from hwnas.latency.measurement import Measurement, summarise

if TYPE_CHECKING:
    from hwnas.latency.table import LatencyTable
    from hwnas.plugins import Profiler, Session
    from hwnas.space import SearchSpace

LOGGER = logging.getLogger("hwnas")

NUM_WITNESSES = 3
"""The median of three is not misled by one of them."""

NOISE = 1.01
"""A ratio up to this is no slowdown; so far apart are two measurements of the same network."""

NUM_TRIES = 4
PAUSE_SECONDS = 1.0
"""Tries before a miss is held against the sweep's networks: neighbours on a shared machine disturb for seconds.

A sweep visits an operator in many moments and judges it by the quieter ones; one model timed in one go may meet a bad
moment only.
"""


@dataclass(frozen=True)
class Timed:
    """Run times of one model.

    Args:
        rounds: Run times in milliseconds, by round.
        slowdown: How many times slower than in the table's sweep the device was meanwhile; 1 where it was
            not, or nothing gave a reason to look.
    """

    rounds: list[list[float]]
    slowdown: float = 1.0

    @property
    def measurement(self) -> Measurement:
        """Statistics of the run times as they are."""
        return summarise(self.rounds)

    @property
    def ms(self) -> float:
        """The table's statistic, at the speed that the device had in the table's sweep."""
        return self.measurement.ms / self.slowdown


@dataclass(frozen=True)
class Device:
    """What a table was measured on, at hand.

    A network that misses its limit is slower than predicted, or the device is slower than it was in the sweep: warmer,
    at a lower clock, or shared with other programs. Networks of the sweep, timed again in between, tell the two apart.

    Args:
        profiler: Measures what the table measured.
        table: Its entries and measured networks.
    """

    profiler: Profiler
    table: LatencyTable

    def measure(self, network: nn.Module, space: SearchSpace, *, limit_ms: float = float("inf")) -> Timed:
        """Times a network of a space.

        Args:
            network: In evaluation mode.
            space: It belongs to.
            limit_ms: A latency above this is looked at again, and in the end held against the sweep's networks.

        Raises:
            MeasurementError: The device refuses or cannot time the model.
        """
        model = as_consumed(network, space.input_shape, self.profiler)
        with contextlib.closing(self.profiler.prepare(model, space.input_shape)) as session:
            return self.time(session, space, limit_ms=limit_ms)

    def time(self, session: Session, space: SearchSpace, *, limit_ms: float = float("inf")) -> Timed:
        """Times a prepared network of a space; see ``measure``."""
        tried = [Timed(time_rounds(session))]
        while tried[-1].ms > limit_ms and len(tried) < NUM_TRIES:
            time.sleep(PAUSE_SECONDS)
            tried.append(Timed(time_rounds(session)))
        if tried[-1].ms > limit_ms and (known := self._witnesses(space, limit_ms)):
            try:
                tried.append(self._beside(session, known))
            except (MeasurementError, MemoryError) as error:  # the network itself was timed
                LOGGER.warning("networks of the table's sweep cannot be timed again (%s)", error)
        return min(tried, key=lambda each: each.ms)

    def _beside(self, session: Session, known: list[tuple[Item, float]]) -> Timed:
        """Rounds in which networks of the sweep take turns with the model."""
        with self._sessions([item for item, _ in known]) as witnesses:
            timed = time_together({str(i): each for i, each in enumerate((session, *witnesses))})
        own, *others = timed.values()
        ratios = [summarise(other).ms / ms for other, (_, ms) in zip(others, known, strict=True)]
        slowdown = float(np.median(ratios))
        return Timed(own, slowdown if slowdown > NOISE else 1.0)

    def _witnesses(self, space: SearchSpace, near_ms: float) -> list[tuple[Item, float]]:
        """Networks of the sweep whose latency is nearest, and that latency."""
        record = self.table.calibrations.get(space.fingerprint)
        if record is None or not np.isfinite(near_ms):
            return []
        options, ms = measured_networks(record)
        nearest = np.argsort(np.abs(ms - near_ms), kind="stable")[:NUM_WITNESSES]
        return [(Item.network(space, space.architecture(options[i].tolist())), float(ms[i])) for i in nearest]

    @contextlib.contextmanager
    def _sessions(self, items: list[Item]) -> Iterator[list[Session]]:
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(contextlib.closing(self.profiler.prepare(model, item.input_shape)))
                for item, (model, _) in zip(items, models_for(items, self.profiler), strict=True)
            ]
