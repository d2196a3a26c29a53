"""Everything a report says, as one document, read from the files of a run."""

from __future__ import annotations

import math
from typing import Any

from hwnas.errors import RunError, TableError
from hwnas.files import read_json
from hwnas.latency.calibration import measured_networks
from hwnas.latency.measurement import STATISTIC
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import read_log
from hwnas.run import RunFolder, origin
from hwnas.space import OpSignature, SearchSpace

from ..verification import TOLERANCE
from .commands import commands, missing_sections
from .notes import latency_notes, table_notes

Document = dict[str, Any]

FORMAT = "hwnas-report"
FORMAT_VERSION = 1

_KEYS = {
    "derivation.json": {
        "target_ms",
        "reachable_ms",
        "rounds",
        "prediction",
        "layers",
        "overhead_ms",
        "probabilities",
        "accuracy",
    },
    "training.json": {"accuracy", "data", "num_train", "num_val", "epochs", "architecture", "origin"},
    "verification.json": {"file", "bytes", "numerics", "latency", "failures", "origin"},
}


def collect(run: RunFolder) -> Document:
    """The report of a run as plain data without NaN, sections of steps not done yet as None.

    Raises:
        RunError: The search has not finished, or a file of the run is damaged.
    """
    if not run.file("derivation.json").exists():
        raise RunError(
            f"{run.path} has no derivation.json: the search has not finished. "
            "Run its 'hwnas search' again with --resume, to the end."
        )
    derivation, space, notes = _read(run, "derivation.json"), run.space(), list[str]()
    chosen = derivation["rounds"][-1]
    training = _of_architecture(run, "training.json", chosen, notes)
    verification = _of_architecture(run, "verification.json", chosen, notes) if training else None
    table, measured = _table(run, space, notes)
    results = _results(derivation, training, verification)
    results["layers"] = [_layer(*each) for each in zip(derivation["layers"], space.wiring, strict=True)]
    notes += latency_notes(results["latency"], derivation["prediction"], measured, run.config) + table_notes(table)
    document: Document = _finite(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run": str(run.path),
            "space": run.config["space"],
            "notes": notes,
            **results,
            "prediction": {**derivation["prediction"], "networks": measured},
            "input_shape": list(space.input_shape),
            "probabilities": _probabilities(space, derivation["probabilities"], chosen["architecture"]),
            "search": _columns(run, "search") if run.file("search.jsonl").exists() else None,
            "search_speed": _columns(run, "search-speed"),
            "training": _training(run, training),
            "missing": missing_sections(run, training, verification),
            "provenance": _provenance(run, table, training, verification),
            "commands": commands(run, table, training),
        }
    )
    return document


def _results(derivation: Document, training: Document | None, verification: Document | None) -> Document:
    chosen = derivation["rounds"][-1]
    return {
        "architecture": {"id": chosen["id"], "options": chosen["architecture"]},
        "latency": _latency(derivation, verification),
        "failures": verification["failures"] if verification else [],
        "accuracy": _accuracy(derivation, training, verification),
        "numerics": verification["numerics"] if verification else None,
        "size": _size(derivation, verification),
        "reachable_ms": derivation["reachable_ms"],
        "rounds": derivation["rounds"],
        "overhead_ms": derivation["overhead_ms"],
    }


def _read(run: RunFolder, name: str) -> Document:
    document = read_json(run.file(name))
    lacking = sorted(_KEYS[name] - set(document if isinstance(document, dict) else ()))
    if lacking:
        raise RunError(f"{run.file(name)} lacks '{lacking[0]}'. Restore it or run the step again.")
    return dict(document)


def _of_architecture(run: RunFolder, name: str, chosen: Document, notes: list[str]) -> Document | None:
    """A step's document, if it is about the architecture that was derived last."""
    if not run.file(name).exists():
        return None
    document = _read(run, name)
    same = document["architecture"] == chosen["id"]
    if not same:
        notes.append(f"{name} is about an architecture that was replaced since, and is left out.")
    return document if same else None


def _table(run: RunFolder, space: SearchSpace, notes: list[str]) -> tuple[LatencyTable | None, list[Document]]:
    """The run's table, and its measured networks with what the calibrated model predicts for them."""
    try:
        table = run.table()
        record = table.calibrations.get(space.fingerprint)
        if not record:
            return table, []
        indices, measured = measured_networks(record)
        predicted = LatencyModel.from_table(space, table).exact_ms_many(indices)
    except (TableError, RunError) as error:
        notes.append(f"The latency table could not be read: {error}")
        return None, []
    pairs = zip(predicted, measured, strict=True)
    return table, [{"predicted_ms": float(p), "measured_ms": float(m)} for p, m in pairs]


def _latency(derivation: Document, verification: Document | None) -> Document:
    """Target, prediction and measurement; whether the target is met is decided here, from the numbers."""
    chosen, target = derivation["rounds"][-1], derivation["target_ms"]
    quantiles = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"))
    latency: Document = {"target_ms": target, "predicted_ms": chosen["predicted_ms"], **quantiles}
    if verification:
        stated = verification["latency"]
        latency |= {name: stated[name] for name in (*quantiles, "measured_ms", "slowdown", "statistic")}
        limit = target * TOLERANCE
    else:
        latency |= {name: chosen[name] for name in ("measured_ms", "slowdown")}
        latency["statistic"] = f"{STATISTIC}, as in the table"
        limit = target
    measured = latency["measured_ms"]
    ms = latency["predicted_ms"] if measured is None else measured
    return latency | {
        "basis": "verification" if verification else "prediction" if measured is None else "derivation",
        "met": ms <= limit,
        "tolerance": limit / target - 1,
        "relative_error": None if measured is None else latency["predicted_ms"] / measured - 1,
    }


def _accuracy(derivation: Document, training: Document | None, verification: Document | None) -> Document:
    numerics = verification["numerics"] if verification else {}
    return {
        **{name: derivation["accuracy"].get(name) for name in ("inherited", "recalibrated")},
        "trained": training["accuracy"] if training else None,
        "pytorch": numerics.get("accuracy_pytorch"),
        "exported": numerics.get("accuracy_exported"),
    }


def _size(derivation: Document, verification: Document | None) -> Document:
    return {
        "parameters": sum(layer["parameters"] for layer in derivation["layers"]),
        "macs": sum(layer["macs"] for layer in derivation["layers"]),
        "file": verification["file"] if verification else None,
        "bytes": verification["bytes"] if verification else None,
    }


def _layer(layer: Document, inputs: tuple[int, ...]) -> Document:
    op = OpSignature.parse(layer["operator"])
    return {
        **layer,
        "op": op.op,
        "inputs": list(inputs),
        "kernel": op.attribute("k") or None,
        "expansion": op.attribute("e") or None,
        "groups": op.attribute("g") or None,
        "residual": bool(op.attribute("r")),
        "skipped": op.op == "skip",
        "stride": op.stride,
        "in_shape": list(op.in_shape),
        "out_shape": list(op.out_shape),
    }


def _probabilities(space: SearchSpace, probabilities: Document, chosen: Document) -> list[Document]:
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


def _columns(run: RunFolder, name: str) -> dict[str, list[Any]]:
    """A log by figure; None where a step did not log it."""
    log = read_log(run.file(f"{name}.jsonl"))
    names = dict.fromkeys(key for entry in log for key in entry if key != "probabilities")
    return {name: [entry.get(name) for entry in log] for name in names}


def _training(run: RunFolder, training: Document | None) -> Document | None:
    if training is None:
        return None
    kept = ("data", "num_train", "num_val", "epochs", "accuracy")
    return {
        **{name: training[name] for name in kept},
        "top5": training.get("top5"),
        "curve": _columns(run, "training"),
        "speed": _columns(run, "training-speed"),
    }


def _provenance(
    run: RunFolder, table: LatencyTable | None, training: Document | None, verification: Document | None
) -> Document:
    config, document = run.config, read_json(run.file("run.json"))
    environment = table.environment.to_dict() if table else (verification or {}).get("environment")
    return {
        "environment": environment,
        "table": {**config["table"], **(_measured(table) if table else {})},
        "search": {
            "recipe": config["recipe"],
            "data": config["data"],
            "seed": config["seed"],
            "origin": document["origin"],
        },
        "training": training["origin"] if training else None,
        "verification": verification["origin"] if verification else None,
        "report": origin(),
    }


def _measured(table: LatencyTable) -> Document:
    states = [entry.status for entry in table.entries.values()]
    counts = {status: states.count(status) for status in ("unstable", "failed")}
    return {"rows": len(states), **counts, **table.provenance}


def _finite(value: Any) -> Any:
    """The same data with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
