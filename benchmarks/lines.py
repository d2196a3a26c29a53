"""Results that are printed and, if asked for, kept in a file, line by line."""

from __future__ import annotations

from pathlib import Path


class Lines:
    """Prints lines; a file holds those of this run as they come.

    Args:
        path: The file, replaced if it exists; None for none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")

    def __call__(self, line: str) -> None:
        """One line."""
        print(line, flush=True)  # noqa: T201
        if self._path:
            with self._path.open("a") as file:
                file.write(line + "\n")
