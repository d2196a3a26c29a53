"""Derivations of what is strong enough and of what pruning has left."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.search.candidates import Narrowed
from hwnas.search.derivations import (
    Argmax,
    MostProbableWithinBudget,
    SampleAndScore,
    StrongestEdges,
    Survivors,
    Threshold,
)
from hwnas.search.protocols import Derivation, Finished
from hwnas.search.relaxations import Concrete, Sigmoid, Softmax
from hwnas.search.surviving import surviving
from hwnas.space import NONE, SearchSpace, create_space
from hwnas.testing.search_contracts import check_derivation
from hwnas.testing.toys import toy_space, toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
FAIR = create_space("darts-cell", inputs=0, with_none=0, **SMALL)
SNAS = create_space("darts-cell", inputs=0, **SMALL)
BENCH = create_space("nas-bench-201", width=0.25, num_cells=1, resolution=16)


def model_of(space: SearchSpace) -> LatencyModel:
    return LatencyModel.from_table(space, toy_table(space))


def sigmoids(weights: dict[str, dict[str, float]]) -> Finished:
    """A finished search of FairDARTS with these weights, and 0.05 for all other options."""
    logits = {}
    for choice in FAIR.choices:
        s = torch.tensor([weights.get(choice.name, {}).get(option, 0.05) for option in choice.options])
        logits[choice.name] = torch.logit(s.double())
    found = Narrowed.to(FAIR, Sigmoid(), FAIR.candidates).probabilities(logits, progress=1.0)
    return Finished(found, lambda architecture: 0.0)


def derived(derivation: Derivation, finished: Finished, max_ms: float | None = None) -> list[dict[str, str]]:
    """The first networks, without what is none."""
    model = model_of(FAIR)
    budget = Budget(model, feasible_range_ms(model)[1] if max_ms is None else max_ms)
    networks = itertools.islice(derivation(finished, budget), 3)
    return [{name: option for name, option in each.options if option != NONE} for each in networks]


THREE = {
    "normal_edge02": {"skip_connect": 0.9},
    "normal_edge04": {"skip_connect": 0.88, "sep_conv_3x3": 0.95},
    "normal_edge14": {"max_pool_3x3": 0.86},
    "normal_edge24": {"dil_conv_5x5": 0.97},
    "normal_edge03": {"sep_conv_5x5": 0.849},
    "reduce_edge05": {"avg_pool_3x3": 0.9},
    "reduce_edge35": {"avg_pool_3x3": 0.9},  # from a node without edges
}


@pytest.mark.parametrize(
    ("derivation", "space"),
    [
        (Threshold(), FAIR),
        (Threshold(0.5, at_most=1), FAIR),
        (Survivors(), SNAS),
        (Survivors(), create_space("gold-nas", **SMALL)),
        (Survivors(), toy_space()),
        (Argmax(), SNAS),
        (MostProbableWithinBudget(), BENCH),
        (SampleAndScore(3), BENCH),
        (StrongestEdges(), BENCH),
        (StrongestEdges(), SNAS),
    ],
    ids=[
        "threshold",
        "low threshold",
        "survivors",
        "gold",
        "chain",
        "argmax",
        "nas-bench-201",
        "drawn",
        "strongest of nas-bench-201",
        "strongest of snas",
    ],
)
def test_contract(derivation: Derivation, space: SearchSpace) -> None:
    check_derivation(derivation, model_of(space))


def test_where_no_weight_is_large_enough_the_strongest_edges_remain(caplog: pytest.LogCaptureFixture) -> None:
    strong = {"normal_edge12": {"sep_conv_3x3": 0.8}, "reduce_edge13": {"skip_connect": 0.7}}
    assert derived(Threshold(), sigmoids(strong))[0] == {
        "normal_edge12": "sep_conv_3x3",
        "reduce_edge13": "skip_connect",
    }
    assert "no way from the image to the output has weights of 0.85 and more" in caplog.text


def test_of_three_strong_edges_the_best_two_are_kept_with_their_best_operator() -> None:
    found = derived(Threshold(), sigmoids(THREE))[0]
    assert found == {
        "normal_edge02": "skip_connect",
        "normal_edge04": "sep_conv_3x3",
        "normal_edge24": "dil_conv_5x5",
        "reduce_edge05": "avg_pool_3x3",
    }
    assert len(derived(Threshold(at_most=3), sigmoids(THREE))[0]) == 5
    assert "normal_edge03" in derived(Threshold(0.84), sigmoids(THREE))[0]


def test_under_a_tight_limit_no_other_edge_comes_in() -> None:
    model, finished = model_of(FAIR), sigmoids(THREE)
    rule = derived(Threshold(), finished)[0]
    row = [choice.options.index(rule.get(choice.name, NONE)) for choice in FAIR.choices]
    (ms,) = model.exact_ms_many([row])
    best = derived(Threshold(), finished, max_ms=float(ms) - 1e-6)
    assert rule not in best
    # Edges are given up at odds of 0.05 / 0.95, 0.03 / 0.97 and 0.1 / 0.9. The second operator of edge 0-4 has
    # 0.88 / 0.95, and a skip is faster than a convolution.
    assert best[0] == {**rule, "normal_edge04": "skip_connect"}
    assert all(set(network) <= set(rule) for network in best)


@pytest.mark.parametrize(
    "space",
    [
        create_space("darts-cell", with_none=0, **SMALL),
        SNAS,
        create_space("gold-nas", **SMALL),
        create_space("tiny-mbconv", resolution=16),
    ],
    ids=["two inputs", "none searched", "two choices an edge", "chain"],
)
def test_a_threshold_refuses_other_spaces(space: SearchSpace) -> None:
    with pytest.raises(UsageError, match="darts-cell:inputs=0,with_none=0"):
        Threshold().check(space)


def test_thresholds_out_of_range_are_refused() -> None:
    for wrong in ({"threshold": 1.5}, {"at_most": 0}):
        with pytest.raises(UsageError, match=r"published 0\.85 and 2"):
            Threshold(**wrong)


def test_a_threshold_refuses_options_that_compete() -> None:
    recipe = create_recipe("fair_darts")
    for relaxation in (Softmax(), Concrete(1.0)):
        with pytest.raises(UsageError, match=f"under {type(relaxation).__name__} they compete"):
            replace(recipe, relaxation=relaxation)


def test_survivors_keep_operators_that_are_less_probable_than_none() -> None:
    space = create_space("gold-nas", **SMALL)
    one, other = "cell0_edge02_sep3", "cell2_edge02_skip"  # the last cell reads the first
    p = {name: torch.tensor([1.0, 0.0]) for name in space.choice_names}
    p[one], p[other] = torch.tensor([0.97, 0.03]), torch.tensor([0.2, 0.8])
    row = surviving(p, space)  # of what is left, whether or not the image reaches the output
    assert {name for name, k in zip(space.choice_names, row, strict=True) if k} == {one, other}
    model = model_of(space)
    low, high = feasible_range_ms(model)
    found = next(Survivors()(Finished(p, lambda architecture: 0.0), Budget(model, high)))
    assert {name for name, option in found.options if option != NONE} == {one, other}
    found = next(Survivors()(Finished(p, lambda architecture: 0.0), Budget(model, low)))
    assert model.exact_ms(found) == low
    with pytest.raises(UsageError, match="inputs=0"):
        Survivors().check(create_space("darts-cell", **SMALL))


def test_snas_derives_cells_with_the_most_probable_option_of_every_edge_none_among_them() -> None:
    recipe, generator = create_recipe("snas"), torch.Generator().manual_seed(3)
    assert isinstance(recipe.relaxation, Concrete)
    logits: dict[str, Tensor] = {c.name: 3 * torch.randn(8, generator=generator) for c in SNAS.choices}
    p = Narrowed.to(SNAS, recipe.relaxation, SNAS.candidates).probabilities(logits, progress=1.0)
    top = [int(p[name].argmax()) for name in SNAS.choice_names]
    lost = [name for name, k in zip(SNAS.choice_names, top, strict=True) if SNAS.choice(name).options[k] == NONE]
    assert 0 < len(lost) < len(top) - 16  # and more edges are left than two a node
    model = model_of(SNAS)
    (ms,), high = model.exact_ms_many(np.array([top])), feasible_range_ms(model)[1]
    assert ms < 0.9 * high
    for max_ms in (float(ms), high):  # however little of the limit it uses
        found = next(recipe.derivation(Finished(p, lambda architecture: 0.0), Budget(model, max_ms)))
        assert SNAS.indices(found) == tuple(top)
    below = next(recipe.derivation(Finished(p, lambda architecture: 0.0), Budget(model, float(ms) - 1e-6)))
    assert SNAS.indices(below) != tuple(top)


def bench(*options: str) -> Finished:
    """A finished search of NAS-Bench-201 in which these options of edges 01, 02, 12, 03, 13 and 23 are certain."""
    hot = {
        choice.name: torch.tensor([float(each == option) for each in choice.options])
        for choice, option in zip(BENCH.choices, options, strict=True)
    }
    return Finished(hot, lambda architecture: 0.0)


@pytest.mark.parametrize("name", ["beta_darts", "gdas", "darts", "snas"])
def test_the_most_probable_option_of_every_edge_is_derived_from_the_benchmark(name: str) -> None:
    model, conv, none = model_of(BENCH), "nor_conv_3x3", NONE
    derivation, free = create_recipe(name).derivation, Budget(model, feasible_range_ms(model)[1])
    for given, expected in (
        ((conv, "skip_connect", none, none, conv, "avg_pool_3x3"), None),
        ((none, conv, conv, none, conv, conv), (none, conv, none, none, none, conv)),  # node 1 is zero
        ((conv, conv, conv, none, conv, none), (conv, none, none, none, conv, none)),  # nothing reads node 2
    ):
        found = next(derivation(bench(*given), free))
        assert tuple(option for _, option in found.options) == (expected or given)


def test_a_network_without_a_way_to_its_output_is_not_derived() -> None:
    model = model_of(BENCH)
    dead = bench("nor_conv_3x3", "nor_conv_3x3", "nor_conv_3x3", NONE, NONE, NONE)
    found = next(StrongestEdges()(dead, Budget(model, feasible_range_ms(model)[1])))
    assert {option for name, option in found.options if name.endswith("3")} != {NONE}
