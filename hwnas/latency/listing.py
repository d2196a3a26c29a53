"""A latency table as text: operators in groups, a bar each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from hwnas.latency.table import LatencyTable
from hwnas.space import OpSignature

MIN_WIDTH = 60
"""Columns of a terminal; on a narrower one lines wrap."""

NUM_FAILED = 5
"""Failed entries that are written out."""

EIGHTHS = " ▏▎▍▌▋▊▉"


def listing(table: LatencyTable, *, limit: int, width: int) -> list[str]:
    """Lines that show a table, the slowest operators first.

    Operators of one family and one shape stand together under a heading. A row has the attributes, a bar as long as
    the latency, milliseconds, how far the latency may be off (``spread``) and the share of the sum of all entries.

    Args:
        table: What to show.
        limit: Most operators to show; the last lines say how many were left out.
        width: Columns of the terminal.
    """
    measured = sorted(
        ((s, entry) for s, entry in table.entries.items() if entry.usable), key=lambda each: (-each[1].ms, str(each[0]))
    )
    shown = measured[:limit]
    lines: list[str] = []
    if shown:
        total, longest = math.fsum(entry.ms for _, entry in measured), shown[0][1].ms
        width = max(width, MIN_WIDTH)
        label = min(max(len(_attributes(s)) for s, _ in shown), 2 * width // 5)
        bar = width - label - 37
        lines.append(f"{'':{label + bar + 3}}{'ms':>9}  {'spread':<14} {'share':>7}")
        # sorted is stable: the group with the slowest operator first, and the slowest first in each
        first = {
            heading: position for position, (s, _) in reversed(list(enumerate(shown))) for heading in [_heading(s)]
        }
        ordered = sorted(shown, key=lambda each: first[_heading(each[0])])
        for heading, rows in groupby(ordered, key=lambda each: _heading(each[0])):
            lines.append(heading)
            for signature, entry in rows:
                name = _shortened(_attributes(signature), label)
                lines.append(
                    f"  {name:<{label}} {_bar(entry.ms / longest, bar)}{entry.ms:>9.4g}  {_steadiness(entry):<14} "
                    f"{entry.ms / total:>7.2%}"
                )
    if len(measured) > len(shown):
        lines.append(f"{len(measured) - len(shown):,} faster operators are not shown; --limit shows more")
    return [*lines, *_failures(table)]


def facts(document: Mapping[str, Any]) -> list[str]:
    """A line for each fact that a document states, and one for each element of a list."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in document.items()}
    return [f"{name}: {text}" for name, values in lists.items() for text in map(_plain, values) if text]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        stated = {name: _plain(each) for name, each in value.items()}
        return ", ".join(f"{name} {text}" for name, text in stated.items() if text)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _heading(signature: OpSignature) -> str:
    shapes = ("x".join(map(str, shape)) for shape in (signature.in_shape, signature.out_shape))
    return " ".join([signature.op, f"s{signature.stride}", " -> ".join(shapes)])


def _attributes(signature: OpSignature) -> str:
    return str(signature).removeprefix(signature.op).split(f" s{signature.stride} ")[0].strip()


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _bar(share: float, width: int) -> str:
    eighths = max(1, round(8 * width * share))
    return f"{'█' * (eighths // 8)}{EIGHTHS[eighths % 8]}"[:width].ljust(width)


def _steadiness(entry: Any) -> str:
    """``spread`` in percent, and the status where it is not ``ok``; a dash where nobody counted the runs."""
    spread = f"{entry.spread:.1%}" if entry.num_samples else "-"
    return spread if entry.status == "ok" else f"{spread} {entry.status}"


def _failures(table: LatencyTable) -> Iterator[str]:
    failed = [(s, entry) for s, entry in table.entries.items() if not entry.usable]
    for signature, entry in failed[:NUM_FAILED]:
        yield f"failed: {signature}: {entry.error}"
    if len(failed) > NUM_FAILED:
        yield f"and {len(failed) - NUM_FAILED:,} more that failed"
