"""Everything a report says, as one document, read from the files of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hwnas.documents import Derivation, Layer, Training, Verification
from hwnas.errors import HwnasError
from hwnas.latency.calibration import measured_networks
from hwnas.latency.environment import Environment
from hwnas.latency.measurement import STATISTIC
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import read_log
from hwnas.run import RunFolder, origin
from hwnas.space import Architecture, OpSignature, SearchSpace
from hwnas.space.genotype import kept_edges, printed

from ..verification import TOLERANCE
from .candidates import candidates
from .commands import commands, missing_sections
from .notes import image_notes, latency_notes, table_notes
from .reading import columns, read_derivation, read_probabilities, read_scores, read_step

Document = dict[str, Any]

FORMAT = "hwnas-report"
FORMAT_VERSION = 1


def collect(run: RunFolder) -> Document:
    """The report of a run as plain data without NaN, sections of steps not done yet as None.

    Raises:
        RunError: The search has not finished, or a file of the run is damaged.
    """
    space, notes = run.space(), list[str]()
    derivation = read_derivation(run, space)
    chosen = derivation["rounds"][-1]
    training = read_step(run, "training.json", Training, chosen["id"], notes)
    verification = read_step(run, "verification.json", Verification, chosen["id"], notes) if training else None
    table, model = _table(run, space, notes)
    measured = _networks(table, model)
    log = read_log(run.file("search.jsonl"))
    results = _results(derivation, training, verification)
    notes += latency_notes(results["latency"], derivation["prediction"], measured, run.config) + table_notes(table)
    left_out = training.get("num_unreadable", 0) if training else 0
    begun = "adoption" if run.adopted else "search"
    notes += image_notes(**{begun: derivation.get("num_unreadable", 0), "training": left_out})
    document: Document = _finite(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run": str(run.path),
            "adopted": run.adopted,
            "space": run.config["space"],
            "notes": notes,
            **results,
            "layers": _layers(derivation, space, verification),
            "cells": _cells(space.architecture(chosen["architecture"])),
            "candidates": candidates(space, model, derivation, read_scores(run)),
            "prediction": {**derivation["prediction"], "networks": measured},
            "input_shape": list(space.input_shape),
            "probabilities": _probabilities(space, derivation["probabilities"], chosen["architecture"]),
            "history": _history(read_probabilities(run, log, space), space, chosen["architecture"]),
            "search": columns(run, "search", log) if run.file("search.jsonl").exists() else None,
            "search_speed": columns(run, "search-speed"),
            "training": _training(run, training),
            "missing": missing_sections(run, training, verification),
            "provenance": _provenance(run, table, training, verification),
            "commands": commands(run, table, training, verification["files"] if verification else []),
        }
    )
    return document


def _results(derivation: Derivation, training: Training | None, verification: Verification | None) -> Document:
    chosen = derivation["rounds"][-1]
    kept = ("file", "precision", "bytes", "environment", "note", "numerics", "latency", "failures")
    return {
        "architecture": {"id": chosen["id"], "options": chosen["architecture"]},
        "latency": _latency(derivation, verification),
        "failures": verification["failures"] if verification else [],
        "accuracy": _accuracy(derivation, training, verification),
        "numerics": verification["numerics"] if verification else None,
        "files": [{name: each.get(name) for name in kept} for each in verification["files"]] if verification else [],
        "not_run": verification["not_run"] if verification else [],
        "size": _size(derivation, verification),
        "reachable_ms": derivation["reachable_ms"],
        "rounds": derivation["rounds"],
        "overhead_ms": derivation["overhead_ms"],
    }


def _table(run: RunFolder, space: SearchSpace, notes: list[str]) -> tuple[LatencyTable | None, LatencyModel | None]:
    """The run's table and what it predicts; a note where it cannot be had."""
    try:
        table = run.table()
        return table, LatencyModel.from_table(space, table)
    except HwnasError as error:
        notes.append(f"The latency table could not be read: {error}")
        return None, None


def _networks(table: LatencyTable | None, model: LatencyModel | None) -> list[Document]:
    """Measured networks with what the calibrated model predicts for them."""
    record = table.calibrations.get(model.space.fingerprint) if table and model else None
    if model is None or not record:
        return []
    indices, measured = measured_networks(record)
    pairs = zip(model.exact_ms_many(indices), measured, strict=True)
    return [{"predicted_ms": float(p), "measured_ms": float(m)} for p, m in pairs]


def _latency(derivation: Derivation, verification: Verification | None) -> Document:
    """Target, prediction and measurement; whether the target is met is decided here, from the numbers."""
    chosen, target = derivation["rounds"][-1], derivation["target_ms"]
    quantiles = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"))
    latency: Document = {"target_ms": target, "predicted_ms": chosen["predicted_ms"], **quantiles}
    proven = verification is not None and verification["latency"]["measured_ms"] is not None
    if verification and proven:
        stated: Document = {**verification["latency"]}
        latency |= {name: stated[name] for name in (*quantiles, "measured_ms", "slowdown", "statistic")}
        limit = target * TOLERANCE
    else:
        latency |= {"measured_ms": chosen["measured_ms"], "slowdown": chosen["slowdown"]}
        latency["statistic"] = f"{STATISTIC}, as in the table"
        limit = target
    measured = latency["measured_ms"]
    ms = latency["predicted_ms"] if measured is None else measured
    return latency | {
        "basis": "verification" if proven else "prediction" if measured is None else "derivation",
        "met": ms <= limit,
        "tolerance": limit / target - 1,
        "relative_error": None if measured is None else latency["predicted_ms"] / measured - 1,
    }


def _accuracy(derivation: Derivation, training: Training | None, verification: Verification | None) -> Document:
    numerics = verification["numerics"] if verification else None
    return {
        "inherited": derivation["accuracy"].get("inherited"),
        "recalibrated": derivation["accuracy"].get("recalibrated"),
        "trained": training["accuracy"] if training else None,
        "pytorch": numerics["accuracy_pytorch"] if numerics else None,
        "exported": numerics["accuracy_exported"] if numerics else None,
    }


def _size(derivation: Derivation, verification: Verification | None) -> Document:
    return {
        "parameters": sum(layer["parameters"] for layer in derivation["layers"]),
        "macs": sum(layer["macs"] for layer in derivation["layers"]),
        "file": verification["file"] if verification else None,
        "bytes": verification["bytes"] if verification else None,
    }


def _layers(derivation: Derivation, space: SearchSpace, verification: Verification | None) -> list[Document]:
    """Every layer, with what the exported file took in it where the runtime tells."""
    measured = {each["name"]: each["measured_ms"] for each in verification["layers"]} if verification else {}
    return [
        {
            **_layer(layer),
            "inputs": list(inputs),
            "measured_ms": measured.get(layer["name"]),
            "part": part,
            "node": spec.is_node,
        }
        for layer, spec, inputs, part in zip(
            derivation["layers"], space.layers, space.wiring, _parts(space), strict=True
        )
    ]


def _parts(space: SearchSpace) -> list[str]:
    """Of every layer the cell that it is in, or else its own name."""
    parts, cell = list[str](), ""
    for layer in reversed(space.layers):
        cell = layer.name if layer.joins else cell if layer.inputs else ""
        parts.append(cell or layer.name)
    return parts[::-1]


def _cells(architecture: Architecture) -> Document | None:
    """The edges of every kind of cell, and the cells as they are printed elsewhere; None without cells."""
    kinds = kept_edges(architecture)
    if not kinds:
        return None
    names = ("source", "target", "option")
    edges = {kind: [dict(zip(names, edge, strict=True)) for edge in some] for kind, some in kinds.items()}
    return {"edges": edges, "genotype": printed(architecture)}


def _layer(layer: Layer) -> Document:
    op = OpSignature.parse(layer["operator"])
    return {
        **layer,
        "op": op.op,
        "kernel": op.attribute("k") or None,
        "expansion": op.attribute("e") or None,
        "groups": op.attribute("g") or None,
        "residual": bool(op.attribute("r")),
        "skipped": op.op == "skip",
        "stride": op.stride,
        "in_shape": list(op.in_shape),
        "out_shape": list(op.out_shape),
    }


def _probabilities(
    space: SearchSpace, probabilities: Mapping[str, list[float]], chosen: Mapping[str, str]
) -> list[Document]:
    return [
        {
            "choice": choice.name,
            "options": [
                {"name": name, "probability": p, "chosen": name == chosen[choice.name]}
                for name, p in zip(choice.options, probabilities[choice.name], strict=True)
            ],
        }
        for choice in space.choices
        if choice.name in probabilities
    ]


def _history(
    moments: list[tuple[int, dict[str, list[float]]]], space: SearchSpace, chosen: Mapping[str, str]
) -> Document | None:
    """Probability of the option that was chosen, over the search; None where none ever moved."""
    numbers = {choice.name: choice.options.index(chosen[choice.name]) for choice in space.choices}
    rows = {
        name: [found[name][number] for _, found in moments]
        for name, number in numbers.items()
        if all(name in found for _, found in moments)
    }
    if not any(max(row) - min(row) > STILL for row in rows.values() if row):
        return None
    return {
        "step": [step for step, _ in moments],
        "choices": [{"choice": name, "probability": row} for name, row in rows.items()],
    }


STILL = 1e-3
"""Change of a probability that nobody sees."""


def _training(run: RunFolder, training: Training | None) -> Document | None:
    if training is None:
        return None
    given: Document = {**training}
    kept = ("data", "num_train", "num_val", "epochs", "accuracy")
    return {
        **{name: given[name] for name in kept},
        "top5": training.get("top5"),
        "curve": columns(run, "training"),
        "speed": columns(run, "training-speed"),
    }


def _provenance(
    run: RunFolder, table: LatencyTable | None, training: Training | None, verification: Verification | None
) -> Document:
    config = run.config
    environment = table.environment if table else None
    if verification and not table:
        environment = Environment.from_dict(verification["environment"])
    return {
        "environment": environment.to_dict() if environment else None,
        "table": {**config["table"], **(_measured(table) if table else {})},
        "search": {
            "recipe": config["recipe"],
            "data": config["data"],
            "seed": config["seed"],
            "origin": run.document["origin"],
        },
        "training": training["origin"] if training else None,
        "verification": verification["origin"] if verification else None,
        "report": origin(),
    }


def _measured(table: LatencyTable) -> Document:
    states = [entry.status for entry in table.entries.values()]
    counts = {status: states.count(status) for status in ("unstable", "failed")}
    return {**table.provenance, "rows": len(states), **counts}


def _finite(value: Any) -> Any:
    """The same data with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
