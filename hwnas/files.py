"""Files that are replaced whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hwnas.errors import OutputError, RunError


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
    """Reads a JSON file.

    Raises:
        RunError: The file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist. Run the step that writes it first.") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as JSON ({error}). Restore it or run the step again.") from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
