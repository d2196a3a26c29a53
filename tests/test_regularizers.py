"""Terms of the architecture loss, by their published numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hwnas.data import load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.loop import search
from hwnas.search.protocols import Context, Regularizer
from hwnas.search.regularizers import (
    AbsoluteLatency,
    AdaptiveLatency,
    AdditiveLatency,
    Entropy,
    ExpectedCost,
    HingeLatency,
    LogLatency,
    PowerLatency,
    mean_entropy,
)
from hwnas.search.schedules import Linear
from hwnas.space import parameters
from hwnas.supernet.gates import Gate
from hwnas.testing.search_contracts import check_regularizer
from hwnas.testing.toys import toy_space

REFERENCE_MS = 80.0


def context(ms: float, *, sampled_ms: float | None = None, progress: float = 0.0) -> Context:
    """A space whose layers cost ``ms`` in all if the first option is taken, at a limit of 80 ms."""
    space = toy_space(num_layers=1)
    layers = [torch.zeros(len(layer.signatures)).double().numpy() for layer in space.layers]
    layers[1][:] = (ms, ms if sampled_ms is None else sampled_ms, min(ms, REFERENCE_MS / 2))
    model = LatencyModel(space, tuple(layers))
    probabilities = {"layer1": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)}
    gate = Gate(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True), (1,), hard=True)
    weights, budget = {"layer1": gate.weights}, Budget(model, REFERENCE_MS)
    return Context(budget, {"layer1": gate}, probabilities, probabilities, {}, progress, weights)


def value(loss: Tensor) -> float:
    return float(loss.detach())


CASES: list[tuple[Regularizer, float, float]] = [
    # CE = 2, latency 100 ms, reference 80 ms; arithmetic of the formulas.
    (AdditiveLatency(0.1), 2.0, 2.0 + 0.1 * 100),
    (AdditiveLatency(0.1, relative=True), 2.0, 2.025),
    (LogLatency(0.2, 0.6), 2.0, 1.000017),
    (LogLatency(0.2, 0.6, power_inside=True), 2.0, 1.10524),
    (LogLatency(0.2, 0.3, relative=True), 2.0, 0.406005),
    # the power of both logarithms cancels; in microseconds both latencies are 1000 times as many
    (LogLatency(0.2, 0.3, relative=True, power_inside=True), 2.0, 0.4 * math.log(100) / math.log(80)),
    (LogLatency(0.2, 0.3, relative=True, units_per_ms=1000), 2.0, 0.4 * (math.log(1e5) / math.log(8e4)) ** 0.3),
    (HingeLatency(0.4), 2.0, 2.1),
    (AbsoluteLatency(0.1), -0.75, -0.725),
    (PowerLatency(0.1), -0.75, -0.733450),
    (PowerLatency(0.1), 2.0, 2.0 * 1.25**0.1),
    (AdaptiveLatency(rate=0.1, penalty=8.0), 2.0, 2.0 + 4.0 * 0.25**2),
]


@pytest.mark.parametrize(
    ("term", "idle"),
    [
        (AdaptiveLatency(rate=0.1), AdaptiveLatency(rate=0.0)),
        (AdaptiveLatency(rate=0.1, penalty=8.0), None),
        (AdditiveLatency(0.1), AdditiveLatency(0.0)),
        (AdditiveLatency(Linear(0.0, 0.1), relative=True, of="sample"), AdditiveLatency(0.0, relative=True)),
        (LogLatency(), LogLatency(scale=1.0, power=0.0)),
        (LogLatency(0.2, 0.3, relative=True, of="probabilities"), LogLatency(1.0, 0.0, relative=True)),
        (LogLatency(units_per_ms=1000, power_inside=True), None),
        (HingeLatency(0.4), HingeLatency(0.0)),
        (AbsoluteLatency(), AbsoluteLatency(0.0)),
        (PowerLatency(), PowerLatency(0.0)),
    ],
)
def test_contract(term: Regularizer, idle: Regularizer | None) -> None:
    check_regularizer(term, idle=idle)


def test_contract_of_what_is_not_about_latency() -> None:
    check_regularizer(Entropy(0.1), of_latency=False, idle=Entropy(0.0))
    check_regularizer(ExpectedCost(parameters, 1e3, 0.1), of_latency=False, idle=ExpectedCost(parameters, 1e3, 0.0))


def test_another_cost_is_that_of_the_operators_whatever_their_latency() -> None:
    given = context(100.0)
    probabilities = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    pair = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64, requires_grad=True)  # drawn: they share the gradient
    given = replace(given, probabilities={"layer1": probabilities}, drawn={"layer1": pair}, progress=0.5)
    space = given.budget.model.space
    costs = torch.tensor([sum(map(parameters, space.operators(space.architecture([k])))) for k in range(3)])
    assert len(set(costs.tolist())) == 3
    found = ExpectedCost(parameters, 1e3, Linear(0.0, 0.4))(torch.tensor(2.0, dtype=torch.float64), given)
    assert value(found) == pytest.approx(2.0 + 0.2 * float(probabilities.detach() @ costs.double()) / 1e3)
    assert torch.autograd.grad(found, [probabilities], allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(found, [pair])
    fixed = parameters(space.layers[0].signatures[0]) + parameters(space.layers[-1].signatures[0])
    torch.testing.assert_close(gradient, 0.2 * (costs.double() - fixed) / 1e3)


@pytest.mark.parametrize("reference", [0.0, -1.0, math.inf, math.nan])
def test_a_cost_needs_a_reference(reference: float) -> None:
    with pytest.raises(UsageError, match=r"reference of a cost is .*; expected more than 0"):
        ExpectedCost(parameters, reference, 0.1)


def test_a_search_under_another_cost_finds_cheaper_networks(tmp_path: Path) -> None:
    space = toy_space()
    nothing_limits = Budget(LatencyModel.counting(space, lambda _: 1.0), 100.0)

    def searched(weight: float) -> float:
        recipe = create_recipe("darts", num_epochs=4, batch_size=64, arch_lr=0.05)
        recipe = replace(recipe, regularizers=(ExpectedCost(parameters, 1e3, weight),))
        run = RunFolder(tmp_path / str(weight))
        run.path.mkdir()
        found = search(nothing_limits, load_data("digits", resolution=8), recipe, run)
        return float(LatencyModel.counting(space, parameters).expected_ms(found.probabilities))

    assert searched(10.0) < 0.9 * searched(0.0)


@pytest.mark.parametrize(("term", "loss", "expected"), CASES)
def test_published_values(term: Regularizer, loss: float, expected: float) -> None:
    given = context(100.0)
    found = term(torch.tensor(loss, dtype=torch.float64), given)
    assert value(found) == pytest.approx(expected, rel=1e-6)
    term.update(given)


@pytest.mark.parametrize(
    "build",
    [
        lambda of: AdditiveLatency(0.1, of=of),
        lambda of: LogLatency(of=of),
        lambda of: HingeLatency(0.1, of=of),
        lambda of: AbsoluteLatency(of=of),
        lambda of: PowerLatency(of=of),
    ],
)
def test_the_gradient_goes_to_the_latency_that_was_asked_for(build: Callable[[str], Regularizer]) -> None:
    for of, reached in (("probabilities", 0), ("sample", 1)):
        given = context(100.0, sampled_ms=120.0)
        inputs: list[Tensor] = [given.drawn["layer1"], given.gates["layer1"].weights]
        loss = build(of)(torch.tensor(2.0, dtype=torch.float64), given)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        assert gradients[reached] is not None
        assert float(gradients[reached].abs().sum()) > 0
        assert gradients[1 - reached] is None


def test_within_the_limit_the_hinge_is_flat_and_the_absolute_term_symmetric() -> None:
    loss = torch.tensor(1.0, dtype=torch.float64)
    assert value(HingeLatency(5.0)(loss, context(79.0))) == 1.0
    fast, slow = (value(AbsoluteLatency(0.1)(loss, context(ms))) for ms in (60.0, 100.0))
    assert fast == pytest.approx(slow)
    assert fast > value(AbsoluteLatency(0.1)(loss, context(80.0))) == 1.0


def test_a_logarithm_below_one_unit_is_refused_and_the_unit_can_be_chosen() -> None:
    loss = torch.tensor(2.0, dtype=torch.float64)
    refused = pytest.raises(UsageError, match=r"take down to 0.5 units.*--set units_per_ms=1000.*it is 1 now")
    for ms, sampled_ms in ((0.5, None), (2.0, 0.5)):
        with refused:
            LogLatency()(loss, context(ms, sampled_ms=sampled_ms))
    with refused:  # before anything is drawn
        LogLatency().check(context(0.5).budget)
    LogLatency(units_per_ms=1000).check(context(0.5).budget)
    with pytest.raises(UsageError, match="units_per_ms is 0; expected more than 0"):
        LogLatency(units_per_ms=0)
    # 500 microseconds: 2 * 0.2 * log(500) ** 0.6 = 0.4 * 6.2146 ** 0.6.
    assert value(LogLatency(units_per_ms=1000)(loss, context(0.5))) == pytest.approx(0.4 * 6.214608**0.6)


def test_weights_may_be_schedules() -> None:
    loss, ramp = torch.tensor(0.0, dtype=torch.float64), Linear(0.0, 2.0)
    at = [value(AdditiveLatency(ramp)(loss, context(10.0, progress=p))) for p in (0.0, 0.5, 1.0)]
    assert at == pytest.approx([0.0, 10.0, 20.0])
    uniform = {"a": torch.full((4,), 0.25, dtype=torch.float64), "b": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    assert float(mean_entropy(uniform)) == pytest.approx(1.3862944 / 2)  # log 4, and nothing
    assert value(Entropy(ramp)(loss, context(1.0, progress=0.5))) == pytest.approx(0.0)


def test_dual_ascent_has_no_quadratic_term() -> None:
    term, given = AdaptiveLatency(rate=0.5), context(120.0)
    assert value(term(torch.tensor(1.0), given)) == 1.0
    term.update(given)  # 0.5 * (120 / 80 - 1)
    assert given.scalars == {"latency_multiplier": pytest.approx(0.25)}
    assert value(term(torch.tensor(1.0), given)) == pytest.approx(1.0 + 0.25 * 0.5)


def test_a_limit_that_every_network_keeps_binds_nothing() -> None:
    given = context(60.0)  # the slowest network takes 60 ms, the limit is 80
    assert not given.budget.binds
    term = AdaptiveLatency(rate=0.5, penalty=10.0)
    for _ in range(3):
        term.update(given)
    assert given.scalars == {"latency_multiplier": 0.0}
    assert value(term(torch.tensor(1.0, dtype=torch.float64), given)) == 1.0
