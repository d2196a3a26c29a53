"""TensorRT engines on a CUDA device: classic TensorRT 10 and 11, and TensorRT for RTX."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from hwnas.errors import MeasurementError, UsageError
from hwnas.latency.environment import Environment, host_details
from hwnas.tensorrt_engine import CLASSIC, RTX, EngineBuilder, Flavour, logger

from .cuda import capture, cuda_device, device_details, device_name, repeats_for, side_stream, time_on_stream
from .nodes import typical_ms

if TYPE_CHECKING:
    from torch import nn

    from hwnas.space import Shape

PRECISIONS = ("fp32", "tf32", "fp16", "int8")
MODES = ("enqueue", "cuda-graph")

MIN_RUNS = 10
"""Of which layers are timed."""

DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT8": torch.int8}


class TensorRTProfiler:
    """Engines of classic TensorRT, built on the device and run by enqueuing or by replaying a CUDA graph.

    The profiler takes fp32 graphs and converts them; int8 inserts Q/DQ nodes. Without TensorRT or without a CUDA
    device it fails; nothing else runs in its place. Kernel times are kept from one operator to the next, in memory.

    Args:
        device: ``cuda`` (if not given) or ``cuda:N``.
        precision: ``fp32`` (IEEE), ``tf32``, ``fp16`` or ``int8``.
        batch: Images per run.
        threads: A CUDA device has none; 0 or 1 is taken.
        mode: ``enqueue`` (launched by the host kernel by kernel) or ``cuda-graph``.
        workspace_mib: Scratch memory that an engine may use, if limited; text too, as a table's sidecar holds it.

    Raises:
        UsageError: A value this target cannot measure, or no such device here.
        MissingPackageError: TensorRT is not installed; names the extra that installs it.
    """

    consumes: Literal["onnx"] = "onnx"
    flavour: ClassVar[Flavour] = CLASSIC

    def __init__(
        self,
        *,
        device: str | None = None,
        precision: str = "fp32",
        batch: int = 1,
        threads: int = 1,
        mode: str = "enqueue",
        workspace_mib: int | str | None = None,
    ) -> None:
        name = device or "cuda"
        for what, value, accepted in (("precision", precision, PRECISIONS), ("mode", mode, MODES)):
            if value not in accepted:
                raise UsageError(
                    f"profiler '{self.flavour.name}' has no {what} '{value}'; it takes {', '.join(accepted)}."
                )
        limited = workspace_mib is not None
        if batch < 1 or threads not in (0, 1) or (limited and not str(workspace_mib).isdecimal()):
            raise UsageError(
                f"batch must be at least 1, threads 0 or 1 and workspace_mib a whole number; got {batch}, {threads} "
                f"and '{workspace_mib}'."
            )
        self._trt = self.flavour.load()
        self._device = cuda_device(name, profiler=self.flavour.name)
        self._precision, self._batch, self._mode = precision, batch, mode
        self._arguments = {"device": name, "mode": mode} | ({"workspace_mib": str(workspace_mib)} if limited else {})
        major, minor = torch.cuda.get_device_capability(self._device)
        self._builder = EngineBuilder(
            self.flavour,
            tf32=precision == "tf32",
            workspace_mib=None if workspace_mib is None else int(workspace_mib),
            capabilities=() if self.flavour.needs_gpu else (f"{major}.{minor}",),
        )

    def environment(self) -> Environment:
        """This device, this version of TensorRT."""
        return Environment(
            device=device_name(self._device),
            runtime=self.flavour.name,
            runtime_version=self._trt.__version__,
            precision=self._precision,
            batch=self._batch,
            threads=0,
            mode=self._mode,
            arguments=self._arguments,
            details=host_details() | device_details(self._device),
        )

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> TensorRTSession:
        """Builds and loads an engine; see ``hwnas.plugins.Profiler``."""
        if not isinstance(model, bytes):
            raise UsageError(f"profiler '{self.flavour.name}' takes the bytes of an ONNX model.")
        with torch.cuda.device(self._device):
            engine = self._builder.build(converted(model, self._precision)).data
        return TensorRTSession(engine, self.flavour, self._device, graph=self._mode == "cuda-graph")

    def open(self, model: bytes) -> TensorRTSession:
        """Loads an engine that this flavour and version of TensorRT built; code in it runs, so trust who built it.

        Where its batch may vary, the least is timed.

        Raises:
            MeasurementError: TensorRT refuses the engine, or it is no network of images.
        """
        return TensorRTSession(model, self.flavour, self._device, graph=self._mode == "cuda-graph")

    def node_ms(self, model: bytes, *, budget_ms: float) -> dict[str, float]:
        """See ``hwnas.plugins.NodeTimer``; of the layers of an engine as TensorRT fused them, named after what they do.

        Raises:
            MeasurementError: TensorRT refuses the engine, or it fails while it runs.
        """
        session = TensorRTSession(model, self.flavour, self._device, graph=False)
        with contextlib.closing(session):
            return session.layers_ms(budget_ms=budget_ms)


class TensorRTRTXProfiler(TensorRTProfiler):
    """Engines of TensorRT for RTX, whose kernels are compiled on the device; see ``TensorRTProfiler``.

    Raises:
        UsageError: Also for a GPU that is not of the RTX family, such as H100.
    """

    flavour: ClassVar[Flavour] = RTX


class TensorRTSession:
    """One engine with its input and output bound to fixed device memory.

    ``input_shape`` are channels, height and width; ``batches`` the least and the most images of a run, of which the
    least is timed. A graph runs one batch only.
    """

    input_shape: tuple[int, ...]
    batches: tuple[int, int]
    _input: torch.Tensor
    _output: torch.Tensor

    def __init__(self, engine: bytes, flavour: Flavour, device: torch.device, *, graph: bool) -> None:
        self._flavour, self._device = flavour, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._repeats, self._batch = 1, 0
        self._stream = side_stream(device)
        log = logger(flavour)
        log.errors.clear()
        with self._running("load the engine"):
            self._runtime = flavour.load().Runtime(log)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            self._context = self._engine and self._engine.create_execution_context()
            if self._context is None:
                raise MeasurementError(f"{flavour.name} cannot load the engine: {self._errors}")
            self._bind()
            images = np.random.default_rng(0).standard_normal(tuple(self._input.shape), dtype=np.float32)
            self._input.copy_(torch.from_numpy(images))
            self._set_batch(self.batches[0])
            self._launch()
            self._stream.synchronize()
            if graph:
                self._graph, self._repeats = capture(self._launch)
                self.batches = (self._batch, self._batch)
            else:
                self._repeats = repeats_for(self._launch)

    def _bind(self) -> None:
        engine, context = self._engine, self._context
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        by_mode = {engine.get_tensor_mode(name).name: name for name in names}
        shapes = {mode: tuple(engine.get_tensor_shape(name)) for mode, name in by_mode.items()}
        if len(names) != 2 or len(by_mode) != 2 or -1 in shapes["INPUT"][1:]:
            raise MeasurementError(
                f"the engine has tensors {', '.join(names)} of shapes {shapes}; expected one input, of which only the "
                "batch may vary, and one output. Export it with 'hwnas export'."
            )
        self._name, least, most = by_mode["INPUT"], shapes["INPUT"], shapes["INPUT"]
        if -1 in most:
            least, _, most = (tuple(each) for each in engine.get_tensor_profile_shape(self._name, 0))
        else:
            self._batch = most[0]
        self.input_shape, self.batches = most[1:], (least[0], most[0])
        self._set_batch(most[0])
        self._input, self._output = (
            torch.empty(
                tuple(context.get_tensor_shape(name)),
                dtype=DTYPES[engine.get_tensor_dtype(name).name],
                device=self._device,
            )
            for name in (by_mode["INPUT"], by_mode["OUTPUT"])
        )
        context.set_tensor_address(by_mode["INPUT"], self._input.data_ptr())
        context.set_tensor_address(by_mode["OUTPUT"], self._output.data_ptr())

    def _set_batch(self, batch: int) -> None:
        if batch != self._batch and not self._context.set_input_shape(self._name, (batch, *self.input_shape)):
            raise MeasurementError(f"{self._flavour.name} refuses a batch of {batch}: {self._errors}")
        self._batch = batch

    @property
    def _errors(self) -> str:
        return " ".join(logger(self._flavour).errors)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise MeasurementError(f"{self._flavour.name} cannot run the engine: {self._errors}")

    def _launch_repeatedly(self) -> None:
        for _ in range(self._repeats):
            self._launch()

    @contextlib.contextmanager
    def _running(self, doing: str) -> Iterator[None]:
        """The session's device and stream; errors of CUDA become MeasurementError."""
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream), torch.inference_mode():
                yield
        except MeasurementError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise MeasurementError(f"{self._flavour.name} cannot {doing}: {reason}") from error

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for float32 images of shape ``(batch, channels, height, width)``.

        Raises:
            UsageError: Images of another shape.
            MeasurementError: The engine fails while it runs.
        """
        batch, (least, most) = len(images), self.batches
        if images.shape[1:] != self.input_shape or not least <= batch <= most:
            raise UsageError(
                f"images of shape {images.shape} given; the session takes {least} to {most} of {self.input_shape}."
            )
        with self._running("run the engine"):
            self._set_batch(batch)
            self._input[:batch].copy_(torch.tensor(images, dtype=torch.float32))
            self._launch() if self._graph is None else self._graph.replay()
            return self._output[:batch].float().cpu().numpy()

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Time of every run, for about ``budget_ms``; see ``hwnas.profilers.cuda`` for what an interval means.

        Raises:
            MeasurementError: The engine fails while it runs.
        """
        with self._running("time the engine"):
            self._set_batch(self.batches[0])
            run: Callable[[], object] = self._launch_repeatedly if self._graph is None else self._graph.replay
            return time_on_stream(run, budget_ms=budget_ms, repeats=self._repeats)

    def layers_ms(self, *, budget_ms: float) -> dict[str, float]:
        """Time of every layer, one after the other, over about ``budget_ms``; the session is of no use afterwards.

        Raises:
            MeasurementError: The engine fails while it runs.
        """
        clock = layer_clock(self._flavour)
        runs: list[tuple[float, dict[str, float]]] = []
        with self._running("time the layers"):
            self._set_batch(self.batches[0])
            self._context.profiler = clock  # from now on a launch waits, and tells the clock about every layer
            deadline = time.monotonic() + budget_ms / 1e3
            while len(runs) < MIN_RUNS or time.monotonic() < deadline:
                self._launch()
                layers = clock.read()
                runs.append((sum(layers.values()), layers))
        return typical_ms(runs)

    def close(self) -> None:
        """Frees engine, context and memory, in the order in which TensorRT wants them freed."""
        if self._graph is not None:
            self._graph.reset()
        for name in ("_graph", "_context", "_engine", "_runtime", "_input", "_output"):
            self.__dict__.pop(name, None)
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()


def layer_clock(flavour: Flavour) -> Any:
    """What TensorRT tells about layers: ``read()`` gives the ms of every one since it was last read, by name."""
    trt = flavour.load()

    class Clock(trt.IProfiler):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self._ms: dict[str, float] = {}

        def report_layer_time(self, name: str, ms: float) -> None:
            self._ms[name] = self._ms.get(name, 0.0) + ms

        def read(self) -> dict[str, float]:
            found, self._ms = self._ms, {}
            return found

    return Clock()


def converted(model: bytes, precision: str) -> bytes:
    """The bytes of an fp32 model as bytes of a model in that precision."""
    if precision in ("fp32", "tf32"):
        return model
    import onnx

    from hwnas.onnx_precision import to_precision

    return bytes(to_precision(onnx.load_from_string(model), precision, signed=True).SerializeToString())
