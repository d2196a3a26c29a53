"""ONNX graphs in another number format, by the tools that come with ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import MissingPackageError, UsageError

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "fp16", "int8")

NUM_RANDOM_IMAGES = 2
"""Latency does not depend on the ranges that calibration finds; two images give every tensor one."""


def precision_of(model: onnx.ModelProto) -> str:
    """``int8`` where the graph has quantised tensors, ``fp16`` where it has half-precision weights, else ``fp32``."""
    from onnx import TensorProto

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if any(w.data_type == TensorProto.FLOAT16 for w in model.graph.initializer) else "fp32"


def to_precision(
    model: onnx.ModelProto,
    precision: str,
    *,
    calibration: Iterable[np.ndarray] | None = None,
    keep_io: bool = False,
    signed: bool = False,
) -> onnx.ModelProto:
    """A graph in another precision; one that already has it is returned as it is.

    Args:
        model: A graph in fp32 with one input.
        precision: ``fp32``; ``fp16``, weights and activations; or ``int8``, static quantisation with quantise and
            dequantise nodes, one scale a channel for weights.
        calibration: For ``int8``, float32 images of the input's shape that fix the ranges of activations; random
            ones, good for latency only, if not given.
        keep_io: For ``fp16``, whether inputs and outputs stay fp32.
        signed: For ``int8``, what TensorRT takes: signed activations without zero points, and biases in fp32. Slower
            in ONNX Runtime.

    Raises:
        UsageError: Unknown precision, or the graph is in another one than fp32.
        MissingPackageError: onnxruntime is not installed.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision '{precision}'; expected {', '.join(PRECISIONS)}.")
    present = precision_of(model)
    if present == precision:
        return model
    if present != "fp32":
        raise UsageError(f"the model is in {present} and cannot become {precision}. Export it in fp32 first.")
    return _to_fp16(model, keep_io) if precision == "fp16" else _to_int8(model, calibration, signed)


def _to_fp16(model: onnx.ModelProto, keep_io: bool) -> onnx.ModelProto:
    float16 = _tool("onnxruntime.transformers.float16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every weight below the smallest half-precision number
        half: onnx.ModelProto = float16.convert_float_to_float16(model, keep_io_types=keep_io)
    if keep_io:  # the converter puts the cast of the inputs last; a graph is in order
        cast = half.graph.node.pop(
            next(i for i, n in enumerate(half.graph.node) if n.input[0] == half.graph.input[0].name)
        )
        half.graph.node.insert(0, cast)
    return half


def _to_int8(model: onnx.ModelProto, calibration: Iterable[np.ndarray] | None, signed: bool) -> onnx.ModelProto:
    import onnx

    quantization = _tool("onnxruntime.quantization")
    images = _random_images(model) if calibration is None else calibration
    name = model.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        feeds: Iterator[dict[str, np.ndarray]] = iter([{name: image} for image in images])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    kinds = quantization.QuantType
    runtime, level = _tool("onnxruntime"), logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises a pre-processing that folded graphs do not need
    runtime.set_default_logger_severity(3)  # and its own calibration leaves unused names behind
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantization.quantize_static(
                model,
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=kinds.QInt8 if signed else kinds.QUInt8,
                weight_type=kinds.QInt8,
                extra_options={"ActivationSymmetric": signed, "QuantizeBias": not signed},
            )
            return onnx.load(path)
    finally:
        logging.root.setLevel(level)
        runtime.set_default_logger_severity(2)  # the runtime's default; it cannot be asked


def _random_images(model: onnx.ModelProto) -> list[np.ndarray]:
    shape = [max(1, d.dim_value) for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(NUM_RANDOM_IMAGES)]


def _tool(module: str) -> Any:
    import importlib
    import os

    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        for each in ("onnxruntime.transformers.float16", "onnxruntime.quantization"):
            importlib.import_module(each)  # they find their parts through sys.path, so before anyone sets it back
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"changing the precision of a graph needs {error.name or 'onnxruntime'}. Run: pip install onnxruntime"
        ) from error
