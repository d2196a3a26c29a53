"""Proof that an exported network computes the same and keeps its promise of latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwnas.data import evaluation_batches
from hwnas.errors import RunError
from hwnas.files import read_json, write_json
from hwnas.latency.device import Device
from hwnas.latency.measurement import STATISTIC
from hwnas.plugins import Session
from hwnas.run import RunFolder, origin
from hwnas.steps import matching_data, profiler_of, trained_network

MAX_DIFFERENCE = 1e-4
"""Largest fp32 difference, relative to the largest logit: another order of summation, nothing more."""

MIN_AGREEMENT = 0.999
"""Share of images on which both must name the same class."""

TOLERANCE = 1.01
"""A measurement keeps the target if it exceeds it by no more than the noise of repeating it."""


def verify(run_path: Path | str, *, num_images: int = 256) -> dict[str, Any]:
    """Compares the exported file with PyTorch on held-out images and times it on the table's device.

    Args:
        run_path: A run with an exported ``model.onnx``.
        num_images: Held-out images to compare; fewer if there are fewer.

    Returns:
        What ``verification.json`` holds; ``failures`` is empty when every bound holds.

    Raises:
        RunError: Nothing is exported yet, or the table's runtime does not run ONNX.
        EnvironmentMismatchError: This machine is not the table's device.
    """
    run = RunFolder.open(run_path)
    path = run.file("model.onnx")
    if not path.exists():
        raise RunError(f"{run.path} has no model.onnx. Run 'hwnas export {run.path}' first.")
    profiler = profiler_of(run.table())
    if profiler.consumes != "onnx":
        raise RunError(
            f"the runtime of latency table {run.table().name}, '{profiler.environment().runtime}', runs PyTorch "
            f"modules and cannot run {path}. Search with a table of a runtime that runs ONNX, such as onnxruntime."
        )
    session = profiler.prepare(path.read_bytes(), run.space().input_shape)
    numerics = _numerics(run, session, num_images)
    latency = _latency(run, session, Device(profiler, run.table()))
    failures = [
        text
        for broken, text in (
            (
                numerics["max_relative_difference"] > MAX_DIFFERENCE,
                f"outputs differ by {numerics['max_relative_difference']:.2e}; at most {MAX_DIFFERENCE} is allowed",
            ),
            (
                numerics["top1_agreement"] < MIN_AGREEMENT,
                f"top-1 agrees on {numerics['top1_agreement']:.2%}; at least {MIN_AGREEMENT:.1%} is required",
            ),
            (
                not latency["met"],
                f"measured {latency['measured_ms']:.4g} ms exceeds the target of {latency['target_ms']:.4g} ms",
            ),
        )
        if broken
    ]
    document = {
        "file": path.name,
        "architecture": run.architecture().id,
        "bytes": path.stat().st_size,
        "environment": profiler.environment().to_dict(),
        "numerics": numerics,
        "latency": latency,
        "failures": failures,
        "origin": origin(),
    }
    write_json(run.file("verification.json"), document)
    return document


def _numerics(run: RunFolder, session: Session, num_images: int) -> dict[str, Any]:
    """Differences and agreement on held-out images, and both accuracies on the same images."""
    network, config = trained_network(run), run.config
    data = matching_data(read_json(run.file("training.json"))["data"], run.space(), config["seed"], config["classes"])
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    labels: list[int] = []
    with torch.no_grad():
        for images, truth in evaluation_batches(data.val, 1):
            if len(ours) == num_images:
                break
            ours.append(network(images).numpy()[0])
            theirs.append(session.run(images.numpy())[0])
            labels.append(int(truth))
    a, b, truth_array = np.stack(ours), np.stack(theirs), np.asarray(labels)
    difference = np.abs(a - b)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return {
        "num_images": len(a),
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "max_relative_difference": float(difference.max() / np.abs(a).max()),
        "min_cosine": float(cosine.min()),
        "top1_agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "accuracy_pytorch": float((a.argmax(1) == truth_array).mean()),
        "accuracy_exported": float((b.argmax(1) == truth_array).mean()),
        "bounds": {"max_relative_difference": MAX_DIFFERENCE, "top1_agreement": MIN_AGREEMENT},
    }


def _latency(run: RunFolder, session: Session, device: Device) -> dict[str, Any]:
    budget = run.budget()
    predicted = budget.model.exact_ms(run.architecture())
    timed = device.time(session, budget.model.space, limit_ms=budget.max_ms)
    measured = timed.measurement
    return {
        "target_ms": budget.max_ms,
        "predicted_ms": predicted,
        "measured_ms": timed.ms,
        "slowdown": timed.slowdown,
        "statistic": f"{STATISTIC}, as in the table",
        "relative_error": predicted / timed.ms - 1,
        "p50_ms": measured.p50_ms,
        "p90_ms": measured.p90_ms,
        "p99_ms": float(np.quantile(np.concatenate(timed.rounds), 0.99)),
        "spread": measured.spread,
        "met": timed.ms <= budget.max_ms * TOLERANCE,
    }
