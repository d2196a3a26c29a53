"""A run as one page to read, and as one document for programs."""

from __future__ import annotations

from pathlib import Path

from hwnas.files import write_atomic, write_json
from hwnas.run import RunFolder

from .data import collect
from .page import page


def report(run_path: Path | str) -> Path:
    """Writes ``report.html`` and ``report.json`` into a run folder.

    The page is self-contained: it loads nothing and needs no script. Every number on it stands unrounded in
    the document. Steps not done yet are named with the command that does them.

    Args:
        run_path: A run whose search has finished.

    Returns:
        The path of ``report.html``.

    Raises:
        RunError: It is no run folder, its search has not finished, or one of its files is damaged.
        OutputError: The folder cannot be written.
    """
    run = RunFolder.open(run_path)
    document = collect(run)
    content = page(document)
    write_json(run.file("report.json"), document)
    return write_atomic(run.file("report.html"), content)
