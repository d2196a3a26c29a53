"""What stands beside an engine, and whether the engine belongs here."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import Any, TypedDict

from hwnas.documents import Count, Figure, fitting
from hwnas.errors import OtherDeviceError, RunError
from hwnas.files import read_json
from hwnas.tensorrt_engine import FLAVOURS


class EngineDocument(TypedDict):
    """``NAME.engine.json``.

    ===================== ==========================================================
    flavour, version      the product that built the engine, and that alone loads it
    compute_capabilities  of the GPUs that it runs on
    gpu                   the GPU whose kernels were timed; empty where none was
    precision, max_batch  of the network; batches from 1 to ``max_batch``
    workspace_mib         scratch memory it may use, if limited
    build_seconds, bytes  how long it took, and its size
    sha256                of the engine
    layers_of, layers     ``engine``: what the inspector tells of it; ``network``: the layers before they were fused
    metadata              what the ONNX file of the same network holds
    origin                when and by which command it was built
    ===================== ==========================================================
    """

    flavour: str
    version: str
    compute_capabilities: list[str]
    gpu: str
    precision: str
    max_batch: Count
    workspace_mib: Count | None
    build_seconds: Figure
    bytes: Count
    sha256: str
    layers_of: str
    layers: list[Any]
    metadata: dict[str, str]
    origin: dict[str, str]


def sidecar(path: Path) -> Path:
    """Where the document of an engine stands."""
    return path.with_name(f"{path.name}.json")


def digest(engine: bytes) -> str:
    """The hash in the document."""
    return hashlib.sha256(engine).hexdigest()


def read_engine(path: Path) -> tuple[EngineDocument, bytes]:
    """An engine with its document.

    Raises:
        RunError: Either is missing or damaged, or they do not belong together.
    """
    beside, again = sidecar(path), "Export it again with 'hwnas export RUN --exporter tensorrt'."
    if not beside.exists():
        raise RunError(f"{path} has no {beside.name}, which says what it was built for. {again}")
    try:
        document, engine = fitting(read_json(beside), EngineDocument), path.read_bytes()
        if document["flavour"] not in FLAVOURS:
            raise ValueError(f"flavour is {document['flavour']!r:.80}; expected {' or '.join(FLAVOURS)}")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} or {beside.name} cannot be used: {error}. {again}") from error
    if digest(engine) != document["sha256"]:
        raise RunError(
            f"{path} is not the engine that {beside.name} describes ({_built(document)}): it has changed since. "
            f"{_rebuild(path, document)}"
        )
    return document, engine


def require_version(path: Path, document: EngineDocument, version: str) -> None:
    """Refuses an engine of another version; TensorRT loads its own only.

    Raises:
        OtherDeviceError: Names both versions, and the command that builds the engine again.
    """
    if version != document["version"]:
        raise OtherDeviceError(
            f"{path} was {_built(document)}; here is {document['flavour']} {version}. {_rebuild(path, document)}"
        )


def require_capability(path: Path, document: EngineDocument, capability: str) -> None:
    """Refuses an engine for other GPUs.

    Raises:
        OtherDeviceError: Names what it was built for, and the command that builds one for the GPU here.
    """
    if capability not in document["compute_capabilities"]:
        raise OtherDeviceError(
            f"{path} was {_built(document)}; the GPU here has compute capability {capability}. "
            f"{_rebuild(path, document, capability)}"
        )


def cannot_run(path: Path, document: EngineDocument, error: Exception) -> OtherDeviceError:
    """The error of an engine on a machine that has no GPU for it."""
    return OtherDeviceError(f"{path}, {_built(document)}, cannot run here: {error}")


def _built(document: EngineDocument) -> str:
    capabilities = f"compute capability {', '.join(document['compute_capabilities'])}"
    target = f"{document['gpu']} ({capabilities})" if document["gpu"] else capabilities
    return f"built by {document['flavour']} {document['version']} for {target}"


def _rebuild(path: Path, document: EngineDocument, *capabilities: str) -> str:
    words = ["hwnas", "export", str(path.parent), "--exporter", "tensorrt", "--flavour", document["flavour"]]
    words += ["--precision", document["precision"]]
    if not FLAVOURS[document["flavour"]].needs_gpu:
        words += [word for each in capabilities or document["compute_capabilities"] for word in ("--capability", each)]
    if document["max_batch"] > 1:
        words += ["--max-batch", str(document["max_batch"])]
    if document["workspace_mib"] is not None:
        words += ["--workspace-mib", str(document["workspace_mib"])]
    return f"Build it again on the machine it is for: {shlex.join(words)}"
