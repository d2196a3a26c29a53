"""Files that are replaced whole or not at all."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from hwnas.errors import OutputError, RunError

MOST_BYTES = 2**28
"""No document or table comes near; a larger file is something else."""

DEEPEST = 32
"""Levels of nesting that no document needs and that every walk through one survives."""


def write_atomic(path: Path | str, content: str | bytes) -> Path:
    """Writes beside the target, flushes to disk, then renames; readers see the old file or the new one.

    Raises:
        OutputError: The folder cannot be created or written to, or the disk is full.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Choose an output in a folder you can write to."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path | str, document: Any) -> Path:
    """Writes a document as indented JSON, atomically; NaN and infinity are refused."""
    return write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file that hwnas wrote; see ``parse_json`` for what else is refused.

    Raises:
        RunError: The file is missing, unreadable or not such JSON.
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist. Run the step that writes it first.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error}). Restore it or run the step again.") from error


def read_text(path: Path | str, *, most_bytes: int = MOST_BYTES) -> str:
    """Text of a document or a table, or of a log, which may be larger.

    Raises:
        OSError: It is missing, unreadable or, like a pipe, no ordinary file.
        ValueError: It is larger than any of them, or not UTF-8.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no ordinary file")
    if status.st_size > most_bytes:
        raise ValueError(f"{status.st_size} bytes; at most {most_bytes} were expected")
    return path.read_text(encoding="utf-8")


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Reads JSON that may have been written by somebody else.

    Args:
        text: What to read.
        finite: Refuse NaN and infinity.

    Raises:
        ValueError: It is no JSON, nested deeper than ``DEEPEST``, repeats a key of an object, holds a number that
            is not finite or a string that is no text.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_unrepeated,
            parse_constant=_refuse if finite else None,
            parse_float=_finite if finite else None,
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels") from None
    level, depth = [document], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level, depth = [child for children in inside for child in children], depth + 1
    if _ESCAPED_SURROGATE.search(text):
        json.dumps(document, ensure_ascii=False).encode()  # half a character has no encoding: a ValueError
    return document


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    return value if abs(value) < float("inf") else _refuse(f"{number:.80}")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
