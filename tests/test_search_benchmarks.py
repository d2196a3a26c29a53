"""What the benchmarks of found networks compare them with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import HwnasError
from hwnas.latency.items import Item
from hwnas.latency.measure import measure
from hwnas.space import create_space
from hwnas.testing.toys import AnalyticProfiler

Load = Callable[[str], ModuleType]
IMAGES = (3, 16, 16)


def test_mobilenet_is_as_wide_as_the_latency_allows(load_benchmark: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    same, profiler = load_benchmark("same_latency"), AnalyticProfiler()
    monkeypatch.setattr(same, "NUM_MEASUREMENTS", 1)
    monkeypatch.setattr(same, "WIDTHS", np.arange(0.3, 0.8, 0.1))
    target = measure(profiler, same.mobilenet(0.5, IMAGES, 10), IMAGES).ms
    (width, ms), (next_width, next_ms) = same.fitted_widths(profiler, IMAGES, 10, target)
    assert width >= 0.5
    assert ms <= target * 1.01 < next_ms
    assert next_width == pytest.approx(width + 0.1)
    with pytest.raises(HwnasError, match="no MobileNetV2 is as fast"):
        list(same.fitted_widths(profiler, IMAGES, 10, target / 1e3))


def test_the_mean_best_of_random_networks_is_that_of_draws_without_replacement(load_benchmark: Load) -> None:
    script = load_benchmark("nas_bench_macro")
    numbers = np.arange(1, 101)
    for count in (10, 50):
        assert script.random_best(numbers, count) == pytest.approx(count * 101 / (count + 1), rel=0.01)
    assert script.random_best(numbers, 200) == 100, "all there are"


def test_recipes_of_the_benchmark_have_one_pace(load_benchmark: Load) -> None:
    script = load_benchmark("nas_bench_macro")
    arguments = type("Arguments", (), {"steps": 200})
    for name, options in script.OPTIONS_RUN.items():
        recipe, steps = script.short(name, arguments, 50_000), 200 // max(1, options)
        assert recipe.num_epochs * (45_000 // 64) == pytest.approx(steps if options else 0)
        if options:
            (group,) = recipe.arch_optimizer([nn.Parameter(torch.zeros(1))]).param_groups
            assert group["lr"] * steps == pytest.approx(script.FARTHEST)


def test_networks_have_the_names_of_the_benchmark(load_benchmark: Load) -> None:
    space = create_space("nas-bench-macro")
    assert load_benchmark("nas_bench_macro").code_of(space, space.architecture([0, 1, 2, 0, 1, 2, 0, 1])) == "01201201"


def test_operators_and_networks_are_timed_forth_and_back(load_benchmark: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    space, visited = create_space("tiny-mbconv", resolution=16), []
    items = [*map(Item.operator, space.signatures()[:2]), Item.network(space, space.distinct(1, seed=0)[0])]
    script, profiler = load_benchmark("rounds"), AnalyticProfiler()
    prepare = profiler.prepare

    class Watched:
        def __init__(self, number: int, session: Any) -> None:
            self.number, self.session = number, session

        def time_ms(self, *, budget_ms: float) -> list[float]:
            visited.append(self.number)
            return list(self.session.time_ms(budget_ms=budget_ms))

    numbers = itertools.count()
    monkeypatch.setattr(profiler, "prepare", lambda *arguments: Watched(next(numbers), prepare(*arguments)))
    samples = script.timed(items, profiler, num_rounds=3, visit_ms=0.1)
    assert visited == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert [len(rounds) for rounds in samples] == [3, 3, 3]
    assert min(samples[2][0]) > max(min(samples[0][0]), min(samples[1][0]))  # a network, and operators of it
