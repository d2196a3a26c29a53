"""One table out of several that were measured in the same environment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hwnas.errors import EnvironmentMismatchError, UsageError
from hwnas.latency.environment import produced_by
from hwnas.latency.measurement import Measurement
from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature


def merge(tables: Sequence[LatencyTable]) -> LatencyTable:
    """Everything that several tables hold, as a table that is not saved yet.

    Of several entries for one operator the best is kept: ``ok`` before ``unstable`` before ``failed``, then the least
    latency, as a sweep does with its own rounds, then the one of the table given first. Networks measured for one space
    come together; of one that was measured several times the least latency is kept too, for a network must not stand
    both among those that a fit sees and those that judge it. The provenance of each table is kept, with the details of
    its environment.

    Raises:
        UsageError: Fewer than two tables.
        EnvironmentMismatchError: They are from different environments; names the table and the fields.
    """
    if len(tables) < 2:
        raise UsageError(f"merging needs at least two tables; got {len(tables)}. Name another one.")
    first = tables[0]
    for table in tables[1:]:
        differences = first.environment.differences(table.environment)
        if differences:
            raise EnvironmentMismatchError(
                f"{first.name} and {table.name} are from different environments: {'; '.join(differences)}. "
                "Merge tables of one environment only; 'hwnas table compare' puts two of them side by side."
            )
    entries: dict[OpSignature, Measurement] = {}
    calibrations: dict[str, Mapping[str, Any]] = {}
    for table in tables:
        for signature, entry in table.entries.items():
            entries[signature] = min(entries.get(signature, entry), entry, key=_rank)
        for fingerprint, record in table.calibrations.items():
            calibrations[fingerprint] = _together(calibrations.get(fingerprint, record), record)
    provenance = {
        "merged": [{"table": t.name, "environment": dict(t.environment.details), **t.provenance} for t in tables],
        **produced_by(),
    }
    return LatencyTable(first.environment, entries, calibrations, provenance)


def num_shared(tables: Sequence[LatencyTable]) -> int:
    """Number of operators that more than one table holds."""
    return sum(count > 1 for count in Counter(s for table in tables for s in table.entries).values())


def _rank(entry: Measurement) -> tuple[int, float]:
    return ("ok", "unstable", "failed").index(entry.status), entry.ms if entry.usable else 0.0


def _together(record: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    networks: dict[tuple[int, ...], Mapping[str, Any]] = {}
    for network in (*record["networks"], *other["networks"]):
        options = tuple(network["options"])
        networks[options] = min(networks.get(options, network), network, key=lambda each: float(each["ms"]))
    return {**record, "networks": list(networks.values())}
