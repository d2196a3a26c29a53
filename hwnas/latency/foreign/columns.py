"""Any CSV with named columns.

The operator is one column, ``signature``, or the columns ``op``, ``input``, ``output`` (CxHxW), ``stride`` and, if
there are any, ``attributes`` (such as ``k5 e6 r1``). The latency is the column ``latency_ms``, ``ms``, ``latency_us``,
``us``, ``latency_s``, or ``latency`` with the unit given apart. ``num_samples`` and ``std`` (a run's standard
deviation, in the unit of the latency) are optional. Any other column is refused, for it might tell operators apart.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from hwnas.latency.foreign.source import Reading, Source, stated

STATISTIC = (
    "ms is the file's latency; p50 and p90 repeat it; spread is the standard error, relative, where it is stated"
)

LATENCIES = {"latency_ms": "ms", "ms": "ms", "latency_us": "us", "us": "us", "latency_s": "s", "latency": None}
"""Column -> unit."""

_PARTS = ("op", "input", "output", "stride")
_OPTIONAL = ("attributes", "num_samples", "std")


def read(source: Source) -> Reading:
    """Reads the file.

    Raises:
        TableFormatError: The columns do not say enough, or a row is malformed; names file and line.
    """
    rows = _rows(source)
    line, header = next(rows, (1, []))
    latency = _latency_column(source, line, [name.strip() for name in header])
    reading = Reading(source, LATENCIES[latency])
    for number, row in rows:
        if len(row) != len(header):
            raise source.error(
                number, f"{len(row)} fields where {len(header)} were expected. A row cut short, or a decimal comma?"
            )
        cells = {name.strip(): cell.strip() for name, cell in zip(header, row, strict=True)}
        count = source.count(number, "num_samples", cells["num_samples"]) if "num_samples" in cells else 0
        deviation = source.deviation(number, "std", cells["std"]) if "std" in cells else 0.0
        signature = source.signature(number, cells.get("signature") or _signature_text(cells))
        value = source.latency(number, latency, cells[latency])
        reading.add(number, signature, stated(value, count=count, deviation=deviation))
    return reading


def _rows(source: Source) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(source.text), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise source.error(reader.line_num, f"cannot be read as CSV ({error}).") from error


def _latency_column(source: Source, line: int, header: list[str]) -> str:
    """Checks the header; returns the column of the latency."""
    latencies = [name for name in header if name in LATENCIES]
    operator = ("signature",) if "signature" in header else _PARTS
    known = {*operator, *_OPTIONAL, *LATENCIES} - ({"attributes"} if "signature" in header else set())
    missing = [name for name in operator if name not in header]
    problem = ""
    if len(set(header)) != len(header):
        problem = "a column stands twice"
    elif len(header) == 1 and ";" in header[0]:
        problem = "fields are separated by ';', and expected is ','"
    elif missing:
        problem = f"no column '{missing[0]}'; an operator is 'signature' or {', '.join(_PARTS)}"
    elif len(latencies) != 1:
        problem = f"{len(latencies)} columns of latencies; expected one of {', '.join(LATENCIES)}"
    elif "std" in header and "num_samples" not in header:
        problem = "'std' says nothing without 'num_samples'"
    elif unknown := [name for name in header if name not in known]:
        problem = f"column '{unknown[0]}' is not known; write what tells operators apart into 'attributes'"
    if problem:
        raise source.error(line, f"{problem}. Change the header.")
    return latencies[0]


def _signature_text(cells: dict[str, str]) -> str:
    words = [cells["op"], cells.get("attributes", ""), f"s{cells['stride']}", cells["input"], "->", cells["output"]]
    return " ".join(filter(None, words))
