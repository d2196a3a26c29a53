"""Tables that other projects published, read as latency tables; one file a format.

A new format is a module with ``read(source)`` and ``STATISTIC``, and a line in ``FORMATS``.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from hwnas.errors import HwnasError, UnknownNameError, UsageError
from hwnas.latency.environment import Environment, produced_by
from hwnas.latency.foreign import columns, fbnet, nn_meter, proxylessnas, tf_nas
from hwnas.latency.foreign.source import Reading, Source
from hwnas.latency.measurement import Measurement
from hwnas.latency.table import LatencyTable, csv_path

FORMATS: dict[str, ModuleType] = {
    "csv": columns,
    "fbnet": fbnet,
    "nn-meter": nn_meter,
    "proxylessnas": proxylessnas,
    "tf-nas": tf_nas,
}

UNITS = {"ms": 1.0, "us": 1e-3, "s": 1e3}
"""Milliseconds in one."""

IMPORTED = "imported"
"""Execution mode of an environment that another project measured in."""


def import_table(
    file: Path | str, *, file_format: str, output: Path | str, environment: Environment, unit: str | None = None
) -> LatencyTable:
    """Reads a published table and writes it as a latency table; all of it or nothing.

    Args:
        file: What to read.
        file_format: One of ``FORMATS``.
        output: The new table, ``NAME.csv``; its sidecar becomes ``NAME.json``.
        environment: Where it was measured, as far as that is known.
        unit: ``ms``, ``us`` or ``s``; only where the file does not say it.

    Raises:
        UnknownNameError: No such format or unit.
        UsageError: The unit is neither known nor given, or given and known to be another; or the output exists.
        TableFormatError: A row is malformed; names file and line.
        UnitError: The numbers look like another unit.
        OutputError: The output cannot be written.
    """
    for kind, name, known in (("format", file_format, list(FORMATS)), ("unit", unit or "ms", list(UNITS))):
        if name not in known:
            raise UnknownNameError.among(kind, name, known)
    path = csv_path(output)
    for written in (path, path.with_suffix(".json")):
        if written.exists():
            raise UsageError(f"{written} exists, and importing replaces nothing. Choose another output or remove it.")
    source = Source.read(Path(file))
    reading = FORMATS[file_format].read(source)
    if not reading.entries:
        raise source.error(1, "no operators. Is it another format?")
    unit = _unit(reading, unit)
    provenance = {
        "imported": {
            "file": source.path.name,
            "sha256": hashlib.sha256(source.text.encode()).hexdigest(),
            "format": file_format,
            "unit": unit,
            "statistic": FORMATS[file_format].STATISTIC,
        },
        **produced_by(),
    }
    entries = {signature: _scaled(entry, UNITS[unit]) for signature, entry in reading.entries.items()}
    LatencyTable(environment, entries, provenance=provenance).save(path)
    try:
        return LatencyTable.load(path)  # what it refuses, such as seconds called milliseconds, must not stay
    except HwnasError:
        for written in (path, path.with_suffix(".json")):
            written.unlink()
        raise


def _unit(reading: Reading, given: str | None) -> str:
    path, known = reading.source.path, reading.unit
    if known is not None and given not in (None, known):
        raise UsageError(f"{path} is in {known}, so it cannot be read in {given}. Leave the unit out.")
    if known is None and given is None:
        raise UsageError(f"{path} does not say the unit of its latencies. Give it: --unit ms, us or s.")
    return known or given or ""


def _scaled(entry: Measurement, factor: float) -> Measurement:
    return replace(entry, ms=entry.ms * factor, p50_ms=entry.p50_ms * factor, p90_ms=entry.p90_ms * factor)
