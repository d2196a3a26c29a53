"""Results kept line by line, so that a benchmark goes on where it stopped; and recipes by a short name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Rows:
    """Results in a file of JSON lines.

    Args:
        path: The file; made with the first row.
    """

    path: Path

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a row and prints it."""
        print(row, flush=True)  # noqa: T201
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def all(self, **wanted: Any) -> list[dict[str, Any]]:
        """The rows with these values."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [json.loads(line) for line in lines]
        return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]


def parsed(label: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of ``NAME`` or ``NAME:KEY=VALUE,...``."""
    name, _, settings = label.partition(":")
    pairs = (each.split("=", 1) for each in settings.split(",") if each)
    return name, {key: _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
