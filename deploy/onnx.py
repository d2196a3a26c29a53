"""ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from hwnas.errors import UsageError
from hwnas.files import write_atomic
from hwnas.onnx_graph import export_onnx

if TYPE_CHECKING:
    from hwnas.space import Shape


class OnnxExporter:
    """Writes ``.onnx`` with batch-norm folded, checked, and with metadata inside."""

    suffix = ".onnx"

    def export(
        self,
        network: nn.Module,
        path: Path,
        *,
        input_shape: Shape,
        precision: str = "fp32",
        metadata: Mapping[str, str],
    ) -> Path:
        """Writes one network for batch 1; see ``hwnas.plugins.Exporter``.

        Raises:
            UsageError: A precision other than fp32.
            OutputError: The file cannot be written.
        """
        if precision != "fp32":
            raise UsageError(f"exporter 'onnx' has no precision '{precision}'; it takes fp32.")
        import onnx

        model = export_onnx(network, input_shape)
        onnx.helper.set_model_props(model, dict(metadata))
        model.producer_name = "hwnas"
        onnx.checker.check_model(model, full_check=True)
        return write_atomic(path, model.SerializeToString())
