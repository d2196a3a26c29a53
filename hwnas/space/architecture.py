"""One point of a search space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hwnas.documents import ArchitectureDocument, fitting
from hwnas.errors import ArchitectureError
from hwnas.files import parse_json, read_text


@dataclass(frozen=True)
class Architecture:
    """One option per choice; hashable, JSON in and out, with a short stable id.

    Args:
        space: Name of the space it belongs to.
        options: Pairs of choice name and option name, in the order of the space.

    Example:
        >>> a = Architecture("toy", (("layer1", "k3"), ("layer2", "skip")))
        >>> Architecture.from_json(a.to_json()) == a
        True
    """

    space: str
    options: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that depend on the space's name and the options only."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:8]

    def __getitem__(self, choice: str) -> str:
        return dict(self.options)[choice]

    def to_json(self) -> str:
        """Text form; equal architectures give equal text."""
        return json.dumps({"space": self.space, "options": dict(self.options)})

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Reads the text form.

        Raises:
            ArchitectureError: The text is not an architecture.
        """
        try:
            document = fitting(parse_json(text), ArchitectureDocument)
        except ValueError as error:
            raise ArchitectureError(
                f"not an architecture: {error}; expected JSON like "
                '{"space": "tiny-mbconv", "options": {"layer1": "k3_e3"}}.'
            ) from error
        return cls(document["space"], tuple(document["options"].items()))

    @classmethod
    def load(cls, path: Path | str) -> Architecture:
        """Reads an architecture file.

        Raises:
            ArchitectureError: It cannot be read, or is no architecture.
        """
        try:
            return cls.from_json(read_text(path))
        except (OSError, ValueError) as error:
            raise ArchitectureError(f"{path}: {error}") from error
