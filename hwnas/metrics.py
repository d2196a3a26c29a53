"""Logs of long work: JSON lines to read back, TensorBoard to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hwnas.errors import OutputError
from hwnas.files import write_atomic

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done and steps in all."""


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


class RunLog:
    """One JSON object a step in ``NAME.jsonl``, its scalars in TensorBoard under ``tensorboard/NAME``.

    Args:
        folder: Run folder.
        name: Of the work: ``search`` or ``training``.
        start_step: Entries from this step on are dropped first, so that a resumed run has no duplicates.
    """

    def __init__(self, folder: Path, name: str, *, start_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / f"{name}.jsonl"
        kept = [entry for entry in read_log(self.path) if entry["step"] < start_step]
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        try:
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start_step)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}.") from error

    def add(self, step: int, entry: Mapping[str, Any]) -> None:
        """Records one step; numbers go to TensorBoard too."""
        self._file.write(json.dumps({"step": step, **entry}) + "\n")
        self._file.flush()
        for key, value in entry.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a log; a last line cut short by a kill is dropped, a missing file is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
