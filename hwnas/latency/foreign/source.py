"""A file of another project: its text, complaints that name the line, and what is read from it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import SpaceError, TableFormatError
from hwnas.latency.measurement import MAX_SPREAD, Measurement
from hwnas.space import OpSignature, Shape

Where = int | str
"""A line number, or a JSON key that stands on that line."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A text file to import.

    Args:
        path: Where it was read from; every complaint names it.
        text: Its content.
    """

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Source:
        """Reads a file in UTF-8.

        Raises:
            TableFormatError: It is missing, unreadable or no text.
        """
        try:
            return cls(path, path.read_text(encoding="utf-8-sig"))  # Excel writes a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise TableFormatError(f"{path}: cannot be read ({error}). Expected a text file to import.") from error

    def error(self, where: Where, message: str) -> TableFormatError:
        """The complaint about one place."""
        if isinstance(where, str):  # the last one, for of two equal keys the second is wrong
            where = self.text.count("\n", 0, max(0, self.text.rfind(f'"{where}"'))) + 1
        return TableFormatError(f"{self.path}:{where}: {message} Nothing was imported.")

    def number(self, where: Where, name: str, text: object) -> float:
        """A finite number.

        Raises:
            TableFormatError: It is none; a decimal comma is recognised.
        """
        if not isinstance(text, str) or not _NUMBER.fullmatch(text.strip()):
            comma = isinstance(text, str) and re.fullmatch(r"[-+]?\d+,\d+", text.strip())
            hint = " with a decimal comma" if comma else ""
            raise self.error(
                where,
                f"{name} is '{text}'{hint}; expected a number with a decimal point and without a unit. Correct it.",
            )
        value = float(text)
        if not math.isfinite(value):
            raise self.error(where, f"{name} is {text}; expected a finite number. Correct it or leave the row out.")
        return value

    def latency(self, where: Where, name: str, text: object) -> float:
        """A positive number.

        Raises:
            TableFormatError: It is negative, zero or no number.
        """
        value = self.number(where, name, text)
        if value <= 0:
            raise self.error(
                where, f"{name} is {text}; a latency is greater than zero. Correct it or leave the row out."
            )
        return value

    def deviation(self, where: Where, name: str, text: object) -> float:
        """A number that is zero or positive.

        Raises:
            TableFormatError: It is negative or no number.
        """
        value = self.number(where, name, text)
        if value < 0:
            raise self.error(where, f"{name} is {text}; expected zero or more. Correct it.")
        return value

    def count(self, where: Where, name: str, text: str) -> int:
        """A positive whole number.

        Raises:
            TableFormatError: It is not.
        """
        if not text.isdecimal() or int(text) == 0:
            raise self.error(where, f"{name} is '{text}'; expected a whole number of at least 1. Correct it.")
        return int(text)

    def operator(
        self, where: Where, op: str, in_shape: Shape, out_shape: Shape, stride: int, **attributes: int | str
    ) -> OpSignature:
        """A signature whose shapes agree with its stride.

        Raises:
            TableFormatError: They do not.
        """
        made = OpSignature.create(op, in_shape, out_shape[0], stride=stride, **attributes) if stride else None
        if made is None or made.out_shape != out_shape:
            into, out = ("x".join(map(str, shape)) for shape in (in_shape, out_shape))
            raise self.error(where, f"stride {stride} does not lead from {into} to {out}. Correct the row.")
        return made

    def signature(self, where: Where, text: str) -> OpSignature:
        """A signature in its text form.

        Raises:
            TableFormatError: It is not in canonical form.
        """
        try:
            return OpSignature.parse(text)
        except SpaceError as error:
            raise self.error(where, str(error)) from error

    def json_pairs(self) -> list[tuple[str, Any]]:
        """The top-level object, repeated keys kept, nested objects as pairs too, numbers as text.

        Raises:
            TableFormatError: The file is not a JSON object.
        """
        try:
            pairs = json.loads(self.text, object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)
        except json.JSONDecodeError as error:
            raise self.error(
                error.lineno, f"not JSON ({error.msg}, column {error.colno}). Is it another format?"
            ) from error
        if not isinstance(pairs, list) or not self.text.lstrip().startswith("{"):
            raise self.error(1, "not a JSON object of operators. Is it another format?")
        return pairs


@dataclass
class Reading:
    """What a file holds, in its own unit.

    Args:
        source: The file.
        unit: ``ms``, ``us`` or ``s``; None where the file does not say.
        entries: Operators in order of appearance.
    """

    source: Source
    unit: str | None
    entries: dict[OpSignature, Measurement] = field(default_factory=dict)

    def add(self, where: Where, signature: OpSignature, measurement: Measurement) -> None:
        """Takes one operator.

        Raises:
            TableFormatError: It is already there.
        """
        if signature in self.entries:
            raise self.source.error(where, f"'{signature}' stands twice. Keep one of the two.")
        self.entries[signature] = measurement


def stated(latency: float, *, count: int = 0, deviation: float = 0.0) -> Measurement:
    """What a file says in one number, with what it says about its spread.

    ``p50_ms`` and ``p90_ms`` repeat the number, as no format states quantiles. ``num_samples`` is 0 where the
    number of runs is unknown; then ``spread`` is 0 and means nothing.

    Args:
        latency: In the file's unit.
        count: Number of runs.
        deviation: Standard deviation of a run, in the file's unit.

    Returns:
        ``spread`` is the standard error of the mean relative to it, ``deviation / sqrt(count) / latency``.
    """
    spread = deviation / math.sqrt(count) / latency if count else 0.0
    return Measurement(latency, latency, latency, spread, count, _status(spread))


def pooled(latencies: Sequence[float]) -> Measurement:
    """Mean of what a file says about the same operator at several places, with the quantiles over these places."""
    values = np.asarray(latencies, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    p50, p90 = (float(q) for q in np.quantile(values, (0.5, 0.9)))
    spread = float(values.std(ddof=1)) / math.sqrt(count) / mean if count > 1 else 0.0
    return Measurement(mean, p50, p90, spread, count, _status(spread))


def _status(spread: float) -> str:
    return "unstable" if spread > MAX_SPREAD else "ok"
