"""What is said about long work while it goes on: progress, logs to read back, TensorBoard to look at."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO, runtime_checkable

import numpy as np
import numpy.typing as npt

from hwnas.errors import OutputError, RunError
from hwnas.files import parse_json, read_text, write_atomic

if TYPE_CHECKING:
    import torch

Figures = Mapping[str, float]
"""Name -> value of one step, such as ``weight_loss``."""

NO_FIGURES: Figures = MappingProxyType({})


class Progress(Protocol):
    """Called with what is being done, steps done and steps in all; any function of three arguments will do."""

    def __call__(self, what: str, done: int, total: int, /) -> None:
        """Takes note."""


@runtime_checkable
class ShowsFigures(Protocol):
    """A progress callback that shows figures too; where there are some, ``show`` is called instead of it."""

    def show(self, what: str, done: int, total: int, figures: Figures) -> None:
        """Shows how far the work is; a figure that is not given keeps its last value."""


def no_progress(what: str, done: int, total: int) -> None:
    """Says nothing."""


class Meter:
    """Tells a progress callback about every step, with its figures and with what it costs.

    Args:
        progress: Is given the figures if it is a ``ShowsFigures``.
        what: Name of the work.
        images_per_step: Over all ranks.
        device: Whose memory is meant; the CPU's is that of this process.
        target_ms: What latencies are held against, if they are.
        window: Steps that the speed is a mean over.
    """

    def __init__(
        self,
        progress: Progress,
        what: str,
        *,
        images_per_step: int,
        device: torch.device,
        target_ms: float | None = None,
        window: int = 50,
    ) -> None:
        self._progress, self._what, self._images, self._device = progress, what, images_per_step, device
        self._constant = {} if target_ms is None else {"target_ms": target_ms}
        self._ends = deque([time.monotonic()], maxlen=window + 1)

    def __call__(self, done: int, total: int, figures: Figures = NO_FIGURES) -> None:
        """Counts a step that has just ended."""
        self._ends.append(time.monotonic())
        if isinstance(self._progress, ShowsFigures):
            self._progress.show(self._what, done, total, {**figures, **self._constant, **self.costs()})
        else:
            self._progress(self._what, done, total)

    def costs(self) -> dict[str, float]:
        """``images_per_second`` of the last steps, and ``memory_mib``: the most that was in use so far."""
        seconds, memory = self._ends[-1] - self._ends[0], _peak_mib(self._device)
        speed = {"images_per_second": self._images * (len(self._ends) - 1) / seconds} if seconds else {}
        return speed | ({} if memory is None else {"memory_mib": memory})


class RunLog:
    """Figures of long work: JSON lines for machines, TensorBoard for people.

    =================== =========================================================================================
    NAME.jsonl          one object a step, the same bytes in every repetition on a CPU, interrupted or not
    NAME-speed.jsonl    what the steps cost in time and memory, which no repetition repeats: hence a file apart
    tensorboard/NAME    the scalars of both; heat maps of the probabilities; histograms of the sampled latencies
    =================== =========================================================================================

    Args:
        folder: Run folder.
        name: Of the work: ``search`` or ``training``.
        start_step: Entries from this step on are dropped first, so that a resumed run has no duplicates.
        picture_every: Entries from one heat map and histogram to the next; there is one more at the end.
    """

    def __init__(self, folder: Path, name: str, *, start_step: int = 0, picture_every: int = 20) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / f"{name}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = _Lines(self.path, start_step)
            self._lines.open()
            self._costs = _Lines(folder / f"{name}-speed.jsonl", start_step)
            self._board = SummaryWriter(str(folder / "tensorboard" / name), purge_step=start_step)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}.") from error
        self._picture_every, self._sampled = picture_every, list[float]()
        self._unpictured: tuple[int, Mapping[str, Sequence[float]]] | None = None

    def sample(self, figures: Figures) -> None:
        """Keeps the ``sampled_ms`` of a step, if it has one, for the next histogram."""
        if "sampled_ms" in figures:
            self._sampled.append(figures["sampled_ms"])

    def add(self, step: int, entry: Mapping[str, Any], costs: Figures = NO_FIGURES) -> None:
        """Records one step; what is a ``float`` goes to TensorBoard too.

        Args:
            step: Its number.
            entry: What a repetition finds again; ``probabilities``, choice name -> values, are drawn.
            costs: Time and memory.
        """
        self._lines.add({"step": step, **entry})
        if costs:
            self._costs.add({"step": step, **costs})
        for key, value in {**entry, **costs}.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, step)
        self._unpictured = step, entry.get("probabilities") or {}
        if (self._lines.count - 1) % self._picture_every == 0:
            self._draw()

    def _draw(self) -> None:
        """Pictures of what has come since the last ones."""
        if self._unpictured is None:
            return
        step, probabilities = self._unpictured
        if probabilities:
            picture = heat_map(list(probabilities.values()))
            self._board.add_image("probabilities/heat_map", picture, step, dataformats="HWC")
        if self._sampled:
            self._board.add_histogram("sampled_ms/histogram", np.asarray(self._sampled), step)
        self._sampled, self._unpictured = [], None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._lines.close()
        self._costs.close()
        self._board.close()


class _Lines:
    """A file of JSON lines, without those of the steps that will be done again; opened by its first line."""

    def __init__(self, path: Path, start_step: int) -> None:
        kept = [entry for entry in read_log(path) if entry["step"] < start_step]
        self.count, self._path = len(kept), path
        self._file: TextIO | None = None
        if path.exists():
            write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def open(self) -> TextIO:
        """The file, to append to."""
        self._file = self._file or self._path.open("a", encoding="utf-8")
        return self._file

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes one line, at once."""
        file = self.open()
        file.write(json.dumps(entry) + "\n")
        file.flush()
        self.count += 1

    def close(self) -> None:
        """Closes the file, if there was a line."""
        if self._file:
            self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a log; a last line cut short by a kill is dropped, a missing file is empty.

    Raises:
        RunError: Another line is no entry; names it.
    """
    try:
        text = read_text(path, most_bytes=2**32)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is no log ({error}). Delete it to start over.") from error
    entries = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            entry = parse_json(line, finite=False)
            if not isinstance(entry, dict) or type(step := entry.get("step")) is not int or not 0 <= step < 2**53:
                raise ValueError("it has no step")
            entries.append(entry)
        except ValueError as error:
            raise RunError(f"line {number} of {path} is no entry of a log ({error}). Delete that line.") from error
    return entries


def heat_map(rows: Sequence[Sequence[float]], *, cell: int = 16) -> npt.NDArray[np.uint8]:
    """Probabilities as a picture: white is 0, blue is 1, and grey an option that the choice does not have.

    Args:
        rows: For every choice, from the top, the probability of every option, from 0 to 1.
        cell: Pixels of a square, with its border to the right and below.

    Returns:
        Of shape ``(len(rows) * cell, most options * cell, 3)``.
    """
    shades = np.full((len(rows), max(map(len, rows))), np.nan)
    for shade, row in zip(shades, rows, strict=True):
        shade[: len(row)] = row
    colours = np.where(np.isnan(shades)[..., None], _GREY, _WHITE + (_BLUE - _WHITE) * shades[..., None])
    picture = colours.round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1)
    picture[cell - 1 :: cell] = picture[:, cell - 1 :: cell] = _GREY
    return picture


_WHITE, _GREY, _BLUE = (np.asarray(colour, float) for colour in ((255, 255, 255), (160, 160, 160), (8, 48, 107)))


def _peak_mib(device: torch.device) -> float | None:
    """The most memory so far: on a GPU that of PyTorch's tensors, else that of this process, where it can be known."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
