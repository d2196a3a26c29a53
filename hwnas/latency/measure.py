"""Timing one model that is ready to deploy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from hwnas.latency.measurement import Measurement, summarise

if TYPE_CHECKING:
    from hwnas.plugins import Profiler
    from hwnas.space import Shape


def measure(
    profiler: Profiler,
    model: bytes | nn.Module,
    input_shape: Shape,
    *,
    num_rounds: int = 40,
    visit_ms: float = 40.0,
) -> Measurement:
    """Latency of one model on a device, in several rounds.

    Args:
        profiler: The device.
        model: ONNX bytes, or a module for a profiler that takes modules (exported here if it takes ONNX).
        input_shape: Channels, height, width.
        num_rounds: Rounds; their disagreement is the measurement's spread.
        visit_ms: Time budget of a round.

    Raises:
        MeasurementError: The device refuses or cannot time the model.
    """
    if isinstance(model, nn.Module) and profiler.consumes == "onnx":
        from hwnas.onnx_graph import export_onnx

        model = export_onnx(model, input_shape, batch=profiler.environment().batch).SerializeToString()
    session = profiler.prepare(model, input_shape)
    try:
        return summarise([session.time_ms(budget_ms=visit_ms) for _ in range(num_rounds)])
    finally:
        session.close()
