"""ONNX Runtime on this machine's processor."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwnas.errors import MeasurementError, MissingPackageError, UsageError
from hwnas.latency.environment import Environment, cpu_name, host_details

if TYPE_CHECKING:
    from torch import nn

    from hwnas.space import Shape

MIN_RUNS = 5
WARM_UP_RUNS = 3


class OnnxRuntimeProfiler:
    """The default CPU execution provider with all graph optimisations and a fixed number of threads.

    Args:
        device: Only ``cpu``.
        precision: Only ``fp32``.
        batch: Images per run.
        threads: Threads inside one operator.

    Raises:
        UsageError: A value this target cannot measure.
        MissingPackageError: onnxruntime is not installed.
    """

    consumes: Literal["onnx"] = "onnx"

    def __init__(self, *, device: str = "cpu", precision: str = "fp32", batch: int = 1, threads: int = 1) -> None:
        for name, value, accepted in (("device", device, ("cpu",)), ("precision", precision, ("fp32",))):
            if value not in accepted:
                raise UsageError(f"profiler 'onnxruntime' has no {name} '{value}'; it takes {', '.join(accepted)}.")
        cores = os.cpu_count() or 1
        if batch < 1 or not 1 <= threads <= cores:
            raise UsageError(f"batch must be at least 1 and threads 1 to {cores}; got {batch} and {threads}.")
        self._batch, self._threads = batch, threads
        self._runtime = load_runtime()

    def environment(self) -> Environment:
        """This processor, this version of ONNX Runtime."""
        return Environment(
            device=cpu_name(),
            runtime="onnxruntime",
            runtime_version=self._runtime.__version__,
            batch=self._batch,
            threads=self._threads,
            details=host_details() | {"transfers": "none (bound host memory)"},
        )

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> OnnxRuntimeSession:
        """Loads the bytes of an ONNX model; see ``hwnas.plugins.Profiler``."""
        if not isinstance(model, bytes):
            raise UsageError("profiler 'onnxruntime' takes the bytes of an ONNX model.")
        return OnnxRuntimeSession(model, threads=self._threads, batch=self._batch, input_shape=input_shape)


class OnnxRuntimeSession:
    """One model with its input and output bound to fixed memory."""

    def __init__(self, model: bytes, *, threads: int, batch: int, input_shape: Shape) -> None:
        runtime = load_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base of their own
            raise MeasurementError(f"ONNX Runtime refuses the model: {error}") from error
        rng = np.random.default_rng(0)
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self._bind(rng.standard_normal((batch, *input_shape), dtype=np.float32))

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for float32 images of shape ``(batch, channels, height, width)``."""
        (output,) = self._session.run([self._output], {self._input: np.ascontiguousarray(images, np.float32)})
        return np.asarray(output)

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Time of every run, for about ``budget_ms`` and at least ``MIN_RUNS`` runs."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        for _ in range(WARM_UP_RUNS):
            run(binding)
        samples: list[float] = []
        deadline = clock() + int(budget_ms * 1e6)
        while len(samples) < MIN_RUNS or clock() < deadline:
            start = clock()
            run(binding)
            samples.append((clock() - start) / 1e6)
        return samples

    def close(self) -> None:
        """Drops the session; ONNX Runtime frees its memory with it."""
        del self._binding, self._session

    def _bind(self, images: np.ndarray) -> None:
        runtime = load_runtime()
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input, runtime.OrtValue.ortvalue_from_numpy(images))
        self._session.run_with_iobinding(self._bound_to("cpu"))
        (output,) = self._binding.get_outputs()
        self._binding.bind_ortvalue_output(self._output, output)

    def _bound_to(self, device: str) -> Any:
        self._binding.bind_output(self._output, device)
        return self._binding


def load_runtime() -> Any:
    """The onnxruntime module, with the telemetry of its recent wheels switched off before it loads.

    Raises:
        MissingPackageError: It is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "profiler 'onnxruntime' needs the package onnxruntime, which is not installed. Run: pip install onnxruntime"
        ) from error
    return onnxruntime
