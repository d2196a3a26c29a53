"""Timing one model that is ready to deploy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwnas.latency.measurement import Measurement, summarise

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
    """Run times in milliseconds, by round."""
    return [session.time_ms(budget_ms=ROUND_MS) for _ in range(NUM_ROUNDS)]
