"""Timing one model that is ready to deploy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from hwnas.errors import MeasurementError
from hwnas.latency.measurement import Measurement, summarise
from hwnas.plugins import GroupSession

if TYPE_CHECKING:
    from torch import nn

    from hwnas.plugins import Profiler, Session
    from hwnas.space import Shape

NUM_ROUNDS = 24
ROUND_MS = 20.0


def measure(profiler: Profiler, model: bytes | nn.Module, input_shape: Shape) -> Measurement:
    """Latency of one model on a device, in several rounds.

    Args:
        profiler: The device.
        model: ONNX bytes, or a module for a profiler that takes modules (exported here if it takes ONNX).
        input_shape: Channels, height, width.

    Raises:
        MeasurementError: The device refuses or cannot time the model.
    """
    session = profiler.prepare(as_consumed(model, input_shape, profiler), input_shape)
    try:
        return summarise(time_rounds(session))
    finally:
        session.close()


def as_consumed(model: bytes | nn.Module, input_shape: Shape, profiler: Profiler) -> bytes | nn.Module:
    """The model as a profiler takes it: a module is exported for one that takes ONNX."""
    if isinstance(model, bytes) or profiler.consumes == "module":
        return model
    from hwnas.onnx_graph import export_onnx

    return bytes(export_onnx(model, input_shape, batch=profiler.environment().batch).SerializeToString())


def time_rounds(session: Session) -> list[list[float]]:
    """Run times in milliseconds, by round.

    Raises:
        MeasurementError: The device cannot time the model.
    """
    return time_together({"": session})[""]


def time_together(sessions: Mapping[str, Session]) -> dict[str, list[list[float]]]:
    """Run times in milliseconds, by name and round, of sessions that take turns.

    Raises:
        MeasurementError: The device cannot time one of them.
    """
    found: dict[str, list[list[float]]] = {name: [] for name in sessions}
    for name, _, samples in take_turns(sessions, num_rounds=NUM_ROUNDS, budget_ms=ROUND_MS):
        if isinstance(samples, Exception):
            raise samples
        found[name].append(samples)
    return found


def take_turns(
    sessions: Mapping[str, Session], *, num_rounds: int, budget_ms: float
) -> Iterator[tuple[str, int, list[float] | MeasurementError | MemoryError]]:
    """Rounds over sessions of one profiler: name, number of the round, and run times or why there are none."""
    names = list(sessions)
    first = sessions[names[0]] if names else None
    if isinstance(first, GroupSession):
        others = {name: sessions[name] for name in names[1:]}
        for name, number, samples in first.time_with(others, num_rounds=num_rounds, budget_ms=budget_ms):
            yield name or names[0], number, samples
        return
    for number in range(num_rounds):
        for name, session in sessions.items():
            try:
                yield name, number, session.time_ms(budget_ms=budget_ms)
            except (MeasurementError, MemoryError) as error:
                yield name, number, error
