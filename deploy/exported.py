"""The exported files of a run, before they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.errors import RunError
from hwnas.onnx_precision import PRECISIONS
from hwnas.run import RunFolder
from hwnas.steps import exported_name, weights_hash
from hwnas.tensorrt_engine import FLAVOURS

from .engines import read_engine

ONNX_RUNTIME = "onnxruntime"


@dataclass(frozen=True)
class ExportedFile:
    """One file.

    Args:
        path: Where it is.
        precision: What its name says; it is held to the bounds of that.
        runtime: The profiler that runs it: ``onnxruntime``, or the flavour of TensorRT that built it.
        batch: Images a run; None for a number that may vary.
        content: Its bytes.
    """

    path: Path
    precision: str
    runtime: str
    batch: int | None
    content: bytes


def exported_files(run: RunFolder) -> list[ExportedFile]:
    """Every ONNX file and every engine of a run.

    Raises:
        RunError: One is damaged, or was exported from other weights.
    """
    readers = {".onnx": _onnx, ".engine": _engine}
    named = [(read, run.file(exported_name(p, suffix)), p) for suffix, read in readers.items() for p in PRECISIONS]
    present = [each for each in named if each[1].exists()]
    weights = weights_hash(run) if present else ""
    return [read(run, path, precision, weights) for read, path, precision in present]


def export_command(run: RunFolder, precision: str = "fp32", runtime: str = ONNX_RUNTIME) -> str:
    """What the user types to get a file for that runtime."""
    words = f"hwnas export {run.path}" + (f" --exporter tensorrt --flavour {runtime}" if runtime in FLAVOURS else "")
    return words + ("" if precision == "fp32" else f" --precision {precision}")


def _onnx(run: RunFolder, path: Path, precision: str, weights: str) -> ExportedFile:
    import onnx
    from google.protobuf.message import DecodeError

    content, again = path.read_bytes(), export_command(run, precision, ONNX_RUNTIME)
    try:
        model = onnx.load_from_string(content)
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    except (DecodeError, IndexError) as error:
        raise RunError(f"{path} is no network in ONNX. Run '{again}' again.") from error
    _require_weights(run, path, {each.key: each.value for each in model.metadata_props}, weights, again)
    return ExportedFile(path, precision, ONNX_RUNTIME, batch or None, content)


def _engine(run: RunFolder, path: Path, precision: str, weights: str) -> ExportedFile:
    document, content = read_engine(path)
    _require_weights(run, path, document["metadata"], weights, export_command(run, precision, document["flavour"]))
    batch = None if document["max_batch"] > 1 else 1
    return ExportedFile(path, precision, document["flavour"], batch, content)


def _require_weights(run: RunFolder, path: Path, metadata: dict[str, str], weights: str, again: str) -> None:
    if metadata.get("weights_sha256") != weights:
        raise RunError(
            f"{path} was exported from other weights than {run.path} has now. Run '{again}' again, or delete it."
        )
