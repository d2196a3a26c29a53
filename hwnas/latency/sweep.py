"""Profiling: time every operator of a space, and whole networks with them, into a table."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import DeviceLostError, MeasurementError, UsageError
from hwnas.latency.calibration import calibration_record
from hwnas.latency.environment import produced_by
from hwnas.latency.items import Item
from hwnas.latency.journal import JOURNAL, Journal
from hwnas.latency.measurement import STATISTIC, Measurement
from hwnas.latency.rounds import MIN_ROUNDS, Rounds, Watch, unwatched
from hwnas.latency.spread import spread
from hwnas.latency.table import LatencyTable, csv_path
from hwnas.metrics import Progress, no_progress
from hwnas.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from hwnas.plugins import Profiler

NUM_NETWORKS = 60
"""Whole networks that a sweep measures for calibration and for the stated error."""

NUM_ROUNDS = 64

VISIT_MS = 5.0

MIN_NETWORKS = 3
"""Fewer measured networks give no held-out error."""


def profile(
    space: SearchSpace,
    profiler: Profiler,
    *,
    output: Path | str,
    num_networks: int = NUM_NETWORKS,
    num_rounds: int = NUM_ROUNDS,
    visit_ms: float = VISIT_MS,
    minutes: float = float("inf"),
    seed: int = 0,
    progress: Progress = no_progress,
    watch: Watch = unwatched,
) -> LatencyTable:
    """Measures a space on a device and writes its latency table.

    Every distinct operator is timed once a round, and so are ``num_networks`` whole networks, spread over the
    multiply-adds that the space can reach, all interleaved; the networks then tell how entries map to networks and how
    well they do. An interrupted call goes on where it stopped; an existing table of the same environment is extended.

    Args:
        space: What to measure.
        profiler: The device.
        output: The table, ``NAME.csv``; its sidecar becomes ``NAME.json``.
        num_networks: Whole networks to measure; at least 3.
        num_rounds: Visits to every item; each in another state of a noisy machine. Unstable ones get more.
        visit_ms: Time budget of a visit.
        minutes: Measuring ends after this long, with at least two rounds.
        seed: Draws the networks.
        progress: Told about every step.
        watch: Told the key of an item before the device is asked to do something with it, and ``""`` afterwards;
            a device that hangs cannot be stopped from within the process (``hwnas profile`` watches from outside).

    Raises:
        UsageError: Too few networks, rounds or minutes.
        EnvironmentMismatchError: The existing table or journal is from another environment.
        TableFormatError: The existing table is malformed.
        RunError: Another sweep is writing the same table.
        OutputError: The output cannot be written.
        DeviceLostError: The device stopped answering; what was measured is kept.
        MeasurementError: Not a single operator could be measured.
    """
    started = time.monotonic()
    if num_networks < MIN_NETWORKS or num_rounds < MIN_ROUNDS or not minutes > 0:
        raise UsageError(
            f"profiling needs at least {MIN_NETWORKS} networks, {MIN_ROUNDS} rounds and more than 0 minutes; "
            f"got {num_networks}, {num_rounds} and {minutes:g}."
        )
    path = csv_path(output)
    environment = profiler.environment()
    table = _existing(path, profiler) or LatencyTable(environment, {}, path=path)
    architectures = spread(space, num_networks, seed=seed)
    if not (items := _missing(table, space, architectures)):
        return table
    plan = {"space": space.fingerprint, "items": len(items), "rounds": num_rounds, "seed": seed}
    with Journal(path.with_suffix(JOURNAL), environment, plan) as journal:
        rounds = Rounds(profiler, journal, num_rounds, visit_ms, started + 60 * minutes, progress, watch)
        try:
            rounds.measure(items)
        except DeviceLostError:
            if not any(journal.samples.values()):
                journal.remove()  # nothing is lost, and the next call may be another plan
            raise
        measured = rounds.summaries(items)
        asked = plan | {"networks": num_networks} | ({"minutes": minutes} if math.isfinite(minutes) else {})
        sweep = _provenance(rounds, environment.details, started) | {"plan": asked}
        table = _extended(table, space, architectures, measured, sweep)
        if not any(entry.usable for entry in table.entries.values()):
            journal.remove()  # so that the next call tries again
            reason = next(iter(table.entries.values())).error
            raise MeasurementError(f"no operator of space '{space.name}' could be measured; the first said: {reason}")
        table = table.save(path)
        journal.remove()
    return table


def _existing(path: Path, profiler: Profiler) -> LatencyTable | None:
    """The table to extend; None where there is none, or where a kill left a sidecar without its rows."""
    interrupted, sidecar = path.with_suffix(JOURNAL).exists(), path.with_suffix(".json").exists()
    if not path.exists() and (interrupted or not sidecar):
        return None
    table = LatencyTable.load(path)
    table.require_environment(profiler.environment())
    return table


def _missing(table: LatencyTable, space: SearchSpace, architectures: Sequence[Architecture]) -> list[Item]:
    """What the table lacks: operators without a number, and all networks if it has fewer of them."""
    items = [Item.operator(s) for s in table.missing(space.signatures())]
    if len(table.calibrations.get(space.fingerprint, {}).get("networks", ())) < len(architectures):
        items += [Item.network(space, a) for a in architectures]
    return items


def _extended(
    table: LatencyTable,
    space: SearchSpace,
    architectures: Sequence[Architecture],
    measured: Mapping[Item, Measurement],
    provenance: Mapping[str, Any],
) -> LatencyTable:
    by_key = {item.key: measurement for item, measurement in measured.items()}
    operators = {item.operators[0]: m for item, m in measured.items() if item.key == str(item.operators[0])}
    networks = [(a, by_key[a.id].ms) for a in architectures if a.id in by_key and by_key[a.id].usable]
    calibrations = dict(table.calibrations)
    if len(networks) >= MIN_NETWORKS:
        calibrations[space.fingerprint] = calibration_record(space, networks)
    if table.provenance:
        before = dict(table.provenance)
        provenance = {**provenance, "earlier": [*before.pop("earlier", []), before]}
    return LatencyTable(table.environment, {**table.entries, **operators}, calibrations, provenance, table.path)


def _provenance(rounds: Rounds, details_at_start: Mapping[str, str], started: float) -> dict[str, Any]:
    """What the sidecar says about the sweep: when, how, and how quiet the machine was."""
    details = rounds.profiler.environment().details
    return {
        **produced_by(),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "statistic": STATISTIC,
        "reference": rounds.steadiness(),
        "changed_by_the_end": {name: value for name, value in details.items() if details_at_start.get(name) != value},
    }
