"""What the command line prints: progress bars on a terminal, plain lines elsewhere, drawings of networks."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hwnas.space import Architecture, SearchSpace

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

LINE_SECONDS = 10.0
"""Where there is no terminal, a line at most this often, and one at the end of every piece of work."""


class Reporter:
    """A progress callback: ``reporter(what, done, total)``."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}
        self._said = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` steps of ``what`` are done."""
        if console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
            return
        now = time.monotonic()
        if what not in self._started or done < self._last[what]:
            self._started[what] = now, done
        self._last[what] = done
        started, first = self._started[what]
        if done >= total or now - max(self._said, started) > LINE_SECONDS:
            left = (now - started) / max(1, done - first) * (total - done)
            console.print(f"{what} {done}/{total}" + (f", about {left:.0f} s left" if done < total else ""))
            self._said = now


def draw(space: SearchSpace, architecture: Architecture) -> str:
    """The network as text: one line a layer, a bar as wide as the layer's channels."""
    operators = space.operators(architecture)
    widest = max(op.out_shape[0] for op in operators)
    lines = []
    for layer, op in zip(space.layers, operators, strict=True):
        bar = "█" * max(1, round(24 * op.out_shape[0] / widest)) if op.op != "skip" else "│"
        option = architecture[layer.choices[0]] if layer.choices else op.op
        shape = "x".join(map(str, op.out_shape))
        lines.append(f"  {layer.name:<16} {option:<11} {shape:>10}  {bar}")
    return "\n".join(lines)


def rows(title: str, header: tuple[str, ...], body: list[tuple[str, ...]]) -> None:
    """Prints a small table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))  # as Text, since '[extra]' would be read as markup
    console.print(table)
