"""One point of a search space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from hwnas.errors import ArchitectureError


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
            document = json.loads(text)
            return cls(str(document["space"]), tuple((str(k), str(v)) for k, v in document["options"].items()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArchitectureError(
                'not an architecture; expected JSON like {"space": "tiny-mbconv", "options": {"layer1": "k3_e3"}}.'
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> Architecture:
        """Reads an architecture file; see ``from_json``."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ArchitectureError as error:
            raise ArchitectureError(f"{path}: {error}") from error
