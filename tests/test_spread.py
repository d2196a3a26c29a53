"""Networks to learn from reach as far as the space does."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas import LatencyModel, create_space
from hwnas.latency.budget import feasible_range_ms
from hwnas.latency.spread import spread
from hwnas.space import Architecture, SearchSpace, macs, whole
from hwnas.testing.toys import toy_space

SPACES = [
    ("nas-bench-macro", {}),
    ("proxylessnas", {}),
    ("nas-bench-201", {"num_cells": 1}),
    ("darts-cell", {"num_cells": 3, "channels": 4}),
    ("darts-cell", {"num_cells": 3, "channels": 4, "inputs": 0}),
]


def multiply_adds(space: SearchSpace, networks: list[Architecture]) -> np.ndarray:
    return LatencyModel.counting(space, macs).exact_ms_many([space.indices(a) for a in networks])


@pytest.mark.parametrize(("name", "options"), SPACES)
def test_networks_reach_from_the_smallest_to_the_largest(name: str, options: dict[str, int]) -> None:
    space = create_space(name, **options)
    networks = spread(space, 24, seed=0)
    assert len(set(networks)) == 24
    assert all(whole(space.indices(a), space) for a in networks)
    found = multiply_adds(space, networks)
    low, high = feasible_range_ms(LatencyModel.counting(space, macs))
    assert (found.min(), found.max()) == pytest.approx((low, high))
    quarters, _ = np.histogram(found, bins=4, range=(low, high))
    assert quarters.min() >= 2
    drawn, _ = np.histogram(multiply_adds(space, space.distinct(24, seed=0)), bins=4, range=(low, high))
    assert drawn.min() < quarters.min()  # which uniform draws do not reach


def test_the_seed_decides_and_the_order_is_random() -> None:
    space = create_space("nas-bench-macro")
    networks = spread(space, 40, seed=0)
    assert networks == spread(space, 40, seed=0)
    assert len({*networks, *spread(space, 40, seed=1)}) > 60
    first, rest = multiply_adds(space, networks[:20]), multiply_adds(space, networks[20:])
    assert first.min() < np.median(rest) < first.max()
    assert np.ptp(first) > np.ptp(multiply_adds(space, networks)) / 2


def test_a_small_space_is_taken_whole() -> None:
    space = toy_space()
    assert set(spread(space, 100, seed=0)) == set(space)
    assert len(set(spread(space, 5, seed=0))) == 5


def test_the_stated_error_holds_for_small_networks_as_well() -> None:
    space = create_space("nas-bench-macro")
    rng = np.random.default_rng(0)
    plain = LatencyModel.counting(space, lambda signature: 0.01 + macs(signature) / 1e8)

    def measured(networks: list[Architecture]) -> np.ndarray:
        """Small networks wait for something else, which no sum of operators knows."""
        sums = plain.exact_ms_many([space.indices(a) for a in networks])
        return np.hypot(sums, 0.3) * rng.normal(1, 0.01, len(networks))

    def fitted(networks: list[Architecture]) -> LatencyModel:
        return plain.calibrate([space.indices(a) for a in networks], measured(networks))

    others = sorted(spread(space, 60, seed=1), key=plain.exact_ms)[:15]
    truth = np.hypot(plain.exact_ms_many([space.indices(a) for a in others]), 0.3)

    def errors(model: LatencyModel) -> tuple[float, float]:
        """What the model says of itself, and what holds for small networks."""
        assert model.error is not None
        far = model.exact_ms_many([space.indices(a) for a in others]) / truth - 1
        return model.error.mape, float(100 * np.abs(far).mean())

    says, holds = errors(fitted(space.distinct(40, seed=0)))
    assert holds > 5 * says  # what uniform draws do not tell
    says, holds = errors(fitted(spread(space, 40, seed=0)))
    assert holds < 1.5 * says
