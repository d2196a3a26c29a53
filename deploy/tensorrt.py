"""TensorRT engines: classic TensorRT 10 and 11, and TensorRT for RTX, through one exporter."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hwnas.errors import UnknownNameError, UsageError
from hwnas.files import write_atomic, write_json
from hwnas.latency.environment import produced_by
from hwnas.tensorrt_engine import CLASSIC, FLAVOURS, RTX, Engine, EngineBuilder, Flavour, layer_information

from .engines import EngineDocument, digest, sidecar
from .onnx import OnnxExporter

if TYPE_CHECKING:
    from hwnas.space import Shape


class TensorRTExporter:
    """Writes ``NAME.engine`` and, beside it, ``NAME.engine.json``; see ``EngineDocument`` for what that says.

    The engine is built from the ONNX file that the exporter ``onnx`` writes, strongly typed: it computes in the formats
    of that graph. Inputs and outputs are fp32. TensorRT for RTX lists int8 for matrix products alone (support matrix of
    1.4); with 1.7 the engine of MobileNetV2 took 18.6 MB in int8, against 14.3 in fp32 and 7.4 in fp16.

    Args:
        flavour: ``tensorrt``, which builds on the GPU that the engine is for, or ``tensorrt-rtx``, which needs none. If
            not given, ``tensorrt`` where it is installed and there is a GPU.
        precision: ``fp32`` (IEEE), ``fp16`` or ``int8``.
        capabilities: Compute capabilities such as ``8.9`` that TensorRT for RTX builds for. None given, it builds one
            engine for Ampere and later RTX GPUs.
        workspace_mib: Scratch memory that the engine may use, if limited.
        max_batch: The engine takes batches from 1 to this, and is fastest at this.
        timing_cache: File in which classic TensorRT keeps what it timed, to build the next engine sooner.

    Raises:
        UsageError: A value that it cannot build, or that has no effect; no GPU where one is needed.
        MissingPackageError: The flavour is not installed.
    """

    suffix = ".engine"

    def __init__(
        self,
        *,
        flavour: str | None = None,
        precision: str = "fp32",
        capabilities: Sequence[str] = (),
        workspace_mib: int | None = None,
        max_batch: int = 1,
        timing_cache: Path | str | None = None,
    ) -> None:
        product = _chosen(flavour)
        if max_batch < 1 or (workspace_mib is not None and workspace_mib < 1):
            raise UsageError(f"max_batch and workspace_mib must be at least 1; got {max_batch} and {workspace_mib}.")
        if timing_cache is not None and not product.needs_gpu:
            raise UsageError(
                f"{product.name} times nothing while it builds, so a timing cache has no effect. Leave it out."
            )
        if product.needs_gpu and not torch.cuda.is_available():
            raise UsageError(
                f"{product.name} times kernels on the GPU that the engine is for, and PyTorch {torch.__version__} "
                f"finds none here. Export on that machine, or use flavour {RTX.name} for an RTX GPU."
            )
        self._onnx = OnnxExporter(precision=precision, dynamic_batch=max_batch > 1, signed=precision == "int8")
        self._builder = EngineBuilder(product, workspace_mib=workspace_mib, capabilities=capabilities)
        self._precision, self._workspace_mib, self._max_batch = precision, workspace_mib, max_batch
        self._timing_cache = None if timing_cache is None else Path(timing_cache)

    def export(
        self,
        network: nn.Module,
        path: Path,
        *,
        input_shape: Shape,
        metadata: Mapping[str, str],
        calibration: Iterable[np.ndarray] | None = None,
    ) -> Path:
        """Writes one network; see ``hwnas.plugins.Exporter``.

        Raises:
            UsageError: int8 without images to calibrate with.
            MeasurementError: TensorRT refuses the network; names the operator and its node where it tells.
            OutputError: A file cannot be written.
        """
        with tempfile.TemporaryDirectory() as folder:
            model = self._onnx.export(
                network,
                Path(folder) / "model.onnx",
                input_shape=input_shape,
                metadata=metadata,
                calibration=calibration,
            ).read_bytes()
        if self._timing_cache is not None and self._timing_cache.exists():
            self._builder.timing_cache = self._timing_cache.read_bytes()
        engine = self._builder.build(model, max_batch=self._max_batch if self._max_batch > 1 else None)
        if self._timing_cache is not None:
            write_atomic(self._timing_cache, self._builder.timing_cache)
        write_atomic(path, engine.data)
        write_json(sidecar(path), self._document(engine, {**metadata, "precision": self._precision}))
        return path

    def _document(self, engine: Engine, metadata: Mapping[str, str]) -> EngineDocument:
        flavour, capabilities, gpu = self._builder.flavour, list(self._builder.capabilities), ""
        inspected = layer_information(flavour, engine.data) if torch.cuda.is_available() else None
        if flavour.needs_gpu:
            capabilities = [".".join(map(str, torch.cuda.get_device_capability()))]
            gpu = torch.cuda.get_device_name()
        return {
            "flavour": flavour.name,
            "version": flavour.load().__version__,
            "compute_capabilities": capabilities,
            "gpu": gpu,
            "precision": self._precision,
            "max_batch": self._max_batch,
            "workspace_mib": self._workspace_mib,
            "build_seconds": engine.seconds,
            "bytes": len(engine.data),
            "sha256": digest(engine.data),
            "layers_of": "network" if inspected is None else "engine",
            "layers": engine.layers if inspected is None else inspected,
            "metadata": dict(metadata),
            "origin": produced_by(),
        }


def _chosen(name: str | None) -> Flavour:
    if name is None:
        here = torch.cuda.is_available() and importlib.util.find_spec(CLASSIC.package) is not None
        return CLASSIC if here else RTX
    if name not in FLAVOURS:
        raise UnknownNameError.among("flavour", name, FLAVOURS)
    return FLAVOURS[name]
