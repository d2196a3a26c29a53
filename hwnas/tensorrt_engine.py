"""Engines from ONNX models, for classic TensorRT 10 and 11 and for TensorRT for RTX, through one code path.

Networks are strongly typed: numbers keep the format that the graph gives them. TensorRT 11 knows nothing else
(its migration guide lists ``BuilderFlag.FP16`` and ``INT8`` as removed) and ``EXPLICIT_BATCH`` is gone with them.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwnas.errors import MeasurementError, MissingPackageError, UsageError

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One of the two products with nearly the same interface.

    Args:
        name: Of the profiler, and the runtime in an environment.
        package: What to import.
        extra: Of hwnas, that installs it.
        needs_gpu: Whether building times kernels on the GPU at hand. If not, engines are built for named compute
            capabilities on any machine and compiled further on the device.
    """

    name: str
    package: str
    extra: str
    needs_gpu: bool

    def load(self) -> Any:
        """The package.

        Raises:
            MissingPackageError: It is not installed, or its libraries cannot be loaded.
        """
        try:
            return importlib.import_module(self.package)
        except (ImportError, OSError) as error:
            raise MissingPackageError(
                f"{self.name} needs the package {self.package}, which cannot be imported: {error}. "
                f"Run: pip install 'hwnas[{self.extra}]'"
            ) from error


CLASSIC = Flavour("tensorrt", "tensorrt", "tensorrt", needs_gpu=True)
RTX = Flavour("tensorrt-rtx", "tensorrt_rtx", "rtx", needs_gpu=False)
FLAVOURS = {flavour.name: flavour for flavour in (CLASSIC, RTX)}

PORTABLE = "8.0"
"""Least compute capability of an engine of TensorRT for RTX that was built for none in particular.

Source: TensorRT for RTX documentation, "CPU-only AOT": capability 7.5 has to be asked for.
"""


@dataclass(frozen=True)
class Engine:
    """One engine.

    Args:
        data: As TensorRT writes it.
        seconds: It took to build, without reading the model.
        layers: Name, type and outputs of every layer of the network it was built from, before any is fused; constants
            are left out.
    """

    data: bytes
    seconds: float
    layers: list[dict[str, Any]]


class EngineBuilder:
    """Builds engines one after another and keeps what it learned about kernels.

    Classic TensorRT times kernels while it builds; the times go into ``timing_cache``, which the next engine starts
    from. TensorRT for RTX times nothing while it builds and has no such cache (a no-op since its release 1.2).

    Args:
        flavour: Which product.
        tf32: Whether fp32 convolutions may round to TF32; TensorRT allows it unless told otherwise.
        workspace_mib: Scratch memory that an engine may use; TensorRT's own default is all there is.
        capabilities: Compute capabilities such as ``8.9`` to build for, with TensorRT for RTX. None given, it
            builds one engine for all it knows from ``PORTABLE`` on. The attribute of that name lists them; it is
            empty for classic TensorRT, which builds for the GPU at hand.

    Raises:
        MissingPackageError: The product is not installed.
        UsageError: A compute capability that it does not build for.
    """

    def __init__(
        self,
        flavour: Flavour,
        *,
        tf32: bool = False,
        workspace_mib: int | None = None,
        capabilities: Sequence[str] = (),
    ) -> None:
        self.flavour = flavour
        self.timing_cache = b""
        self._trt = flavour.load()
        self._tf32 = tf32
        self._workspace_mib = workspace_mib
        self._asked = [self._capability(text) for text in capabilities]
        self.capabilities = tuple(capabilities) or self._portable()

    def build(self, model: bytes, *, max_batch: int | None = None) -> Engine:
        """The engine of an ONNX model.

        Args:
            model: Its shapes are fixed, but for the batch where ``max_batch`` is given.
            max_batch: The engine takes batches from 1 to this, and is fastest at this.

        Raises:
            MeasurementError: TensorRT refuses the model; names the operator and its node where it tells.
        """
        trt, log = self._trt, logger(self.flavour)
        log.errors.clear()
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model):
            raise MeasurementError(self._refusal([parser.get_error(i) for i in range(parser.num_errors)]))
        config = self._config(builder)
        if max_batch is not None:
            config.add_optimization_profile(_profile(builder, network, max_batch))
        start = time.perf_counter()
        engine = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if engine is None:
            reason = " ".join(log.errors) or "it gives no reason"
            raise MeasurementError(f"{self.version} builds no engine of the model: {reason}")
        if self.flavour.needs_gpu:
            self.timing_cache = bytes(memoryview(config.get_timing_cache().serialize()))
        layers = (network.get_layer(index) for index in range(network.num_layers))
        working = [_layer(layer) for layer in layers if layer.type.name != "CONSTANT"]
        return Engine(bytes(memoryview(engine)), seconds, working)

    @property
    def version(self) -> str:
        """Product and version."""
        return f"{self.flavour.name} {self._trt.__version__}"

    def _config(self, builder: Any) -> Any:
        trt, config = self._trt, builder.create_builder_config()
        if not self._tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self._workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self._workspace_mib * 2**20)
        if self.flavour.needs_gpu:
            cache = config.create_timing_cache(self.timing_cache)
            if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
                raise MeasurementError(
                    f"{self.version} cannot use the timing cache: it is damaged, or of another GPU or TensorRT. "
                    "Delete it, or name another file."
                )
        if self._asked:
            config.num_compute_capabilities = len(self._asked)
            for index, capability in enumerate(self._asked):
                config.set_compute_capability(capability, index)
        return config

    def _known(self) -> dict[str, Any]:
        members = self._trt.ComputeCapability.__members__.items()
        return {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}

    def _portable(self) -> tuple[str, ...]:
        if self.flavour.needs_gpu:
            return ()
        return tuple(text for text in self._known() if float(text) >= float(PORTABLE))

    def _capability(self, text: str) -> Any:
        if self.flavour.needs_gpu:
            raise UsageError(
                f"{self.version} builds for the GPU of this machine only, not for compute capability {text}. "
                "Build on the target device, or use tensorrt-rtx."
            )
        known = self._known()
        if text not in known:
            raise UsageError(
                f"{self.version} has no compute capability '{text}'; it builds for {', '.join(known)}. "
                "Choose one of these, or use tensorrt on a GPU of that capability."
            )
        return known[text]

    def _refusal(self, errors: Sequence[Any]) -> str:
        """The first error of a parser in words."""
        if not errors:
            return f"{self.version} cannot read the ONNX model and gives no reason."
        error = errors[0]
        if not error.node_operator():
            return f"{self.version} cannot read the ONNX model: {error.desc()}"
        return (
            f"{self.version} refuses operator '{error.node_operator()}' (node '{error.node_name()}'): "
            f"{error.code().name}, {error.desc()}. Replace the operator, or measure with another runtime."
        )


def layer_information(flavour: Flavour, engine: bytes) -> list[Any] | None:
    """What TensorRT's engine inspector tells of every layer, after fusion; None where this machine cannot load it."""
    trt, log = flavour.load(), logger(flavour)
    runtime = trt.Runtime(log)
    loaded = runtime and runtime.deserialize_cuda_engine(engine)
    if not loaded:
        return None
    told = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers: list[Any] | None = json.loads(told).get("Layers")
    return layers


def _profile(builder: Any, network: Any, max_batch: int) -> Any:
    """Batches from 1 to ``max_batch``, tuned for the largest."""
    profile, images = builder.create_optimization_profile(), network.get_input(0)
    least, most = ((batch, *tuple(images.shape)[1:]) for batch in (1, max_batch))
    profile.set_shape(images.name, least, most, most)
    return profile


def _layer(layer: Any) -> dict[str, Any]:
    outputs = (layer.get_output(index) for index in range(layer.num_outputs))
    shapes = [f"{each.dtype.name.lower()} {'x'.join(map(str, tuple(each.shape)))}" for each in outputs]
    return {"name": layer.name, "type": layer.type.name.lower(), "outputs": shapes}


@functools.cache
def logger(flavour: Flavour) -> Any:
    """The log of a product: one a process, as TensorRT wants it; keeps errors until they are cleared."""
    trt = flavour.load()
    severity = trt.ILogger.Severity

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(message)
            LOGGER.debug("%s: %s", flavour.name, message)

    return Log()
