"""``benchmarks/target_sweep.py`` says where the space has no network just below a target."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType

import numpy as np

from hwnas.testing.toys import toy_latency_model


def test_bands_with_and_without_networks(load_benchmark: Callable[[str], ModuleType]) -> None:
    script = load_benchmark("target_sweep")
    space, model = toy_latency_model()
    all_networks = list(itertools.product(*map(range, space.num_options)))
    latencies = np.unique(np.round(model.exact_ms_many(all_networks), 9))
    for lower, upper in itertools.pairwise(latencies):
        gap = upper - lower
        assert not script.has_network(model, lower + 0.1 * gap, upper - 0.1 * gap)
        assert script.has_network(model, lower + 0.1 * gap, upper + 1e-6)
