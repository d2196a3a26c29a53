"""``benchmarks/target_sweep.py`` says where the space has no network just below a target."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest

from hwnas.testing.toys import toy_latency_model

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "target_sweep.py"


def test_bands_with_and_without_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("target_sweep", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    space, model = toy_latency_model()
    all_networks = list(itertools.product(*map(range, space.num_options)))
    latencies = np.unique(np.round(model.exact_ms_many(all_networks), 9))
    for lower, upper in itertools.pairwise(latencies):
        gap = upper - lower
        assert not script.has_network(model, lower + 0.1 * gap, upper - 0.1 * gap)
        assert script.has_network(model, lower + 0.1 * gap, upper + 1e-6)
