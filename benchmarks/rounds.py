"""Run times of operators and networks, all in turns."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.console import Reporter
from hwnas.latency.items import Item, models_for
from hwnas.plugins import Profiler


def timed(items: Sequence[Item], profiler: Profiler, *, num_rounds: int, visit_ms: float) -> list[list[list[float]]]:
    """Milliseconds of every run, for every item and round; every other round goes backwards."""
    models = zip(items, models_for(items, profiler), strict=True)
    sessions = [profiler.prepare(model, item.input_shape) for item, (model, _) in models]
    samples: list[list[list[float]]] = [[] for _ in items]
    with Reporter() as progress:
        for number in range(num_rounds):
            for index in range(len(items))[:: 1 if number % 2 == 0 else -1]:
                samples[index].append(sessions[index].time_ms(budget_ms=visit_ms))
            progress("measuring", number + 1, num_rounds)
    return samples
