"""Runs jobs on a device that is this machine, or one that qemu imitates; and small networks for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hwnas.profilers.onnxruntime import load_runtime
from hwnas.profilers.remote.bundle import Bundle, create_bundle
from hwnas.profilers.remote.jobs import Job, JobModel
from hwnas.profilers.remote.records import Bye, Failure, Hello, Record, read_lines
from onnx import helper

from hwnas.errors import HwnasError

SHAPE = [1, 3, 12, 12]
QUICK: dict[str, Any] = {"warmup_runs": 1, "warmup_ms": 0, "block_warmup_runs": 0, "block_ms": 0, "runs": 2}


def network(seed: int = 0, batch: int | str = 1) -> onnx.ModelProto:
    """Convolution, depthwise convolution, activation, pooling, linear."""
    rng = np.random.default_rng(seed)
    weights = {"w": (8, 3, 3, 3), "d": (8, 1, 3, 3), "l": (8, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "d"], ["c"], pads=[1] * 4, group=8),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "l"], ["y"]),
    ]
    values = [
        helper.make_tensor(name, 1, shape, rng.standard_normal(shape, np.float32).tobytes(), raw=True)
        for name, shape in weights.items()
    ]
    return model(nodes, {"x": (1, [batch, *SHAPE[1:]])}, {"y": (1, [batch, 5])}, values)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any] | None]],
    values: Sequence[Any] = (),
) -> onnx.ModelProto:
    """A model of tensors: name -> element type and shape."""
    ends = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in group.items()] for group in (inputs, outputs)]
    graph = helper.make_graph(nodes, "graph", ends[0], ends[1], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def needed(machine: str) -> Bundle:
    """The bundle for a machine; skips where its parts cannot be had."""
    try:
        return create_bundle(machine)
    except HwnasError as error:
        pytest.skip(str(error))


class Device:
    """Runs jobs in a folder, with an empty home."""

    def __init__(self, bundle: Bundle, folder: Path, launcher: Sequence[str] = ()) -> None:
        self.bundle, self.folder, self.launcher = bundle, folder, launcher
        self.home = folder / "home"
        self.home.mkdir()

    def put(self, name: str, content: onnx.ModelProto | bytes) -> str:
        """Writes a file."""
        raw = content if isinstance(content, bytes) else content.SerializeToString()
        (self.folder / name).write_bytes(raw)
        return name

    def job(self, *models: JobModel, **settings: Any) -> Job:
        """A job of one batch."""
        library = self.bundle.library(str(self.bundle.folder))
        return Job(**{"library": library, "batches": (models,), "deadline_s": 60} | QUICK | settings)

    def start(self, text: str, **more: Any) -> subprocess.Popen[bytes]:
        """Starts the runner with a job file."""
        (self.folder / "job").write_text(text)
        command = [*self.launcher, *self.bundle.command(str(self.bundle.folder), str(self.folder / "job"))]
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "ORT_INTRA_OP_NUM_THREADS": "2"}
        return subprocess.Popen(
            command, env=environment, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        )

    def end(self, text: str) -> tuple[int, list[Record]]:
        """Runs a job file; its exit code and what it said."""
        process = self.start(text)
        out, _ = process.communicate(timeout=60)
        return process.returncode, list(read_lines(out.splitlines(keepends=True)))

    def run(self, job: Job) -> list[Record]:
        """Runs a job that ends well."""
        code, records = self.end(job.text())
        assert code == 0, records
        assert isinstance(records[0], Hello)
        assert isinstance(records[-1], Bye)
        return records

    def refuses(self, text: str, code: int, where: str) -> str:
        """Runs a job file that is refused; the message."""
        ended, records = self.end(text)
        failure = records[-1]
        assert ended == code, records
        assert isinstance(failure, Failure)
        assert (failure.where, failure.fatal) == (where, True)
        return failure.msg

    def output(self, number: int, like: np.ndarray, index: int = 0) -> np.ndarray:
        """A dumped output."""
        return np.fromfile(self.folder / f"{number}.{index}.out", like.dtype).reshape(like.shape)


def only(records: Sequence[Record], kind: type[Any]) -> list[Any]:
    """Records of one kind."""
    return [each for each in records if isinstance(each, kind)]


def on_host(content: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of Python's ONNX Runtime."""
    session = load_runtime().InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))
