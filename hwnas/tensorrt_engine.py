"""Engines from ONNX models, for classic TensorRT 10 and 11 and for TensorRT for RTX, through one code path.

Networks are strongly typed: numbers keep the format that the graph gives them. TensorRT 11 knows nothing else
(its migration guide lists ``BuilderFlag.FP16`` and ``INT8`` as removed) and ``EXPLICIT_BATCH`` is gone with them.
"""

from __future__ import annotations

import functools
import importlib
import logging
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


class EngineBuilder:
    """Builds engines one after another and keeps what it learned about kernels.

    Classic TensorRT times kernels while it builds; the times go into ``timing_cache``, which the next engine starts
    from. TensorRT for RTX times nothing while it builds and has no such cache (a no-op since its release 1.2).

    Args:
        flavour: Which product.
        tf32: Whether fp32 convolutions may round to TF32; TensorRT allows it unless told otherwise.
        workspace_mib: Scratch memory that an engine may use; TensorRT's own default is all there is.
        capabilities: Compute capabilities such as ``8.9`` to build for, with TensorRT for RTX. None given, it
            builds one engine for Ampere and later RTX GPUs.

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
        self._capabilities = [self._capability(text) for text in capabilities]

    def build(self, model: bytes) -> bytes:
        """The serialised engine of an ONNX model with fixed shapes.

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
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            reason = " ".join(log.errors) or "it gives no reason"
            raise MeasurementError(f"{self.version} builds no engine of the model: {reason}")
        if self.flavour.needs_gpu:
            self.timing_cache = bytes(memoryview(config.get_timing_cache().serialize()))
        return bytes(memoryview(engine))

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
            config.set_timing_cache(config.create_timing_cache(self.timing_cache), ignore_mismatch=False)
        if self._capabilities:
            config.num_compute_capabilities = len(self._capabilities)
            for index, capability in enumerate(self._capabilities):
                config.set_compute_capability(capability, index)
        return config

    def _capability(self, text: str) -> Any:
        if self.flavour.needs_gpu:
            raise UsageError(
                f"{self.version} builds for the GPU of this machine only, not for compute capability {text}. "
                "Build on the target device, or use tensorrt-rtx."
            )
        known = {
            f"{name[2:-1]}.{name[-1]}": value
            for name, value in self._trt.ComputeCapability.__members__.items()
            if name.startswith("SM")
        }
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
