"""Proof that exported networks compute the same and keep their promise of latency."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.errors import (
    EnvironmentMismatchError,
    MeasurementError,
    MissingPackageError,
    OtherDeviceError,
    RunError,
    UsageError,
)
from hwnas.files import write_json
from hwnas.latency.device import Device
from hwnas.latency.measure import time_rounds
from hwnas.latency.measurement import STATISTIC, Measurement, summarise
from hwnas.latency.table import LatencyTable
from hwnas.plugins import ManySession, NodeTimer, Profiler, Session, create_profiler
from hwnas.run import RunFolder, origin
from hwnas.steps import exported_name, profiler_of, sample, trained_network, training_data
from hwnas.tensorrt_engine import FLAVOURS

from .exported import ONNX_RUNTIME, ExportedFile, export_command, exported_files
from .loading import LoadedNetwork, load
from .numerics import compare

TOLERANCE = 1.01
"""A measurement keeps the target if it exceeds it by no more than the noise of repeating it."""

ROUNDED = {"tf32": "fp32", "bf16": "fp32"}
"""Precision of a table -> that of the file, where a device rounds what the file has in another one."""

NODES_MS = 300.0
"""How long layers are timed apart."""


def verify(run_path: Path | str, *, num_images: int = 256) -> dict[str, Any]:
    """Compares every exported ONNX file and engine with PyTorch on held-out images, and times it.

    One file has a verdict: the one in the table's precision, an engine where the table is one of TensorRT, is timed
    as the table was and held against the target. The others are timed without a verdict: the table says nothing about
    them. One that cannot run here, such as an engine for another GPU, is listed with the reason. Of a run that was
    searched for another device only the numbers are compared, and there is no verdict, unless this is that device.

    Args:
        run_path: A run with at least the file that gets the verdict.
        num_images: Held-out images to compare, evenly spread; fewer if there are fewer.

    Returns:
        What ``verification.json`` holds: ``files``, and what is said of the one with a verdict, or else of the first,
        also at the top;
        ``not_run``, the files that did not run, and why; ``failures`` is empty when every bound of every file that
        should run here holds.

    Raises:
        RunError: The file for the verdict is missing, none runs here, one is damaged or was exported from other
            weights, or the table's runtime does not run ONNX.
        EnvironmentMismatchError: This machine is not the table's device, and the run was searched for this machine.
    """
    run = RunFolder.open(run_path)
    table = run.table()
    path, profiler = _for_the_verdict(run, table)
    if profiler and profiler.consumes != "onnx":
        raise RunError(
            f"the runtime of latency table {table.name}, '{profiler.environment().runtime}', runs PyTorch "
            f"modules and cannot run {path}. Search with a table of a runtime that runs ONNX, such as {ONNX_RUNTIME}."
        )
    files = exported_files(run)
    judged = next(file for file in files if file.path == path) if profiler else None
    if judged:
        _require_fitting(run, table, judged)
    reference = _Reference.of(run, num_images)
    proofs = [_proof(run, table, profiler, judged, reference)] if judged else []
    not_run = []
    for file in files:
        if file is not judged:
            try:
                proofs.append(_proof(run, table, None, file, reference))
            except (MeasurementError, MissingPackageError) as error:
                not_run.append(_not_run(file, error))
    if not proofs:
        raise RunError(f"{run.path} has no exported file that runs here. Run '{export_command(run)}' first.")
    document = {
        **proofs[0],
        "latency": proofs[0]["latency"] if judged else _elsewhere(run),
        "architecture": run.architecture().id,
        "failures": [f"{each['file']}: {failure}" for each in (*proofs, *not_run) for failure in each["failures"]],
        "files": proofs,
        "not_run": not_run,
        "origin": origin(),
    }
    write_json(run.file("verification.json"), document)
    return document


def _for_the_verdict(run: RunFolder, table: LatencyTable) -> tuple[Path, Profiler | None]:
    """The file that is held against the target, and the profiler of the table; no profiler of a device elsewhere."""
    elsewhere, (runtime, precision) = run.config["other_device"], _verdict_on(table)
    path = run.file(exported_name(precision, ".onnx" if runtime == ONNX_RUNTIME else ".engine"))
    absent = RunError(f"{run.path} has no {path.name}. Run '{export_command(run, precision, runtime)}' first.")
    if not (elsewhere or path.exists()):
        raise absent
    try:
        profiler = profiler_of(table)
    except EnvironmentMismatchError:
        if elsewhere:
            return path, None
        raise
    if not path.exists():
        raise absent
    return path, profiler


def _verdict_on(table: LatencyTable) -> tuple[str, str]:
    """Runtime and precision of the file that is held against the target."""
    environment = table.environment
    precision = ROUNDED.get(environment.precision, environment.precision)
    # An engine is timed with one image, and its fp32 is never rounded.
    engine = environment.runtime in FLAVOURS and (environment.precision, environment.batch) == (precision, 1)
    return environment.runtime if engine else ONNX_RUNTIME, precision


def _require_fitting(run: RunFolder, table: LatencyTable, judged: ExportedFile) -> None:
    """Refuses a file that cannot be timed as the table was."""
    runtime, _ = _verdict_on(table)
    command, batch = export_command(run, judged.precision, runtime), table.environment.batch
    if judged.runtime != runtime:
        raise RunError(f"{judged.path} is for {judged.runtime}, latency table {table.name} {runtime}. Run '{command}'.")
    if judged.batch not in (None, batch):
        raise RunError(
            f"{judged.path} runs {judged.batch} images at a time, latency table {table.name} {batch}. "
            f"Run '{command} --batch {batch}', or export it with --dynamic-batch."
        )


def _not_run(file: ExportedFile, error: MeasurementError | MissingPackageError) -> dict[str, Any]:
    """Why there is no proof of a file; a failure, unless it is for another device or needs a package."""
    elsewhere = isinstance(error, OtherDeviceError | MissingPackageError)
    return {
        "file": file.path.name,
        "precision": file.precision,
        "bytes": len(file.content),
        "reason": str(error),
        "failures": [] if elsewhere else [str(error)],
    }


@dataclass(frozen=True)
class _Reference:
    """Held-out images ``(N, channels, height, width)``, PyTorch's logits ``(N, classes)``, and labels ``(N,)``."""

    images: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, run: RunFolder, num_images: int) -> _Reference:
        network = trained_network(run)
        images, labels = map(torch.cat, zip(*sample(training_data(run).val, num_images), strict=True))
        with torch.no_grad():
            logits = torch.cat([network(part) for part in torch.split(images, 32)])
        return cls(images.numpy(), logits.numpy(), labels.numpy())

    def compared(self, session: Session, batch: int, precision: str) -> dict[str, Any]:
        """What ``compare`` says of a session that runs ``batch`` images at a time."""
        padded = np.concatenate([self.images, self.images[:1].repeat(-len(self.images) % batch, axis=0)])
        size = len(padded) if isinstance(session, ManySession) and session.many else batch
        theirs = [session.run(padded[first : first + size]) for first in range(0, len(padded), size)]
        return compare(self.logits, np.concatenate(theirs)[: len(self.logits)], self.labels, precision=precision)


def _proof(
    run: RunFolder, table: LatencyTable, profiler: Profiler | None, file: ExportedFile, reference: _Reference
) -> dict[str, Any]:
    """What there is to say about one file; the profiler is that of the table, for the file with a verdict."""
    options, note = _options(table, file), ""
    opened: Session
    if profiler is not None and file.runtime == ONNX_RUNTIME:  # what the table's runtime makes of the graph
        opened = profiler.prepare(file.content, run.space().input_shape)
    else:
        opened = load(file.path, **options)
    measuring = profiler or create_profiler(file.runtime, **options)
    environment = measuring.environment()
    if profiler is None:
        environment = replace(environment, precision=file.precision, batch=file.batch or 1)
        try:
            create_profiler(file.runtime, precision=file.precision, **options)
        except UsageError as error:
            note = str(error)  # it runs, but the device does not compute in that precision
    with contextlib.closing(opened) as session:
        numerics = reference.compared(session, environment.batch, environment.precision)
        broken = numerics.pop("failures")
        if profiler is None:
            rounds = session.time_rounds() if isinstance(session, LoadedNetwork) else time_rounds(session)
            latency = _quantiles(summarise(rounds), rounds)
        else:
            latency, late = _held_against_target(run, session, Device(profiler, table))
            broken += late
    return {
        "file": file.path.name,
        "precision": file.precision,
        "bytes": len(file.content),
        "environment": environment.to_dict(),
        "note": note,
        "numerics": numerics,
        "latency": latency,
        "layers": _layers(run, measuring, file, judged=profiler is not None),
        "failures": broken,
    }


def _options(table: LatencyTable, file: ExportedFile) -> Mapping[str, Any]:
    """The table's device where it is one of the file's runtime, or else the runtime's own choice."""
    environment = table.environment
    if file.runtime != environment.runtime:
        return {}
    threads = {"threads": environment.threads} if file.runtime == ONNX_RUNTIME else {}
    return {**threads, **environment.arguments}


def _held_against_target(run: RunFolder, session: Session, device: Device) -> tuple[dict[str, Any], list[str]]:
    budget = run.budget()
    predicted = budget.model.exact_ms(run.architecture())
    timed = device.time(session, budget.model.space, limit_ms=budget.max_ms)
    latency = {
        **_quantiles(timed.measurement, timed.rounds),
        "target_ms": budget.max_ms,
        "predicted_ms": predicted,
        "measured_ms": timed.ms,
        "slowdown": timed.slowdown,
        "relative_error": predicted / timed.ms - 1,
        "met": timed.ms <= budget.max_ms * TOLERANCE,
    }
    late = f"measured {timed.ms:.4g} ms exceeds the target of {budget.max_ms:.4g} ms"
    return latency, [] if latency["met"] else [late]


def _elsewhere(run: RunFolder) -> dict[str, Any]:
    """What is known of the latency where the table's device is not here."""
    budget = run.budget()
    unknown = ("measured_ms", "relative_error", "p50_ms", "p90_ms", "p99_ms", "spread", "met")
    return {
        **dict.fromkeys(unknown),
        "target_ms": budget.max_ms,
        "predicted_ms": budget.model.exact_ms(run.architecture()),
        "slowdown": 1.0,
        "statistic": f"{STATISTIC}, as in the table",
    }


def _quantiles(measurement: Measurement, rounds: list[list[float]]) -> dict[str, Any]:
    return {
        "measured_ms": measurement.ms,
        "statistic": f"{STATISTIC}, as in the table",
        "p50_ms": measurement.p50_ms,
        "p90_ms": measurement.p90_ms,
        "p99_ms": float(np.quantile(np.concatenate(rounds), 0.99)),
        "spread": measurement.spread,
    }


def _layers(run: RunFolder, profiler: Profiler, file: ExportedFile, *, judged: bool) -> list[dict[str, Any]]:
    """Latency by layer, as far as it is predicted (for the file with a verdict) or the runtime tells.

    The last one, ``overhead``, is what belongs to no layer. A runtime that tells slows down: measured layers add up to
    more than the network, and their shares are what to look at.
    """
    model = run.budget().model
    predicted = dict(model.layers_ms(run.architecture()))
    rows = [{"name": name, "predicted_ms": ms if judged else None} for name, ms in predicted.items()]
    nodes = profiler.node_ms(file.content, budget_ms=NODES_MS) if isinstance(profiler, NodeTimer) else {}
    if not nodes:
        return [{**row, "measured_ms": None} for row in rows]
    measured = dict.fromkeys(predicted, 0.0)
    for node, ms in nodes.items():
        measured[max((name for name in predicted if f"{name}/" in node), key=len, default="overhead")] += ms
    return [{**row, "measured_ms": measured[str(row["name"])]} for row in rows]
