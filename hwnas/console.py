"""What the command line prints: progress bars on a terminal, plain lines elsewhere, drawings of networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hwnas.space import NONE

if TYPE_CHECKING:
    from hwnas.latency.model import LatencyModel
    from hwnas.metrics import Figures
    from hwnas.space import Architecture, SearchSpace

# Of the processes that torchrun started, the first one speaks; errors are said by whoever has them.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Say = Callable[[str], None]
"""Told one line."""

LINE_SECONDS = 10.0
"""Where there is no terminal, news at most this often, and at the end of every piece of work."""


class Reporter:
    """A progress callback: ``reporter(what, done, total)``, or with figures ``reporter.show(...)``."""

    def __init__(self) -> None:
        self._bars = _Bars(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal or console.quiet,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._last: dict[str, int] = {}
        self._said = 0.0
        self._what, self._figures = "", dict[str, float]()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` steps of ``what`` are done."""
        self.show(what, done, total, {})

    def show(self, what: str, done: int, total: int, figures: Figures) -> None:
        """The same with figures; one that is not given keeps its last value, as long as the work goes on."""
        if what != self._what or done < self._last[what]:
            self._what, self._figures = what, {}
        self._figures |= figures
        if console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.below = figures_line(self._figures)
            self._bars.update(self._tasks[what], completed=done, total=total)
        else:
            self._say(what, done, total)
        self._last[what] = done

    def _say(self, what: str, done: int, total: int) -> None:
        """Prints a line now and then, and the figures in a line below it."""
        now = time.monotonic()
        if what not in self._started or done < self._last[what]:
            self._started[what] = now, done
        started, first = self._started[what]
        if done < total and now - max(self._said, started) <= LINE_SECONDS:
            return
        left = (now - started) / max(1, done - first) * (total - done)
        console.print(f"{what} {done}/{total}" + (f", about {left:.0f} s left" if done < total else ""))
        if self._figures:
            console.print(f"  {figures_line(self._figures)}", markup=False)
        self._said = now


class _Bars(Progress):
    """Progress bars with a line below them, cut to the width of the terminal."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """See ``Progress``."""
        yield from super().get_renderables()
        if self.below:
            yield Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")


def figures_line(figures: Figures) -> str:
    """The figures of a step that are worth watching, in at most 80 columns unless they are huge.

    Example:
        >>> figures_line({"weight_loss": 1.5, "expected_ms": 12.31, "target_ms": 20.0, "memory_mib": 812.4})
        'loss 1.50, 12.3 of 20 ms, 812 MiB'
    """
    target = f" of {_short(figures['target_ms'])}" if "target_ms" in figures else ""
    texts: dict[str, Callable[[float], str]] = {
        **dict.fromkeys(("weight_loss", "loss"), "loss {:.2f}".format),
        **dict.fromkeys(("weight_accuracy", "accuracy"), "acc {:.1%}".format),
        "best_accuracy": "best acc {:.1%}".format,
        **dict.fromkeys(("expected_ms", "exact_ms"), lambda ms: f"{_short(ms)}{target} ms"),
        "entropy": "entropy {:.2f}".format,
        "images_per_second": lambda speed: f"{_short(speed)} images/s",
        "memory_mib": lambda mib: f"{mib:.0f} MiB" if mib < 10_000 else f"{mib / 1024:.1f} GiB",
    }
    return ", ".join(text(figures[name]) for name, text in texts.items() if name in figures)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def draw(space: SearchSpace, architecture: Architecture) -> str:
    """The network as text: a line a layer, a bar as wide as its channels; below, how many do nothing."""
    operators, _ = space.network(architecture)
    layers = [layer for layer in space.layers if layer.name in operators and operators[layer.name].op != NONE]
    shown = [layer for layer in layers if not layer.is_node]
    none = sum(op.op == NONE for op in space.operators(architecture))
    widest = max(operators[layer.name].out_shape[0] for layer in shown)
    lines = []
    for layer in shown:
        op = operators[layer.name]
        bar = "█" * max(1, round(24 * op.out_shape[0] / widest)) if op.op != "skip" else "│"
        option = architecture[layer.choices[0]] if layer.choices else op.op
        shape = "x".join(map(str, op.out_shape))
        lines.append(f"  {layer.name:<16} {option:<11} {shape:>10}  {bar}")
    if none or len(shown) < len(layers):
        lines.append(f"  not shown: {len(layers) - len(shown)} nodes, which add up or join, and {none} edges of none")
    return "\n".join(lines)


def rows(title: str, header: tuple[str, ...], body: list[tuple[str, ...]]) -> None:
    """Prints a small table."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))  # as Text, since '[extra]' would be read as markup
    console.print(table)


def say_error(model: LatencyModel, say: Say) -> None:
    """States how well the table predicts whole networks, loudly if badly."""
    say(f"   held-out error of the table: {model.error or 'unknown, no network was measured'}")
    for name, error in (model.baselines or {}).items():
        say(f"   {name} for comparison: {error}")
    if model.error is None:
        say(
            "   WARNING: the sum of operators is corrected by no network of this space, and mostly off. Profile it "
            "with the same --space and options into this table, which adds networks."
        )
    elif model.poor:
        say(
            "   WARNING: this table predicts whole networks poorly. Close other programs, then profile again "
            "with more --rounds and --networks."
        )


def say_proof(proof: dict[str, Any], say: Say) -> None:
    """States numerics and latency of the exported files."""
    from hwnas.latency.measurement import said_slowdown

    numerics, latency = proof["numerics"], proof["latency"]
    accuracy = f"{numerics['accuracy_pytorch']:.1%}"
    say(f"   verified on {numerics['num_images']} held-out images, of which PyTorch names {accuracy}:")
    for each in proof["files"]:
        numerics, times = each["numerics"], each["latency"]
        say(
            f"   {each['file']:<17} {each['bytes'] / 2**20:6.2f} MiB, largest difference "
            f"{numerics['max_difference']:.1e}, cosine {numerics['mean_cosine']:.4f}, agrees on "
            f"{numerics['top1_agreement']:.1%}, accuracy {numerics['accuracy_exported']:.1%}, "
            f"{times['measured_ms']:.3f} ms"
        )
        if each["note"]:
            say(f"     {each['note']}")
    for each in proof["not_run"]:
        say(f"   {each['file']:<17} {each['bytes'] / 2**20:6.2f} MiB, not run: {each['reason']}")
    promised = f"   target {latency['target_ms']:.3f} ms | predicted {latency['predicted_ms']:.3f} ms | "
    if latency["measured_ms"] is None:
        say(f"{promised}not measured: this is not the table's device. Verify the run there, too")
        return
    say(
        f"{promised}measured {latency['measured_ms']:.3f} ms (p50 {latency['p50_ms']:.3f}, "
        f"p90 {latency['p90_ms']:.3f}, p99 {latency['p99_ms']:.3f}): {'met' if latency['met'] else 'MISSED'}"
        f"{said_slowdown(latency['slowdown'])}"
    )
