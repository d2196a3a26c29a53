"""Interleaved rounds: every item once a round, in changing order, a reference operator in between."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hwnas.errors import DeviceLostError, MeasurementError
from hwnas.latency.drift import Drift
from hwnas.latency.items import Item, models_for
from hwnas.latency.journal import Journal
from hwnas.latency.measurement import Measurement, failure, summarise
from hwnas.metrics import Progress
from hwnas.plugins import GroupSession
from hwnas.space import OpSignature

if TYPE_CHECKING:
    from hwnas.plugins import Profiler, Session

REFERENCE = Item.operator(OpSignature.parse("conv k3 s1 32x16x16 -> 32x16x16"), key="reference")
"""Timed between the others, so that drift of the machine is seen."""

REFERENCE_EVERY = 8

MIN_ROUNDS = 2
"""Fewer say nothing about spread; a budget of minutes never cuts below."""

Watch = Callable[[str], None]
"""Told the key of an item before the device is asked to do something with it, and an empty text afterwards."""


def unwatched(key: str) -> None:
    """Nobody watches."""


@dataclass
class Rounds:
    """Visits items until every one has its rounds, or time is up.

    Args:
        profiler: The device.
        journal: Where every visit is recorded.
        num_rounds: Visits to every item; unstable ones get up to half as many again.
        visit_ms: Time budget of a visit.
        deadline: ``time.monotonic`` at which to stop, once every item has ``MIN_ROUNDS`` visits.
        progress: Told about every visit.
        watch: Told about every call to the device.
    """

    profiler: Profiler
    journal: Journal
    num_rounds: int
    visit_ms: float
    deadline: float
    progress: Progress
    watch: Watch = unwatched
    sessions: dict[str, Session] = field(default_factory=dict)
    _visited: int = 0

    def measure(self, items: Sequence[Item]) -> None:
        """Fills the journal.

        Raises:
            DeviceLostError: The reference operator cannot be measured any more.
        """
        if all(self.journal.done(i.key, visit) for i in items for visit in range(self.num_rounds)):
            return
        self._prepare([REFERENCE, *(i for i in items if i.key not in self.journal.failures)])
        try:
            leader = self.sessions.get(REFERENCE.key)
            if isinstance(leader, GroupSession):
                self._together(leader, items)
            else:
                self._in_turn(items)
        finally:
            for session in self.sessions.values():
                session.close()
            self.sessions.clear()

    def _in_turn(self, items: Sequence[Item]) -> None:
        for visit in range(self.num_rounds + self.num_rounds // 2):
            if visit >= self.num_rounds:
                items = self._unstable(items)
            if not items or self._late(visit):
                break
            self._round(items, visit)

    def _together(self, leader: GroupSession, items: Sequence[Item]) -> None:
        """One piece of work for the device; two where time is limited, so that every item has its least rounds."""
        hurried = math.isfinite(self.deadline)
        for num_rounds in (MIN_ROUNDS, self.num_rounds) if hurried else (self.num_rounds,):
            self._work(leader, items, num_rounds, "measuring")
        if not self._late(self.num_rounds):
            again = self._unstable(items)
            self._work(leader, again, self.num_rounds + self.num_rounds // 2, "measuring the unstable again")

    def _work(self, leader: GroupSession, items: Sequence[Item], num_rounds: int, what: str) -> None:
        """Has the device visit items until they have so many rounds, or time is up."""
        samples, total = self.journal.samples, num_rounds * len(items)
        items = [i for i in items if i.key in self.sessions and not self.journal.done(i.key, num_rounds - 1)]
        if not items:
            return
        first = 1 + max((visit for visits in samples.values() for visit in visits), default=-1)
        others = {item.key: self.sessions[item.key] for item in items}
        left = max(num_rounds - len(samples[item.key]) for item in items)
        done = total - sum(num_rounds - len(samples[item.key]) for item in items)
        visits = leader.time_with(others, num_rounds=left, budget_ms=self.visit_ms)
        with contextlib.closing(visits):
            for key, number, found in visits:
                found = _checked(found)
                if not key and isinstance(found, Exception):
                    raise self._lost(REFERENCE, found) from found
                if isinstance(found, Exception):
                    self.journal.fail(key, str(found))
                else:
                    self.journal.add(key or REFERENCE.key, first + number, found)
                done += bool(key)
                self.progress(what, min(done, total), total)
                if self._late(num_rounds - 1):
                    return

    def _unstable(self, items: Sequence[Item]) -> list[Item]:
        return [item for item, found in self.summaries(items).items() if found.status == "unstable"]

    def summaries(self, items: Sequence[Item]) -> dict[Item, Measurement]:
        """What the journal says about items, with rounds of lower clocks corrected."""
        drift = self.drift
        return {item: self._summary(item.key, drift) for item in items}

    def _summary(self, key: str, drift: Drift) -> Measurement:
        if key in self.journal.failures:
            return failure(self.journal.failures[key])
        visits = self.journal.samples[key]
        if not visits:
            return failure("not measured: time was up")
        return summarise(drift.corrected(visits))

    @property
    def drift(self) -> Drift:
        """How the reference operator fared."""
        return Drift.of(self.journal.samples[REFERENCE.key])

    def steadiness(self) -> dict[str, float | int | str]:
        """How quiet the machine was: the reference operator's own spread over the sweep, and a grade."""
        visits, drift = self.journal.samples[REFERENCE.key], self.drift
        if not visits:
            return {}
        summary = summarise(list(visits.values()))
        return {
            "operator": str(REFERENCE.operators[0]),
            "ms": summary.ms,
            "p50_ms": summary.p50_ms,
            "p90_ms": summary.p90_ms,
            "spread": summary.spread,
            "num_rounds": len(drift.factors),
            "num_throttled_rounds": drift.num_throttled,
            "slowest_round": max(drift.factors.values()),
            "noise_grade": drift.grade(summary),
        }

    def _round(self, items: Sequence[Item], visit: int) -> None:
        order = items if visit % 2 == 0 else items[::-1]
        for position, item in enumerate(order):
            if self._late(visit):
                return
            if item.key in self.sessions and not self.journal.done(item.key, visit):
                if self._visited % REFERENCE_EVERY == 0:
                    self._visit(REFERENCE, visit)
                self._visit(item, visit)
                self._visited += 1
            if visit < self.num_rounds:
                self.progress("measuring", visit * len(items) + position + 1, self.num_rounds * len(items))
            else:
                self.progress("measuring the unstable again", position + 1, len(items))

    def _late(self, visit: int) -> bool:
        return visit >= MIN_ROUNDS and time.monotonic() > self.deadline

    def _visit(self, item: Item, visit: int) -> None:
        try:
            samples = self._timed(item)
        except (MeasurementError, MemoryError) as error:
            self._failed(item, error)
        else:
            self.journal.add(item.key, visit, samples)

    def _timed(self, item: Item) -> list[float]:
        self.watch(item.key)
        samples = self.sessions[item.key].time_ms(budget_ms=self.visit_ms)
        self.watch("")
        summarise([samples])
        return samples

    def _failed(self, item: Item, error: Exception) -> None:
        """Records a failure, if it is the item's and not the device's."""
        lost: Exception | None = error if item is REFERENCE else None
        if lost is None:
            try:
                self._timed(REFERENCE)
            except (MeasurementError, MemoryError) as also:
                lost = also
        if lost is not None:
            raise self._lost(item, error) from lost
        self.journal.fail(item.key, str(error) or type(error).__name__)

    def _lost(self, item: Item, error: Exception) -> DeviceLostError:
        return DeviceLostError(
            f"the device does not answer: '{item.key}' failed ({error}), and so does the reference operator "
            f"({REFERENCE.operators[0]}). What was measured is kept: see to the device, then run the same "
            "command again."
        )

    def _prepare(self, items: Sequence[Item]) -> None:
        """A session for every item; one that the device refuses is recorded as failed."""
        models = models_for(items, self.profiler, self.progress)
        for number, (item, (model, _)) in enumerate(zip(items, models, strict=True), start=1):
            self.watch(item.key)
            try:
                self.sessions[item.key] = self.profiler.prepare(model, item.input_shape)
            except (MeasurementError, MemoryError) as error:
                self._failed(item, error)
            self.watch("")
            self.progress("preparing", number, len(items))


def _checked(found: list[float] | MeasurementError) -> list[float] | MeasurementError:
    """Run times that can be summarised, or why there are none."""
    if isinstance(found, list):
        try:
            summarise([found])
        except MeasurementError as error:
            return error
    return found
