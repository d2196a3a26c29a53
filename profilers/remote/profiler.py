"""ONNX Runtime's Linux build on the processor of a phone over adb, or of a board over ssh."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

from hwnas.errors import MeasurementError, UsageError
from hwnas.latency.environment import Environment
from hwnas.onnx_precision import PRECISIONS, to_precision

from ..onnxruntime import average_nodes, parsed_model
from .about import read_state
from .device import Connection, Device
from .errors import TransportError
from .records import Failure, Profile
from .session import RemoteSession
from .topology import format_cores

if TYPE_CHECKING:
    from torch import nn

    from hwnas.space import Shape

MODES = {"hot": 0, "cold": 16 * 2**20}
"""How a network finds the caches -> memory written to before every run: about the largest cache of a phone."""

MAX_NODE_MS = 2000.0
"""A block of a network that is timed node by node holds at least one run, however slow the device."""


class RemoteProfiler:
    """A device elsewhere, with all graph optimisations and a fixed number of pinned threads.

    Args:
        device: ``adb:SERIAL``, ``ssh://[user@]host[:port]``, or ``local``: this machine treated like those.
        precision: ``fp32``, ``fp16`` where the processor computes in it, or ``int8`` (static quantisation).
        batch: Images per run.
        threads: Threads inside one operator, each pinned to a core of its own.
        cores: Which: ``prime``, ``big``, ``little``, or numbers such as ``4-7``; empty for ``prime``.
        mode: ``hot``, or ``cold``: before every run other data take the caches, as in an app that does more.

    Raises:
        UsageError: A value this device cannot measure.
        MissingPackageError: The compiler of the runner, or onnxruntime, is not installed.
        TransportError: The device cannot be reached; another ``MeasurementError`` if it cannot run a job.
    """

    consumes: Literal["onnx"] = "onnx"

    def __init__(
        self,
        *,
        device: str,
        precision: str = "fp32",
        batch: int = 1,
        threads: int = 1,
        cores: str = "",
        mode: str = "hot",
    ) -> None:
        if precision not in PRECISIONS or batch < 1 or mode not in MODES:
            raise UsageError(
                f"precision is {', '.join(PRECISIONS)}, batch at least 1, and mode {' or '.join(MODES)}; got "
                f"'{precision}', {batch} and '{mode}'."
            )
        self._precision, self._batch, self._mode = precision, batch, mode
        self._arguments = {"device": device} | ({"cores": cores} if cores else {})
        self._arguments |= {"mode": mode} if mode != "hot" else {}
        self._connection = Connection.open(device)
        chosen = self._connection.choose(cores or "prime", threads)
        self._device = Device(self._connection, chosen, evict_bytes=MODES[mode])
        for _ in self._device.records(self._device.job(batches=(), rounds=0)):
            pass
        self._device.clean()
        assert self._device.hello is not None
        self._hello = self._device.hello
        if precision == "fp16" and not self._hello.native_fp16:
            raise UsageError(
                f"{self._connection.name} has no arithmetic in fp16: it would compute in fp32 between conversions. "
                "Use precision fp32 or int8."
            )

    def environment(self) -> Environment:
        """The device, the cores, this version of ONNX Runtime, and the state of this moment."""
        about, bundle, device = self._connection.about, self._connection.bundle, self._device
        try:
            state = read_state(device.transport)
        except TransportError as error:
            state = {"state": f"not readable: {error}"}
        details = {
            "build": "ONNX Runtime's Linux build, CPUExecutionProvider",
            "bundle": f"{bundle.digest[:16]}, runner by {bundle.compiler}",
            "system": f"Linux {about.kernel} {self._hello.machine}, pages of {self._hello.page} bytes",
            "android": about.build or "no",
            "native_fp16": "yes" if self._hello.native_fp16 else "no",
            "clusters": "; ".join(map(str, about.clusters)),
            "launcher": " ".join(self._connection.target.launcher) or "none",
            "transfers": "none (inputs and outputs are bound to memory)",
        } | device.tally.details()
        return Environment(
            device=self._connection.name,
            runtime="onnxruntime",
            runtime_version=self._hello.ort,
            precision=self._precision,
            batch=self._batch,
            threads=len(device.cores),
            mode=f"linux build, cores {format_cores(device.cores)}" + (", cold" if self._mode == "cold" else ""),
            arguments=self._arguments,
            details=details | state,
        )

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> RemoteSession:
        """Takes the bytes of an ONNX model, in this profiler's precision; it is sent when it is first needed."""
        graph = to_precision(parsed_model(model), self._precision)
        return self._session(graph, self._batch, input_shape)

    def open(self, model: bytes) -> RemoteSession:
        """Takes an exported model as it is; where its batch may vary, one image is timed.

        Raises:
            MeasurementError: It is no network of images.
        """
        graph = parsed_model(model)
        sizes = [each.dim_value for each in graph.graph.input[0].type.tensor_type.shape.dim]
        if len(graph.graph.input) != 1 or len(graph.graph.output) != 1 or len(sizes) != 4 or not all(sizes[1:]):
            raise MeasurementError(
                f"the model has inputs of shape {sizes}; expected one (batch, channels, height, width), of which only "
                "batch may vary, and one output. Export it with 'hwnas export'."
            )
        return self._session(graph, sizes[0] or 1, tuple(sizes[1:]))

    def node_ms(self, model: bytes, *, budget_ms: float) -> dict[str, float]:
        """See ``hwnas.plugins.NodeTimer``; averages over the quickest tenth of the runs, by ONNX Runtime's profiler."""
        with closing(self.open(model)) as session:
            job = session.job(1, profile="nodes", block_ms=min(budget_ms, MAX_NODE_MS))
            for record in self._device.records(job):
                if isinstance(record, Profile):
                    return average_nodes(json.loads(self._device.pull(record.file)))
                if isinstance(record, Failure):
                    raise MeasurementError(f"its nodes cannot be timed: {record.msg}")
        return {}

    def _session(self, graph: Any, batch: int, shape: tuple[int, ...]) -> RemoteSession:
        from onnx import helper

        kind = helper.tensor_dtype_to_np_dtype(graph.graph.input[0].type.tensor_type.elem_type)
        return RemoteSession(
            self._device,
            graph.SerializeToString(),
            input_shape=tuple(shape),
            input_type=str(kind),
            batch=batch,
            metadata={each.key: each.value for each in graph.metadata_props},
        )
