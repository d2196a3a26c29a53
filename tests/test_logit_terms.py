"""Zero-one loss and beta-decay, by their gradients; a growing cost; and what logistic weights mean as probabilities."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.search.candidates import Narrowed
from hwnas.search.growing import PRICE, GrowingCost
from hwnas.search.logit_terms import BetaDecay, ZeroOne
from hwnas.search.protocols import Context, Regularizer
from hwnas.search.relaxations import Sigmoid, Softmax
from hwnas.search.schedules import Linear
from hwnas.space import NONE, create_space
from hwnas.testing.parts import toy_step
from hwnas.testing.search_contracts import check_regularizer
from hwnas.testing.toys import analytic_ms, toy_space

FAIR = create_space("darts-cell", channels=4, num_cells=3, resolution=16, inputs=0, with_none=0)
CELLS = create_space("robust-darts", subspace=2, channels=4, num_cells=3, resolution=16)
GOLD = create_space("gold-nas", channels=4, num_cells=3, resolution=16)


def numbers(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def context(logits: dict[str, nn.Parameter], *, progress: float = 0.0) -> Context:
    """Two layers of the toy space, whatever the logits are."""
    space = toy_space(num_layers=2)
    model = LatencyModel(space, tuple(np.ones(len(layer.signatures)) for layer in space.layers))
    even = {name: torch.full((3,), 1 / 3, dtype=torch.float64) for name in space.choice_names}
    return Context(Budget(model, 4.0), {}, even, even, {}, progress, even, logits)


def slopes(term: Regularizer, logits: dict[str, nn.Parameter], loss: Tensor | None = None) -> dict[str, Tensor]:
    start = torch.zeros((), dtype=torch.float64) if loss is None else loss
    found = torch.autograd.grad(term(start, context(logits)), list(logits.values()))
    return dict(zip(logits, found, strict=True))


@pytest.mark.parametrize(
    ("term", "idle"),
    [(ZeroOne(10.0), ZeroOne(0.0)), (ZeroOne(1.0, "absolute"), None), (BetaDecay(Linear(0.0, 50.0)), BetaDecay(0.0))],
)
def test_contract_of_terms_without_latency(term: Regularizer, idle: Regularizer | None) -> None:
    check_regularizer(term, of_latency=False, idle=idle)


def test_zero_one_has_the_published_gradient() -> None:
    logits = {"a": numbers(0.0, 1.3, -1.3), "b": numbers(0.7, -2.0)}
    found = slopes(ZeroOne(10.0), logits)
    for name, logit in logits.items():
        s = torch.sigmoid(logit.detach())
        torch.testing.assert_close(found[name], -10 * 2 / 5 * (s - 0.5) * s * (1 - s), rtol=0, atol=1e-12)
    assert found["a"][0] == 0  # and so logits of 0 wait for the task
    assert float(found["a"][1]) == pytest.approx(-float(found["a"][2]), abs=1e-15)


def test_the_absolute_zero_one_loss_is_the_mean_distance() -> None:
    logits = {"a": numbers(math.log(3), -math.log(3)), "b": numbers(0.0, 0.0)}  # sigma is 3/4 and 1/4
    value = ZeroOne(4.0, "absolute")(torch.tensor(2.0, dtype=torch.float64), context(logits))
    assert float(value.detach()) == pytest.approx(2.0 - 4 * (0.25 + 0.25) / 4)
    wrong: Literal["square"] = "cube"  # type: ignore[assignment]
    with pytest.raises(UsageError, match="'square' or 'absolute'"):
        ZeroOne(1.0, wrong)


def test_logistic_weights_do_not_depend_on_one_another() -> None:
    logits = {"a": numbers(0.3, -1.0, 2.0)}
    weights = Sigmoid()(logits, progress=0.0, generator=torch.Generator())["a"].weights
    for k in range(3):
        (found,) = torch.autograd.grad(weights[k], [logits["a"]], retain_graph=True)
        assert [float(each) != 0 for each in found] == [j == k for j in range(3)]


def test_beta_decay_has_the_published_gradient() -> None:
    logits = {"a": numbers(0.5, -1.0, 2.0), "b": numbers(0.1, 0.2), "c": numbers(3.0, 3.0, 3.0, 3.0)}
    found = slopes(BetaDecay(1.0), logits)
    for name, logit in logits.items():
        torch.testing.assert_close(found[name], torch.softmax(logit.detach(), 0) / 3, rtol=0, atol=1e-10)
        assert float(found[name].sum()) == pytest.approx(1 / 3, abs=1e-12)


def test_beta_decay_of_equal_logits_is_their_value_and_the_logarithm_of_their_number() -> None:
    logits = {name: numbers(*[1.7] * 8) for name in "ab"}
    value = BetaDecay(1.0)(torch.zeros((), dtype=torch.float64), context(logits))
    assert float(value.detach()) == pytest.approx(1.7 + math.log(8), abs=1e-12)


def test_beta_decay_of_weight_zero_is_darts_bit_for_bit() -> None:
    plain = create_recipe("darts")
    decayed = replace(plain, regularizers=(BetaDecay(0.0), *plain.regularizers))
    steps = [toy_step(recipe, num_layers=2) for recipe in (plain, decayed)]
    for step in steps:
        for _ in range(2):
            step.recipe.scheme(step)
    one, two = (step.state for step in steps)
    assert all(torch.equal(one.logits[name], two.logits[name]) for name in one.logits)
    assert all(torch.equal(a, b) for a, b in zip(one.supernet.parameters(), two.supernet.parameters(), strict=True))


@pytest.mark.parametrize("settles", [True, False])
def test_beta_decay_under_a_constant_gradient_converges_where_it_should(settles: bool) -> None:
    weight, share = 2.0, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    constants = -weight / 2 * share + (0.0 if settles else 0.05)  # of two choices; a sum of -weight / 2 balances
    logits = {"a": numbers(0.4, -0.3, 1.0), "b": numbers(0.0, 0.0, 0.0)}
    given, term = context(logits), BetaDecay(weight)
    for _ in range(4000):
        (found,) = torch.autograd.grad(term((constants * logits["a"]).sum(), given), [logits["a"]])
        with torch.no_grad():
            logits["a"] -= 0.2 * found
    softmax, mean = torch.softmax(logits["a"].detach(), 0), float(logits["a"].detach().mean())
    if settles:
        torch.testing.assert_close(softmax, share, rtol=0, atol=1e-6)
        assert mean == pytest.approx(0.3667, abs=0.5)
    else:  # d mean / dt = -0.05: 4000 steps of 0.2 move it by 40, while what is added to all alike moves no share
        assert mean == pytest.approx(0.3667 - 40, abs=0.5)
        torch.testing.assert_close(softmax, share, rtol=0, atol=1e-6)


@pytest.mark.parametrize("term", [ZeroOne(10.0), BetaDecay(1.0)], ids=["zero-one", "beta-decay"])
def test_terms_of_logits_are_means_over_what_is_searched(term: Regularizer) -> None:
    step = toy_step(create_recipe("fair_darts"), space=FAIR)
    given = step.context(step.draw(Sigmoid()))
    assert [len(logit) for logit in given.logits.values()] == [7] * 28  # without none, in both kinds of cell
    logits = list(step.state.logits.values())
    for slope in torch.autograd.grad(term(torch.zeros(()), given), logits):
        assert slope[0] == 0
        assert (slope[1:] != 0).all()
    weighed = toy_step(replace(create_recipe("darts"), edge_weights=True), space=CELLS)
    seen = weighed.context(weighed.draw(Softmax())).logits
    assert set(seen) == set(CELLS.choice_names)  # and no weights of edges


# --- probabilities of options that do not compete


def test_a_single_operator_has_its_weight_as_its_probability() -> None:
    logits = {choice.name: numbers(9.0, 0.4) for choice in GOLD.choices}
    found = Narrowed.to(GOLD, Sigmoid(), GOLD.candidates).probabilities(logits, progress=0.0)
    s = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
    for p in found.values():
        torch.testing.assert_close(p, torch.stack([1 - s, s]))
    name = GOLD.choice_names[0]
    pruned = Narrowed.to(GOLD, Sigmoid(), {**GOLD.candidates, name: (0,)}).probabilities(logits, progress=0.0)
    assert pruned[name].tolist() == [1.0, 0.0]
    certain = Narrowed.to(GOLD, Softmax(), GOLD.candidates).probabilities(logits, progress=0.0)
    assert certain[name].tolist() == [0.0, 1.0]


def test_several_operators_share_the_largest_of_their_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = {c.name: nn.Parameter(2 * torch.randn(8, dtype=torch.float64, generator=generator)) for c in FAIR.choices}
    found = Narrowed.to(FAIR, Sigmoid(), FAIR.candidates).probabilities(logits, progress=0.0)
    for choice in FAIR.choices:
        assert choice.options[0] == NONE
        p, s = found[choice.name].detach(), torch.sigmoid(logits[choice.name].detach()[1:])
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)
        assert float(p[0]) == pytest.approx(1 - float(s.max()), abs=1e-12)
        torch.testing.assert_close(p[1:] / p[1:].max() * (1 - p[0]), s)


# --- a growing cost


def gold_context(*, max_ms: float, progress: float = 0.0) -> tuple[Context, dict[str, nn.Parameter]]:
    model = LatencyModel(GOLD, tuple(np.array([analytic_ms(s) for s in layer.signatures]) for layer in GOLD.layers))
    generator = torch.Generator().manual_seed(1)
    logits = {c.name: nn.Parameter(torch.randn(2, dtype=torch.float64, generator=generator)) for c in GOLD.choices}
    p = Narrowed.to(GOLD, Sigmoid(), GOLD.candidates).probabilities(logits, progress=0.0)
    return Context(Budget(model, max_ms), {}, p, p, {}, progress), logits


def test_contract_of_a_growing_cost() -> None:
    check_regularizer(GrowingCost(start=1.0, growth=2.0))
    check_regularizer(GrowingCost())
    for wrong in ({"start": 0.0, "growth": 0.0}, {"per_op": -1.0}):
        with pytest.raises(UsageError, match="Leave the term out"):
            GrowingCost(**wrong)


def test_every_operator_costs_its_latency_and_a_constant() -> None:
    given, logits = gold_context(max_ms=1.4)
    per_op, model = 0.5, given.budget.model
    value = GrowingCost(start=3.0, growth=0.0, per_op=per_op)(torch.zeros((), dtype=torch.float64), given)
    found = torch.autograd.grad(value, list(logits.values()))
    for position, (logit, slope) in enumerate(zip(logits.values(), found, strict=True)):
        s = torch.sigmoid(logit.detach()[1])
        (factor,) = (factor for factor in model.factors if factor.choices == (position,))
        ms = float(factor.ms[1] - factor.ms[0])
        expected = 3.0 * s * (1 - s) * (ms / 1.4 + per_op / len(GOLD.choices))
        torch.testing.assert_close(slope[1], expected)
        assert slope[1] > 0
        assert slope[0] == 0


def test_the_price_rises_only_while_networks_are_above_the_line_to_the_limit() -> None:
    term = GrowingCost(start=1.0, growth=8.0)
    slow, _ = gold_context(max_ms=1.4)
    assert float(slow.expected_ms.detach()) > 1.4
    term.update(slow)
    assert slow.scalars[PRICE] == 1.0  # at the start it is on the line
    term.update(replace(slow, progress=0.25))
    assert slow.scalars[PRICE] == pytest.approx(1.0 + 8.0 * 0.25)
    fast = replace(slow, budget=Budget(slow.budget.model, 100.0), progress=0.5)
    term.update(fast)
    assert fast.scalars[PRICE] == pytest.approx(3.0)


def test_the_price_rises_while_all_operators_are_left_though_half_of_their_latency_is_the_limit() -> None:
    given, logits = gold_context(max_ms=1.4)
    (low,), high = given.budget.model.exact_ms_many([[0] * len(logits)]), feasible_range_ms(given.budget.model)[1]
    even = {name: torch.full((2,), 0.5, dtype=torch.float64) for name in logits}  # logits of 0
    middle = replace(given, budget=Budget(given.budget.model, (low + high) / 2), probabilities=even)
    assert float(middle.expected_ms) == pytest.approx(middle.budget.max_ms)
    term = GrowingCost(start=0.0, growth=8.0)
    for progress in (0.0, 0.25, 0.5):
        term.update(now := replace(middle, progress=progress))
        assert now.scalars[PRICE] == pytest.approx(8.0 * progress)
    none = torch.tensor([1.0, 0.0], dtype=torch.float64)
    half = {name: none if "sep3" in name else p for name, p in even.items()}
    due = high + ((low + high) / 2 - high) * 0.75
    (left_ms,) = now.budget.model.exact_ms_many([[int(p[0] < 1) for p in half.values()]])
    assert left_ms < due
    term.update(replace(now, probabilities=half, progress=0.75))
    assert now.scalars[PRICE] == pytest.approx(4.0)


def test_after_a_warm_up_the_price_does_not_jump() -> None:
    given, _ = gold_context(max_ms=1.4)
    term = GrowingCost(start=1.0, growth=8.0)
    for progress, price in ((0.5, 1.0), (0.75, 3.0)):  # the line begins at 0.5
        term.update(now := replace(given, progress=progress))
        assert now.scalars[PRICE] == pytest.approx(price)
