"""PyTorch on this machine's processor or on a CUDA device."""

from __future__ import annotations

import contextlib
import copy
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError

from hwnas.errors import MeasurementError, UsageError
from hwnas.latency.environment import Environment, cpu_name, host_details

from .cuda import capture, cuda_device, device_details, device_name, repeats_for, side_stream, time_on_stream

if TYPE_CHECKING:
    from hwnas.space import Shape

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODES = ("eager", "compile", "cuda-graph")

MIN_RUNS = 5
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class Settings:
    """How a session runs; the arguments of ``TorchProfiler``, checked."""

    device: torch.device
    precision: str
    batch: int
    threads: int
    mode: str

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts PyTorch's global settings in force, and puts back what was there before.

        fp32 is IEEE single precision everywhere: PyTorch lets cuDNN round to TF32 by default, and a processor
        with bfloat16 units may round too if it was once allowed to.
        """
        backends: Any = torch.backends
        products = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        rounding = [(part, "tf32" if self.precision == "tf32" else "ieee") for part in products]
        rounding += [(part, "ieee") for part in (backends.mkldnn.matmul, backends.mkldnn.conv)]
        before = [(part, part.fp32_precision) for part, _ in rounding]
        threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
        with contextlib.ExitStack() as stack:
            stack.callback(_set_globals, before, threads, benchmark)
            _set_globals(rounding, self.threads or threads, True)
            if self.device.type == "cuda":
                stack.enter_context(torch.cuda.device(self.device))
            stack.enter_context(torch.inference_mode())
            yield


def _set_globals(rounding: list[tuple[Any, str]], threads: int, benchmark: bool) -> None:
    for part, precision in rounding:
        part.fp32_precision = precision
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark


class TorchProfiler:
    """Modules as PyTorch runs them: eagerly, compiled, or as a replayed CUDA graph.

    Batch-norm is folded into convolutions first and tensors are channels-last, as in deployment. cuDNN chooses its
    algorithms by trying them (``benchmark``), once per shape and process. A CUDA device is used only if asked for,
    so that the same call means the same on every machine.

    Args:
        device: ``cpu`` (if not given), ``cuda`` or ``cuda:N``.
        precision: ``fp32``, ``fp16``, ``bf16``, and ``tf32`` on CUDA.
        batch: Images per run.
        threads: Threads inside one operator on the processor; a CUDA device has none (0 or 1 is taken).
        mode: ``eager``, ``compile`` (``torch.compile``, one graph), or ``cuda-graph``.

    Raises:
        UsageError: A value this target cannot measure, or no such device here.
    """

    consumes: Literal["module"] = "module"

    def __init__(
        self,
        *,
        device: str | None = None,
        precision: str = "fp32",
        batch: int = 1,
        threads: int = 1,
        mode: str = "eager",
    ) -> None:
        name = device or "cpu"
        on_cpu = name == "cpu"
        precisions = [key for key in DTYPES if key != "tf32" or not on_cpu]
        modes = [key for key in MODES if key != "cuda-graph" or not on_cpu]
        for what, value, accepted in (("precision", precision, precisions), ("mode", mode, modes)):
            if value not in accepted:
                raise UsageError(
                    f"profiler 'torch' has no {what} '{value}' on device '{name}'; it takes {', '.join(accepted)}."
                )
        least, most = (1, os.cpu_count() or 1) if on_cpu else (0, 1)
        if batch < 1 or not least <= threads <= most:
            raise UsageError(
                f"batch must be at least 1 and threads {least} to {most} on device '{name}'; got {batch} and {threads}."
            )
        target = torch.device("cpu") if on_cpu else cuda_device(name, profiler="torch")
        self._arguments = {"device": name, "mode": mode}
        self._settings = Settings(target, precision, batch, threads if on_cpu else 0, mode)

    def environment(self) -> Environment:
        """This device, this version of PyTorch."""
        settings = self._settings
        details = host_details() | {
            "batch_norm": "folded",
            "memory_format": "channels-last",
            "transfers": "none (fixed host memory)",
        }
        if settings.device.type == "cuda":
            cudnn: Any = torch.backends.cudnn
            details |= device_details(settings.device) | {"cudnn": str(cudnn.version()), "cudnn_benchmark": "on"}
        return Environment(
            device=cpu_name() if settings.device.type == "cpu" else device_name(settings.device),
            runtime="torch",
            runtime_version=torch.__version__,
            precision=settings.precision,
            batch=settings.batch,
            threads=settings.threads,
            mode=settings.mode,
            arguments=self._arguments,
            details=details,
        )

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> TorchSession:
        """Loads a copy of a module; see ``hwnas.plugins.Profiler``."""
        if not isinstance(model, nn.Module):
            raise UsageError("profiler 'torch' takes a PyTorch module.")
        return TorchSession(model, input_shape, self._settings)


class TorchSession:
    """One module on the device, with a fixed input, ready to run."""

    def __init__(self, module: nn.Module, input_shape: Shape, settings: Settings) -> None:
        self._settings = settings
        self._graph: torch.cuda.CUDAGraph | None = None
        self._repeats = 1
        self._module = deployable(module)
        try:
            with _refusals("prepare the module"):
                self._load((settings.batch, *input_shape))
        except MeasurementError:
            self.close()
            raise

    def _load(self, shape: tuple[int, ...]) -> None:
        settings, dtype = self._settings, DTYPES[self._settings.precision]
        layout: dict[str, Any] = {"device": settings.device, "dtype": dtype, "memory_format": torch.channels_last}
        self._module.to(**layout)
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self._input = torch.from_numpy(images).to(**layout)
        self._call: Callable[[Tensor], Tensor] = self._module
        if settings.mode == "compile":
            self._call = torch.compile(self._module, fullgraph=True, dynamic=False)
        on_cuda = settings.device.type == "cuda"
        self._stream = side_stream(settings.device) if on_cuda else None
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(settings.device))  # which loads the weights
        with self._running():
            for _ in range(WARM_UP_RUNS):
                self._launch()
            if on_cuda:
                torch.cuda.current_stream().synchronize()
            if settings.mode == "cuda-graph":
                self._graph, self._repeats = capture(self._launch)
            elif on_cuda:
                self._repeats = repeats_for(self._launch)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        with self._settings.applied(), torch.cuda.stream(self._stream), warnings.catch_warnings():
            # Advice that does not apply: fp32 was asked for.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            yield

    def _launch(self) -> None:
        self._output = self._call(self._input)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for float32 images of shape ``(batch, channels, height, width)``.

        Raises:
            UsageError: Images of another shape.
            MeasurementError: PyTorch fails while it runs.
        """
        if images.shape != tuple(self._input.shape):
            raise UsageError(f"images of shape {images.shape} given; the session takes {tuple(self._input.shape)}.")
        with _refusals("run the module"), self._running():
            self._input.copy_(torch.tensor(images, dtype=torch.float32))
            self._launch() if self._graph is None else self._graph.replay()
            return np.array(self._output.float().cpu().numpy(), order="C")

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Time of every run, for about ``budget_ms`` and at least five runs.

        On CUDA, runs shorter than ``cuda.MIN_INTERVAL_MS`` share an interval between two events; a sample is then
        the interval divided by their number. See ``hwnas.profilers.cuda`` for what an interval means.

        Raises:
            MeasurementError: PyTorch fails while it runs.
        """
        with _refusals("time the module"), self._running():
            if self._settings.device.type == "cpu":
                return self._time_on_host(budget_ms)
            run = self._launch_repeatedly if self._graph is None else self._graph.replay
            return time_on_stream(run, budget_ms=budget_ms, repeats=self._repeats)

    def _launch_repeatedly(self) -> None:
        for _ in range(self._repeats):
            self._launch()

    def _time_on_host(self, budget_ms: float) -> list[float]:
        clock = time.perf_counter_ns
        for _ in range(WARM_UP_RUNS):
            self._launch()
        samples: list[float] = []
        deadline = clock() + int(budget_ms * 1e6)
        while len(samples) < MIN_RUNS or clock() < deadline:
            start = clock()
            self._launch()
            samples.append((clock() - start) / 1e6)
        return samples

    def close(self) -> None:
        """Frees weights, activations and graph; the session cannot run afterwards."""
        self._module.to("meta")  # a traced module is part of a reference cycle and would keep its weights
        if self._graph is not None:
            self._graph.reset()
        for name in ("_input", "_output", "_call", "_graph"):
            self.__dict__.pop(name, None)
        if self._settings.device.type == "cuda":
            with torch.cuda.device(self._settings.device):
                torch.cuda.empty_cache()


def deployable(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch-norms are folded into the convolutions before them.

    A module that stands in several places becomes one for each place, with its own weights, as in a trained network.

    Raises:
        MeasurementError: The module's control flow depends on its input, so that it has no graph to fold.
    """
    try:
        traced = symbolic_trace(copy.deepcopy(module).eval())
    except (TraceError, TypeError) as error:
        raise MeasurementError(
            f"torch cannot fold batch-norm: the module cannot be traced ({_first_line(error)}). Write its forward "
            "pass without control flow that depends on tensors."
        ) from error
    seen: set[str] = set()
    for position, node in enumerate(traced.graph.nodes):
        if node.op == "call_module" and node.target in seen:  # folding would scale it once for each place
            traced.add_submodule(f"again_{position}", copy.deepcopy(traced.get_submodule(node.target)))
            node.target = f"again_{position}"
        seen.add(str(node.target))
    return fuse(traced, inplace=True, no_trace=True).requires_grad_(False)


@contextlib.contextmanager
def _refusals(doing: str) -> Iterator[None]:
    """What PyTorch raises, out of memory included, as MeasurementError with the first line of the reason."""
    try:
        yield
    except RuntimeError as error:
        reason = _first_line(error)
        if "InvalidCxxCompiler" in reason:
            reason += ". Mode 'compile' needs a C++ compiler: install g++, or name yours in the variable CXX"
        raise MeasurementError(f"torch cannot {doing}: {reason}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
