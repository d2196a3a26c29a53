"""Raw samples of a sweep in progress, one line a visit, so that a killed sweep goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hwnas.documents import Begun, Failed, Visited, fitting
from hwnas.errors import EnvironmentMismatchError, OutputError, RunError
from hwnas.files import parse_json
from hwnas.latency.environment import Environment

FORMAT = "hwnas-sweep-journal-1"

JOURNAL = ".partial.jsonl"
"""Ending of the journal beside a table."""


class Journal:
    """Append-only JSON lines beside the table; a line cut short by a crash is dropped on the next start.

    Use it as a context manager: it holds a lock, so two sweeps never write one table.

    Args:
        path: The journal's file.
        environment: Where this sweep measures; a journal from another environment is refused.
        plan: What decides the meaning of a visit (space, rounds, seed); a journal of another plan is refused.

    Raises:
        RunError: Another sweep is writing the same table, or the journal belongs to another plan.
        EnvironmentMismatchError: The interrupted sweep ran elsewhere.
        OutputError: The folder cannot be written.
    """

    def __init__(self, path: Path, environment: Environment, plan: Mapping[str, Any]) -> None:
        self.path = path
        self._environment, self._plan = environment, dict(plan)
        self.samples: dict[str, dict[int, list[float]]] = defaultdict(dict)
        self.failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}. Choose an output in a folder you can write to."
            ) from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def done(self, key: str, visit: int) -> bool:
        """Whether more visits than that number are on record, or the item is known to fail."""
        return len(self.samples[key]) > visit or key in self.failures

    def add(self, key: str, visit: int, samples_ms: list[float]) -> None:
        """Records one visit durably; a second one of the same number is added to the first."""
        rounded = [round(sample, 6) for sample in samples_ms]  # nanoseconds; the same numbers after a resume
        self.samples[key].setdefault(visit, []).extend(rounded)
        self._write({"key": key, "visit": visit, "ms": rounded})

    def fail(self, key: str, error: str) -> None:
        """Records that an item cannot be measured."""
        self.failures[key] = error
        self._write({"key": key, "failed": error})

    def remove(self) -> None:
        """Deletes the journal; the table has taken its place."""
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another sweep is writing {self.path}. Wait for it, or choose another output.") from error

    def _write(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}. Free some space and resume.") from error

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.readall()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self._file.truncate(len(whole))
        lines = [self._parsed(line, number) for number, line in enumerate(whole.splitlines(), start=1)]
        if not lines:
            self._write({"format": FORMAT, "environment": self._environment.to_dict(), "plan": self._plan})
            return
        self._check(lines[0])
        for line in lines[1:]:
            if "failed" in line:
                self.failures[line["key"]] = line["failed"]
            else:
                self.samples[line["key"]].setdefault(line["visit"], []).extend(line["ms"])

    def _parsed(self, line: bytes, number: int) -> Any:
        try:
            document = fitting(parse_json(line.decode()), dict[str, Any])
            return fitting(document, Begun if number == 1 else Failed if "failed" in document else Visited)
        except ValueError as error:
            raise RunError(f"{self.path}:{number}: not a line of a sweep journal ({error}). {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return f"Delete {self.path} to start over, or choose another output."

    def _check(self, header: Mapping[str, Any]) -> None:
        if header["format"] != FORMAT or header["plan"] != self._plan:
            raise RunError(f"{self.path} is an interrupted sweep of something else. {self._remedy}")
        differences = self._environment.differences(Environment.from_dict(header["environment"]))
        if differences:
            raise EnvironmentMismatchError(
                f"{self.path} is an interrupted sweep from another environment: {'; '.join(differences)}. "
                f"{self._remedy}"
            )


def record_failure(path: Path, key: str, error: str) -> None:
    """Adds to the journal of a sweep that died that an item cannot be measured.

    A line that the death cut short is dropped first.
    """
    with path.open("r+b") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(json.dumps({"key": key, "failed": error}).encode() + b"\n")
        os.fsync(file.fileno())
