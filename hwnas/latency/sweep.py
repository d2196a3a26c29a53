"""Profiling: time every operator of a space, and whole networks with them, in interleaved rounds."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hwnas._version import __version__
from hwnas.errors import HwnasError, MeasurementError, UsageError
from hwnas.latency.calibration import calibration_record
from hwnas.latency.journal import Journal
from hwnas.latency.measurement import Measurement, failure, summarise
from hwnas.latency.table import LatencyTable, csv_path
from hwnas.metrics import Progress, no_progress
from hwnas.onnx_graph import chain, export_many
from hwnas.ops.blocks import build_op
from hwnas.space import Architecture, OpSignature, SearchSpace

if TYPE_CHECKING:
    from hwnas.plugins import Profiler, Session

REFERENCE = OpSignature.parse("conv k3 s1 32x16x16 -> 32x16x16")
"""Timed between the others, so that drift of the machine is seen."""

REFERENCE_EVERY = 8

MIN_NETWORKS = 3
"""Fewer measured networks give no held-out error."""


JOURNAL = ".partial.jsonl"
"""Ending of the journal beside the table."""


@dataclass(frozen=True)
class Item:
    """Something to time: operators that run one after another."""

    key: str
    operators: tuple[OpSignature, ...]


def profile(
    space: SearchSpace,
    profiler: Profiler,
    *,
    output: Path | str,
    num_networks: int = 12,
    num_rounds: int = 24,
    visit_ms: float = 8.0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> LatencyTable:
    """Measures a space on a device and writes its latency table.

    Every distinct operator is timed once a round, and so are ``num_networks`` random whole networks, all
    interleaved; the networks then tell how sums of entries map to networks and how well they do. An
    interrupted call goes on where it stopped; an existing table of the same environment is extended.

    Args:
        space: What to measure.
        profiler: The device.
        output: The table, ``NAME.csv``; its sidecar becomes ``NAME.json``.
        num_networks: Whole networks to measure; at least 3.
        num_rounds: Visits to every item; each in another state of a noisy machine.
        visit_ms: Time budget of a visit.
        seed: Draws the networks.
        progress: Told about every step.

    Raises:
        UsageError: Too few networks or rounds.
        EnvironmentMismatchError: The existing table or journal is from another environment.
        TableFormatError: The existing table is malformed.
        RunError: Another sweep is writing the same table.
        OutputError: The output cannot be written.
        MeasurementError: Not a single operator could be measured.
    """
    if num_networks < MIN_NETWORKS or num_rounds < 2:
        raise UsageError(f"profiling needs at least 3 networks and 2 rounds; got {num_networks} and {num_rounds}.")
    path = csv_path(output)
    environment = profiler.environment()
    table = _existing(path, profiler) or LatencyTable(environment, {}, path=path)
    architectures = space.distinct(num_networks, seed=seed)
    items = [Item(str(s), (s,)) for s in table.missing(space.signatures())]
    if len(table.calibrations.get(space.fingerprint, {}).get("networks", ())) < len(architectures):
        items += [Item(a.id, space.operators(a)) for a in architectures]
    if not items:
        return table
    plan = {"space": space.fingerprint, "items": len(items), "rounds": num_rounds, "seed": seed}
    with Journal(path.with_suffix(JOURNAL), environment, plan) as journal:
        _visit_all(items, profiler, journal, num_rounds, visit_ms, progress)
        measured = {item.key: _summary(journal, item.key) for item in items}
        table = _extended(table, space, architectures, measured, journal)
        if not any(entry.usable for entry in table.entries.values()):
            reason = next(iter(table.entries.values())).error
            journal.remove()  # so that the next call tries again
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


def _visit_all(
    items: Sequence[Item],
    profiler: Profiler,
    journal: Journal,
    num_rounds: int,
    visit_ms: float,
    progress: Progress,
) -> None:
    """Visits every item once a round, every other round backwards, the reference operator in between."""
    open_items = [i for i in items if not all(journal.done(i.key, visit) for visit in range(num_rounds))]
    if not open_items:
        return
    reference = Item("reference", (REFERENCE,))
    sessions = _prepare([reference, *open_items], profiler, journal, progress)
    for visit in range(num_rounds):
        for position, item in enumerate(items if visit % 2 == 0 else items[::-1], start=visit * len(items)):
            slot = position // REFERENCE_EVERY
            for each, number in ((reference, slot), (item, visit)):
                if each.key in sessions and not journal.done(each.key, number):
                    _visit(each.key, number, sessions, journal, visit_ms)
            progress("measuring", position + 1, num_rounds * len(items))
    for session in sessions.values():
        session.close()


def _visit(key: str, visit: int, sessions: dict[str, Session], journal: Journal, visit_ms: float) -> None:
    try:
        samples = sessions[key].time_ms(budget_ms=visit_ms)
        summarise([samples])
    except MeasurementError as error:
        journal.fail(key, str(error))
    else:
        journal.add(key, visit, samples)


def _prepare(items: Sequence[Item], profiler: Profiler, journal: Journal, progress: Progress) -> dict[str, Session]:
    """A session for every item; one that the device refuses is recorded as failed."""
    sessions: dict[str, Session] = {}
    models = models_for([item.operators for item in items], profiler, progress)
    for item, (model, _) in zip(items, models, strict=True):
        if item.key in journal.failures:
            continue
        try:
            sessions[item.key] = profiler.prepare(model, item.operators[0].in_shape)
        except MeasurementError as error:
            journal.fail(item.key, str(error))
    return sessions


def models_for(
    chains: Sequence[tuple[OpSignature, ...]], profiler: Profiler, progress: Progress = no_progress
) -> Iterator[tuple[bytes | nn.Module, nn.Module]]:
    """Every chain of operators in turn, as what the profiler consumes, and as a module.

    Operators shared by chains are built and exported once; a chain's graph is its operators' graphs, joined.
    """
    modules = {s: build_op(s).eval() for s in dict.fromkeys(s for operators in chains for s in operators)}
    graphs = _export_operators(modules, profiler.environment().batch, progress) if profiler.consumes == "onnx" else {}
    for operators in chains:
        module = nn.Sequential(*(modules[s] for s in operators)).eval()
        yield chain([graphs[s] for s in operators]).SerializeToString() if graphs else module, module


def _export_operators(
    modules: Mapping[OpSignature, nn.Module], batch: int, progress: Progress
) -> dict[OpSignature, Any]:
    graphs: dict[OpSignature, Any] = {}
    signatures, size = list(modules), 16
    for start in range(0, len(signatures), size):
        progress("exporting operators", start, len(signatures))
        part = signatures[start : start + size]
        exported = export_many([modules[s] for s in part], [s.in_shape for s in part], batch=batch)
        graphs.update(zip(part, exported, strict=True))
    progress("exporting operators", len(signatures), len(signatures))
    return graphs


def _summary(journal: Journal, key: str) -> Measurement:
    if key in journal.failures:
        return failure(journal.failures[key])
    return summarise(list(journal.samples[key].values()))


def _extended(
    table: LatencyTable,
    space: SearchSpace,
    architectures: Sequence[Architecture],
    measured: Mapping[str, Measurement],
    journal: Journal,
) -> LatencyTable:
    operators = {OpSignature.parse(key): m for key, m in measured.items() if " -> " in key}
    entries = {**table.entries, **operators}
    networks = [(a, measured[a.id].ms) for a in architectures if a.id in measured and measured[a.id].usable]
    calibrations = dict(table.calibrations)
    if len(networks) >= MIN_NETWORKS:
        calibrations[space.fingerprint] = calibration_record(space, networks)
    provenance = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "hwnas": __version__,
        "reference": _reference(journal),
    }
    return LatencyTable(table.environment, entries, calibrations, provenance, table.path)


def _reference(journal: Journal) -> dict[str, float]:
    """How steady the machine was: the reference operator's own spread over the sweep."""
    try:
        summary = _summary(journal, "reference")
    except HwnasError:
        return {}
    return {"ms": summary.ms, "p50_ms": summary.p50_ms, "p90_ms": summary.p90_ms, "spread": summary.spread}
