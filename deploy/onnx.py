"""ONNX files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hwnas.errors import MeasurementError, UsageError
from hwnas.files import write_atomic
from hwnas.onnx_graph import export_onnx
from hwnas.onnx_precision import PRECISIONS, to_precision
from hwnas.plugins import PROFILERS, load

if TYPE_CHECKING:
    from hwnas.space import Shape


class OnnxExporter:
    """Writes ``.onnx`` with batch-norm folded, checked, run once, and with metadata inside.

    Args:
        precision: ``fp32``; ``fp16``, weights and activations; or ``int8``, static quantisation with quantise and
            dequantise nodes, one scale a channel for weights.
        batch: Images a run.
        dynamic_batch: Whether the file takes any number of images a run.
        opset: Version of ONNX's operators, for older runtimes; the current one of ``torch.onnx`` if not given.
        half_io: For ``fp16``, whether inputs and outputs are fp16 as well.
        signed: For ``int8``, what TensorRT takes: signed activations without zero points, and biases in fp32. Slower
            in ONNX Runtime.

    Raises:
        UsageError: A value that it cannot write, or that has no effect.
    """

    suffix = ".onnx"

    def __init__(
        self,
        *,
        precision: str = "fp32",
        batch: int = 1,
        dynamic_batch: bool = False,
        opset: int | None = None,
        half_io: bool = False,
        signed: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"exporter 'onnx' has no precision '{precision}'; it takes {', '.join(PRECISIONS)}.")
        if batch < 1:
            raise UsageError(f"batch must be at least 1; got {batch}. Use 1, or a dynamic batch.")
        if dynamic_batch and batch != 1:
            raise UsageError(f"a dynamic batch takes any number of images; batch {batch} has no effect. Leave one out.")
        for name, given, fitting in (("half_io", half_io, "fp16"), ("signed", signed, "int8")):
            if given and precision != fitting:
                raise UsageError(f"{name} has no effect in {precision}. Use precision {fitting}, or leave it out.")
        self._precision, self._batch, self._dynamic_batch, self._opset = precision, batch, dynamic_batch, opset
        self._half_io, self._signed = half_io, signed

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
            UsageError: int8 without images to calibrate with, or the network needs a newer opset.
            MeasurementError: ONNX Runtime cannot run the file, or it computes no finite numbers.
            OutputError: The file cannot be written.
        """
        import onnx

        if self._precision == "int8" and calibration is None:
            raise UsageError("int8 needs images that fix the ranges of activations. Pass calibration=IMAGES.")
        images = None if calibration is None else _in_batches(calibration, self._batch)
        model = export_onnx(
            network, input_shape, batch=self._batch, dynamic_batch=self._dynamic_batch, opset=self._opset
        )
        model = to_precision(model, self._precision, calibration=images, keep_io=not self._half_io, signed=self._signed)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {**metadata, "precision": self._precision})
        model.producer_name = "hwnas"
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        self._run_once(content, input_shape)
        return write_atomic(path, content)

    def _run_once(self, model: bytes, input_shape: Shape) -> None:
        """Refuses what ONNX Runtime cannot run on the processor."""
        with contextlib.closing(load(PROFILERS, "onnxruntime")().open(model)) as session:
            logits = session.run(np.zeros((self._batch, *input_shape), np.float32))
        if not np.isfinite(logits).all():
            raise MeasurementError(
                f"in {self._precision} the network computes numbers that are not finite, on an image of zeros. "
                "Check its weights, or export another precision."
            )


def _in_batches(images: Iterable[np.ndarray], size: int) -> list[np.ndarray]:
    """The same images in batches of another size; what does not fill the last one is left out.

    Raises:
        UsageError: There are fewer images than one batch has.
    """
    kept = np.concatenate([*images])
    if len(kept) < size:
        raise UsageError(f"{len(kept)} images to calibrate with are fewer than a batch of {size}. Use a smaller batch.")
    return [kept[first : first + size] for first in range(0, len(kept) - size + 1, size)]
