"""Latency tables: operators and their measurements, never apart from their environment."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.documents import Sidecar, fitting
from hwnas.errors import (
    EnvironmentMismatchError,
    MissingSignatureError,
    RunError,
    SpaceError,
    TableFormatError,
    UnitError,
)
from hwnas.files import read_json, read_text, write_atomic, write_json
from hwnas.latency.environment import Environment
from hwnas.latency.measurement import Measurement
from hwnas.space import SIGNATURE_VERSION, OpSignature, SearchSpace, macs, spelled
from hwnas.space.cost import has_cost
from hwnas.space.library import FLAGS

if TYPE_CHECKING:
    import pandas

FORMAT = "hwnas-latency-table"
FORMAT_VERSION = 1
COLUMNS = ("signature", *(f.name for f in fields(Measurement)))

SLOWEST_MS = 1e9
"""Eleven days; what is above may as well be infinite."""

FASTEST_MS = 1e-3
"""No runtime calls an operator in under a microsecond; a table below that is in another unit."""

MOST_MACS_PER_MS = 1e12
"""An H200 peaks at about 0.5e12 fp16 multiply-adds a millisecond; more means another unit."""


@dataclass(frozen=True)
class LatencyTable:
    """Signature -> measurement, with the environment and what whole networks said.

    Two files: ``NAME.csv`` holds one row an operator, sorted by signature; ``NAME.json`` beside it holds
    the environment, the number of rows and their hash, and the calibration networks.

    Args:
        environment: Where the entries were measured.
        entries: Every operator measured, failures included.
        calibrations: Space fingerprint -> whole networks of that space measured in the same session.
        provenance: Date, command, versions.
    """

    environment: Environment
    entries: Mapping[OpSignature, Measurement]
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """File name, or ``unsaved table``."""
        return self.path.name if self.path else "unsaved table"

    def frame(self) -> pandas.DataFrame:
        """The entries for analysis: a row an operator, with its parts, multiply-adds and statistics."""
        import pandas

        described = [
            {"signature": str(s), "op": s.op, "stride": s.stride, "macs": _macs(s), **dict(s.attributes), **asdict(m)}
            for s, m in self.entries.items()
        ]
        return pandas.DataFrame(described)

    def missing(self, signatures: Iterable[OpSignature]) -> list[OpSignature]:
        """Those without a usable measurement."""
        return [s for s in signatures if s not in self.entries or not self.entries[s].usable]

    def require(self, space: SearchSpace) -> None:
        """Makes sure that every operator of a space has a measurement.

        Raises:
            MissingSignatureError: Says how many lack, the first of them, and the command that adds them.
        """
        needed = space.signatures()
        missing = self.missing(needed)
        if missing:
            options = " ".join(
                f"--{k.replace('_', '-')} {shlex.quote(str(v))}" for k, v in self._options(space).items()
            )
            path = shlex.quote(str(self.path or "TABLE.csv"))
            raise MissingSignatureError(
                f"latency table {self.name} lacks {len(missing)} of {len(needed)} signatures of space "
                f"'{space.name}' (first: {missing[0]}). Run 'hwnas profile {options} "
                f"--profiler {self.environment.runtime} --output {path}' to add them."
            )

    def _options(self, space: SearchSpace) -> dict[str, Any]:
        """What to tell 'hwnas profile' about the space and about the environment, where that is not the default."""
        here, usual = self.environment, Environment("", "", "")
        named = {name: getattr(here, name) for name in ("precision", "batch", "threads")}
        changed = {name: value for name, value in named.items() if value != getattr(usual, name)}
        target = {name: here.arguments[name] for name in ("device", "cores", "mode") if name in here.arguments}
        size = {name: space.options[name] for name in FLAGS if name in space.options}
        return {**spelled(space.name, space.options), **size, **target, **changed}

    def require_environment(self, here: Environment) -> None:
        """Refuses a table that was measured elsewhere.

        Raises:
            EnvironmentMismatchError: Names every field that differs.
        """
        differences = here.differences(self.environment)
        if differences:
            raise EnvironmentMismatchError(
                f"latency table {self.name} is from another environment: {'; '.join(differences)}. "
                "Profile this device with 'hwnas profile', or pass --other-device to search for that one "
                "(nothing is then measured here)."
            )

    def save(self, path: Path | str) -> LatencyTable:
        """Writes both files so that a kill at any moment leaves the old table or the new one.

        While the rows are being replaced the sidecar describes both; ``load`` takes what fits the rows.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = csv_path(path)
        sidecar, text = path.with_suffix(".json"), _to_csv(self.entries)
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "signature_version": SIGNATURE_VERSION,
            "num_rows": len(self.entries),
            "sha256": _hash(text),
            "environment": self.environment.to_dict(),
            "calibrations": dict(self.calibrations),
            "provenance": dict(self.provenance),
        }
        previous = {"previous": read_json(sidecar)} if path.exists() and sidecar.exists() else {}
        write_json(sidecar, document | previous)
        write_atomic(path, text)
        if previous:
            write_json(sidecar, document)
        return LatencyTable(self.environment, self.entries, self.calibrations, self.provenance, path)

    @classmethod
    def load(cls, path: Path | str) -> LatencyTable:
        """Reads a table and its sidecar.

        Raises:
            TableFormatError: A file is missing or malformed; names file and line.
            UnitError: The numbers look like seconds.
        """
        path = csv_path(path)
        sidecar = _read_sidecar(path.with_suffix(".json"))
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise TableFormatError(f"{path}: cannot be read ({error}). Expected a latency table in CSV.") from error
        previous = sidecar.get("previous")
        if isinstance(previous, dict) and previous.get("sha256") == _hash(text):
            sidecar = previous
        described = _described(path.with_suffix(".json"), sidecar)
        entries = _from_csv(path, text)
        if len(entries) != described["num_rows"]:
            raise TableFormatError(
                f"{path}:{len(entries) + 1}: {len(entries)} rows, but the sidecar says {described['num_rows']}: "
                "the table is truncated or was edited. Restore it, or profile again."
            )
        if _hash(text) != described["sha256"]:
            raise TableFormatError(
                f"{path}: the rows are not those that {path.with_suffix('.json').name} describes (hash differs): "
                "the table was edited. Restore it, or profile again."
            )
        _check_unit(path, entries)
        try:
            environment = Environment.from_dict(described["environment"])
        except TableFormatError as error:
            raise TableFormatError(f"{path.with_suffix('.json')}: {error} Restore it, or profile again.") from error
        return cls(environment, entries, described["calibrations"], described["provenance"], path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def csv_path(path: Path | str) -> Path:
    """The CSV of a table given by its CSV or sidecar.

    Raises:
        TableFormatError: The name ends in something else.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise TableFormatError(f"'{path}' is not a table name; expected it to end in .csv.")
    return path.with_suffix(".csv")


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        sidecar = read_json(path)
    except RunError as error:
        raise TableFormatError(
            f"{error} A latency table is a .csv with a .json of the same name beside it; 'hwnas profile' makes both."
        ) from error
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        raise TableFormatError(f'{path}: not the sidecar of a latency table (no "format": "{FORMAT}").')
    versions = (sidecar.get("format_version"), sidecar.get("signature_version"))
    if versions != (FORMAT_VERSION, SIGNATURE_VERSION):
        raise TableFormatError(
            f"{path}: format version {versions}; this hwnas reads {(FORMAT_VERSION, SIGNATURE_VERSION)}. "
            "Use the hwnas that wrote it, or profile again."
        )
    return sidecar


def _described(path: Path, sidecar: dict[str, Any]) -> Sidecar:
    try:
        return fitting(sidecar, Sidecar)
    except ValueError as error:
        raise TableFormatError(f"{path}: {error}. Restore it, or profile again.") from error


def _to_csv(entries: Mapping[OpSignature, Measurement]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for signature in sorted(entries, key=str):
        values = [getattr(entries[signature], column) for column in COLUMNS[1:]]
        writer.writerow([signature, *(repr(v) if isinstance(v, float) else v for v in values)])
    return buffer.getvalue()


def _from_csv(path: Path, text: str) -> dict[OpSignature, Measurement]:
    reader = csv.reader(io.StringIO(text))
    try:
        lines = list(reader)
    except csv.Error as error:
        raise TableFormatError(f"{path}:{reader.line_num}: cannot be read as CSV ({error}).") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise TableFormatError(f"{path}:1: the columns must be {', '.join(COLUMNS)}, in that order.")
    entries: dict[OpSignature, Measurement] = {}
    previous = ""
    for number, row in enumerate(lines[1:], start=2):
        try:
            signature, measurement = _parse_row(row)
        except (ValueError, SpaceError) as error:
            raise TableFormatError(f"{path}:{number}: {error}") from error
        if signature in entries:
            raise TableFormatError(f"{path}:{number}: '{signature}' stands twice. Keep one of the two rows.")
        if str(signature) < previous:
            raise TableFormatError(f"{path}:{number}: rows are out of order; they are sorted by signature.")
        entries[signature], previous = measurement, str(signature)
    if not entries:
        raise TableFormatError(f"{path}:1: the table has no rows. Profile again.")
    return entries


def _parse_row(row: list[str]) -> tuple[OpSignature, Measurement]:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} fields where {len(COLUMNS)} were expected; the row is truncated or torn.")
    cells = dict(zip(COLUMNS, row, strict=True))
    numbers: dict[str, float] = {}
    for column in ("ms", "p50_ms", "p90_ms", "spread"):
        try:
            numbers[column] = float(cells[column])
        except ValueError:
            raise ValueError(f"{column} is '{cells[column]}', not a number (decimal point, no unit).") from None
    if cells["status"] not in ("ok", "unstable", "failed"):
        raise ValueError(f"status is '{cells['status']}'; expected ok, unstable or failed.")
    if not cells["num_samples"].isdigit():
        raise ValueError(f"num_samples is '{cells['num_samples']}', not a count.")
    if cells["status"] != "failed":
        for column, value in numbers.items():
            if not 0 <= value <= SLOWEST_MS or (value == 0 and column != "spread"):
                raise ValueError(f"{column} is {cells[column]}; expected a positive, finite number.")
    return OpSignature.parse(cells["signature"]), Measurement(
        **numbers, num_samples=int(cells["num_samples"]), status=cells["status"], error=cells["error"]
    )


def _check_unit(path: Path, entries: Mapping[OpSignature, Measurement]) -> None:
    usable = [(signature, m.ms) for signature, m in entries.items() if m.usable]
    too_fast = [signature for signature, ms in usable if ms < FASTEST_MS or _macs(signature) / ms > MOST_MACS_PER_MS]
    if len(too_fast) * 2 > len(usable):
        raise UnitError(
            f"{path}: {len(too_fast)} of {len(usable)} latencies are faster than any device (first: {too_fast[0]}, "
            f"{entries[too_fast[0]].ms:g} ms). Are they in seconds? Expected milliseconds; multiply them by 1000."
        )


def _macs(signature: OpSignature) -> float:
    """Multiply-adds of one image; NaN for an operator of another project that has no formula here."""
    return macs(signature) if has_cost(signature) else math.nan
