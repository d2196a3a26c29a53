"""ONNX Runtime: this machine's processor, or any other execution provider of the installed package."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hwnas.errors import MeasurementError, MissingPackageError, UsageError
from hwnas.latency.environment import Environment, cpu_name, host_details
from hwnas.onnx_precision import PRECISIONS, to_precision

from .nodes import typical_ms

if TYPE_CHECKING:
    from torch import nn

    from hwnas.space import Shape

    from .remote.profiler import RemoteProfiler

MIN_RUNS = 2
WARM_UP_RUNS = 1
"""Few: on a noisy machine another round tells more than another run in the same moment."""

CPU = "CPUExecutionProvider"

KERNEL = "_kernel_time"
"""What ONNX Runtime puts behind the name of a node."""

EXACT = {"CUDAExecutionProvider": {"use_tf32": "0"}}
"""Execution provider -> options that keep it from rounding fp32; its documentation, "Configuration Options"."""

MEMORY = {"CUDA": "cuda", "Tensorrt": "cuda", "NvTensorRTRTX": "cuda", "Dml": "dml"}
"""Execution provider -> where its inputs and outputs are bound; host memory for the others."""


class OnnxRuntimeProfiler:
    """An execution provider with all graph optimisations; on the processor a fixed number of pinned threads.

    Args:
        device: ``cpu``, or the name of an execution provider such as ``CUDA`` or ``OpenVINO``, which then runs the
            whole network: nothing falls back to the processor.
        precision: ``fp32``, ``fp16`` where the provider computes in it, or ``int8`` (static quantisation).
        batch: Images per run.
        threads: Threads inside one operator, each pinned to a core of its own; another provider has none.

    Raises:
        UsageError: A value this target cannot measure.
        MissingPackageError: onnxruntime is not installed.
    """

    consumes: Literal["onnx"] = "onnx"

    def __init__(self, *, device: str = "cpu", precision: str = "fp32", batch: int = 1, threads: int = 1) -> None:
        if precision not in PRECISIONS:
            raise UsageError(
                f"profiler 'onnxruntime' has no precision '{precision}'; it takes {', '.join(PRECISIONS)}."
            )
        self._runtime = load_runtime()
        self._provider = self._find(device)
        cores = sorted(os.sched_getaffinity(0))
        least = 1 if self._provider == CPU else 0
        if batch < 1 or not least <= threads <= len(cores):
            raise UsageError(
                f"batch must be at least 1 and threads {least} to {len(cores)}; got {batch} and {threads}."
            )
        self._precision, self._batch = precision, batch
        # The last cores: interrupts are served by the first.
        self._cores = tuple(cores[-threads:]) if self._provider == CPU else ()
        if precision == "fp16":
            self._require_native_fp16()

    def environment(self) -> Environment:
        """This processor or provider, this version of ONNX Runtime."""
        on_cpu = self._provider == CPU
        short = self._provider.removesuffix("ExecutionProvider")
        details = {
            "provider": self._provider,
            "transfers": "none (inputs and outputs are bound to the device's memory)",
            "cores": ",".join(map(str, self._cores)) or "not pinned",
        }
        return Environment(
            device=cpu_name() if on_cpu else _accelerator_name(short),
            runtime="onnxruntime",
            runtime_version=self._runtime.__version__,
            precision=self._precision,
            batch=self._batch,
            threads=len(self._cores),
            mode="cpu" if on_cpu else short.lower(),
            arguments={} if on_cpu else {"device": short},
            details=host_details() | details,
        )

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> OnnxRuntimeSession:
        """Loads the bytes of an ONNX model, in this profiler's precision; see ``hwnas.plugins.Profiler``."""
        content = to_precision(parsed_model(model), self._precision).SerializeToString()
        shape = (self._batch, *input_shape)
        return OnnxRuntimeSession(content, provider=self._provider, cores=self._cores, input_shape=shape)

    def open(self, model: bytes) -> OnnxRuntimeSession:
        """Loads the bytes of an exported model as they are; where its batch may vary, one image is timed.

        Raises:
            MeasurementError: ONNX Runtime refuses the model, or it is no network of images.
        """
        return OnnxRuntimeSession(model, provider=self._provider, cores=self._cores)

    def node_ms(self, model: bytes, *, budget_ms: float) -> dict[str, float]:
        """See ``hwnas.plugins.NodeTimer``; by ONNX Runtime's own profiler.

        Fused nodes have the name of one of them, or of what it computes. Other devices than the processor go on after a
        node has returned, and of them nothing is told.
        """
        if self._provider != CPU:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            session = OnnxRuntimeSession(
                model, provider=self._provider, cores=self._cores, profile_prefix=str(Path(folder) / "nodes")
            )
            session.time_ms(budget_ms=budget_ms)
            events = json.loads(Path(session.end_profiling()).read_text())
        return average_nodes(events)

    def _find(self, device: str) -> str:
        installed = {p.removesuffix("ExecutionProvider").lower(): p for p in self._runtime.get_available_providers()}
        installed.pop("azure", None)  # calls a service; computes nothing
        found = installed.get(device.lower().removesuffix("executionprovider"))
        if found is None:
            raise UsageError(
                f"profiler 'onnxruntime' has no device '{device}'; the installed package has {', '.join(installed)}. "
                "Other execution providers come in packages of their own, such as onnxruntime-gpu; a phone or a board "
                "is adb:SERIAL or ssh://[user@]host[:port] ('hwnas devices' lists them)."
            )
        return str(found)

    def _require_native_fp16(self) -> None:
        """Refuses a provider that would widen half precision to single, and measure that."""
        import onnx
        from onnx import TensorProto, helper

        half, shape = TensorProto.FLOAT16, [self._batch, 8, 8, 8]
        weight = helper.make_tensor("w", half, [8, 8, 3, 3], np.ones(576, np.float16).tobytes(), raw=True)
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
        ends = [helper.make_tensor_value_info(name, half, shape) for name in "xy"]
        model = helper.make_model(
            helper.make_graph([node], "probe", ends[:1], ends[1:], [weight]),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / "optimised.onnx"
            options = _options(self._runtime, self._cores)
            options.optimized_model_filepath = str(optimised)
            try:
                self._runtime.InferenceSession(model.SerializeToString(), options, providers=[self._provider])
            except Exception as error:
                raise UsageError(f"{self._provider} cannot run fp16: {error}") from error
            if any(node.op_type == "Cast" for node in onnx.load(optimised).graph.node):
                raise UsageError(
                    f"{self._provider} has no fp16 convolution on this processor: it would compute in fp32 between "
                    "conversions. Use precision fp32 or int8, or a processor with native half precision."
                )


def create_onnxruntime(
    *, device: str = "cpu", precision: str = "fp32", batch: int = 1, threads: int = 1, cores: str = "", mode: str = ""
) -> OnnxRuntimeProfiler | RemoteProfiler:
    """ONNX Runtime here, or on a phone or a board.

    Args:
        device: ``cpu`` or an execution provider (``OnnxRuntimeProfiler``); ``adb:SERIAL``, ``ssh://[user@]host[:port]``
            or ``local`` (``remote.profiler.RemoteProfiler``).
        precision, batch, threads: Of both.
        cores, mode: Of a device elsewhere.

    Raises:
        UsageError: Cores or mode of a device that is not elsewhere.
    """
    if device == "local" or device.lower().startswith(("adb:", "ssh:")):
        from .remote.profiler import RemoteProfiler

        return RemoteProfiler(
            device=device, precision=precision, batch=batch, threads=threads, cores=cores, mode=mode or "hot"
        )
    if cores:
        raise UsageError(
            f"cores '{cores}' are chosen on a device elsewhere only, such as adb:SERIAL, ssh://HOST or local; "
            f"device '{device}' takes the last ones that this process may use. Leave --cores out."
        )
    if mode:
        raise UsageError(
            f"mode '{mode}' is of a device elsewhere only, such as adb:SERIAL, ssh://HOST or local. Leave --mode out."
        )
    return OnnxRuntimeProfiler(device=device, precision=precision, batch=batch, threads=threads)


def parsed_model(model: bytes | nn.Module) -> Any:
    """The graph of an ONNX file's bytes.

    Raises:
        UsageError: It is a module.
        MeasurementError: It is not ONNX.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not isinstance(model, bytes):
        raise UsageError("profiler 'onnxruntime' takes the bytes of an ONNX model.")
    try:
        return onnx.load_from_string(model)
    except DecodeError as error:
        raise MeasurementError(f"ONNX Runtime refuses the model: it is not ONNX ({error}).") from error


def average_nodes(events: list[dict[str, Any]]) -> dict[str, float]:
    """Time of every node; events come in the order in which they end."""
    runs: list[tuple[float, dict[str, float]]] = []
    nodes: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            name = event["name"].removesuffix(KERNEL)
            nodes[name] = nodes.get(name, 0.0) + event["dur"] / 1e3
        elif event["name"] == "model_run":
            runs.append((event["dur"], nodes))
            nodes = {}
    return typical_ms(runs)


class OnnxRuntimeSession:
    """One model with its input and output bound to fixed memory of the device.

    ``input_shape`` are channels, height and width; ``batches`` the least and the most images of a run, None for any
    number; ``metadata`` is what the model's file holds.
    """

    def __init__(
        self,
        model: bytes,
        *,
        provider: str,
        cores: tuple[int, ...],
        input_shape: tuple[int, ...] | None = None,
        profile_prefix: str | None = None,
    ) -> None:
        runtime = load_runtime()
        self._cores = cores
        options = _options(runtime, cores)
        if profile_prefix is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile_prefix
        if provider != CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session = runtime.InferenceSession(model, options, providers=[(provider, EXACT.get(provider, {}))])
        except Exception as error:  # its exceptions share no base of their own
            raise MeasurementError(f"ONNX Runtime refuses the model: {error}") from error
        self._input, self._output = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._type = np.float16 if self._input.type == "tensor(float16)" else np.float32
        batch, *image = input_shape or self._images()
        self.input_shape, self.batches = tuple(image), (batch, batch) if batch else (1, None)
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        images = np.random.default_rng(0).standard_normal((batch or 1, *image), dtype=np.float32).astype(self._type)
        try:
            self._bind(images, MEMORY.get(provider.removesuffix("ExecutionProvider"), "cpu"))
        except Exception as error:
            raise MeasurementError(f"ONNX Runtime cannot run the model: {error}") from error

    def _images(self) -> tuple[int, ...]:
        """Batch, channels, height and width that the model takes; batch 0 where it may vary."""
        shapes, num_outputs = [each.shape for each in self._session.get_inputs()], len(self._session.get_outputs())
        fixed = [isinstance(length, int) for length in shapes[0][1:]]
        if len(shapes) != 1 or num_outputs != 1 or fixed != [True] * 3:
            raise MeasurementError(
                f"the model has inputs of shape {shapes} and {num_outputs} outputs; expected one input (batch, "
                "channels, height, width), of which only batch may vary, and one output. Export it with 'hwnas export'."
            )
        batch, *image = shapes[0]
        return (batch if isinstance(batch, int) else 0, *image)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for float32 images of shape ``(batch, channels, height, width)``."""
        feeds = {self._input.name: np.ascontiguousarray(images, self._type)}
        (output,) = self._session.run([self._output.name], feeds)
        return np.asarray(output, np.float32)

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Time of every run, for about ``budget_ms`` and at least ``MIN_RUNS`` runs."""
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        samples: list[float] = []
        with _pinned(self._cores[:1]):
            for _ in range(WARM_UP_RUNS):
                run(binding)
            deadline = clock() + int(budget_ms * 1e6)
            while len(samples) < MIN_RUNS or clock() < deadline:
                start = clock()
                run(binding)
                binding.synchronize_outputs()
                samples.append((clock() - start) / 1e6)
        return samples

    def end_profiling(self) -> str:
        """Path of the record of all runs."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Drops the session; ONNX Runtime frees its memory with it."""
        del self._binding, self._session

    def _bind(self, images: np.ndarray, memory: str) -> None:
        runtime = load_runtime()
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input.name, runtime.OrtValue.ortvalue_from_numpy(images, memory, 0))
        self._binding.bind_output(self._output.name, memory)
        with _pinned(self._cores[:1]):
            self._session.run_with_iobinding(self._binding)
        (output,) = self._binding.get_outputs()
        self._binding.bind_ortvalue_output(self._output.name, output)


def _options(runtime: Any, cores: tuple[int, ...]) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = max(1, len(cores))
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if len(cores) > 1:
        # The calling thread is the first; the entry lists the others, counted from 1.
        others = ";".join(str(core + 1) for core in cores[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", others)
    return options


@contextmanager
def _pinned(cores: tuple[int, ...]) -> Iterator[None]:
    """Keeps the calling thread on the given cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _accelerator_name(provider: str) -> str:
    """Name of the graphics card for providers that drive one, else of the provider beside the processor."""
    if MEMORY.get(provider) == "cuda":
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    return f"{provider} on {cpu_name()}"


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
