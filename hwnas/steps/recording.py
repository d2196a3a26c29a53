"""What a run was asked for, and which architecture it ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hwnas.data import ImageData
from hwnas.files import write_json
from hwnas.latency.budget import Budget
from hwnas.latency.table import LatencyTable
from hwnas.run import RunFolder, table_hash
from hwnas.space import macs, parameters
from hwnas.steps.inputs import left_out


def described(budget: Budget, table: LatencyTable, images: ImageData) -> dict[str, Any]:
    """Space, table, images and limit of a run, which one that goes on must agree with."""
    return {
        "space": budget.model.space.describe(),
        "table": {"path": str(Path(table.path or "").resolve()), "sha256": table_hash(table)},
        "images": images.fingerprint,
        "max_ms": budget.max_ms,
    }


def write_rounds(
    run: RunFolder,
    budget: Budget,
    rounds: Sequence[Mapping[str, Any]],
    data: ImageData,
    *,
    probabilities: Mapping[str, list[float]],
    accuracy: Mapping[str, float],
) -> None:
    """Writes ``derivation.json`` and the architecture of the last round.

    Args:
        run: Where to.
        budget: The target.
        rounds: Architectures held against it; see ``hwnas.documents.Round``.
        data: Its images.
        probabilities: Of every choice's options, where there was a search.
        accuracy: With the supernet's weights, where there was one.
    """
    model = budget.model
    chosen = model.space.architecture(rounds[-1]["architecture"])
    operators = model.space.operators(chosen)
    write_json(
        run.file("derivation.json"),
        {
            "target_ms": budget.max_ms,
            "reachable_ms": list(budget.reachable_ms),
            "met": rounds[-1]["met"],
            "rounds": list(rounds),
            "prediction": {
                "error": model.error.to_dict() if model.error else None,
                "baselines": {name: error.to_dict() for name, error in (model.baselines or {}).items()},
                "poor": model.poor,
            },
            "layers": [
                {
                    "name": name,
                    "operator": str(op),
                    "predicted_ms": ms,
                    "macs": macs(op),
                    "parameters": parameters(op),
                }
                for (name, ms), op in zip(model.layers_ms(chosen), operators, strict=False)
            ],
            "overhead_ms": model.overhead_ms,
            "probabilities": dict(probabilities),
            "accuracy": dict(accuracy),
            "num_unreadable": left_out(data),
        },
    )
    run.save_architecture(chosen)
