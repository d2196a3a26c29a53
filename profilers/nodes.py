"""What the parts of a network take, from runs in which each was timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def typical_ms(runs: Sequence[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """Average time of every node over the quickest tenth of the runs.

    Args:
        runs: How long each took, and every node in it; in ms. At least one.
    """
    quickest = [nodes for _, nodes in sorted(runs, key=lambda run: run[0])[: max(1, len(runs) // 10)]]
    return {name: float(np.mean([nodes.get(name, 0.0) for nodes in quickest])) for name in quickest[0]}
