"""Estimates of the architecture gradient: fixed points of a known problem, and automatic second derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from hwnas.compute import Compute
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.recipes import create_recipe
from hwnas.search.gradients import ArchGradient, FirstOrder, Unrolled, virtual_step
from hwnas.search.protocols import Batch, Context, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import BinaryGates, Sigmoid, Softmax, StraightThroughGumbel
from hwnas.search.schemes import Alternating, OneLevel
from hwnas.search.step import Part, SearchStep
from hwnas.supernet.gates import Gate, Gates
from hwnas.supernet.supernet import Supernet
from hwnas.testing.toys import toy_latency_model

TRAIN: Any = "train"
VAL: Any = "val"


class Itself(Relaxation):
    """The gate's weight is the logit."""

    def __call__(self, logits: Any, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        return {"a": Gate(logits["a"], (0,))}


class Analytic(SearchStep):
    """The example of DARTS: ``L_tr = w^2 - 2 a w + a^2`` and ``L_val = a w - 2 a + 1``."""

    def losses(self, batch: Batch, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        (w,), a = self.state.supernet.parameters(), gates["a"].weights
        loss = w**2 - 2 * a * w + a**2 if batch is TRAIN else a * w - 2 * a + 1
        yield Part(loss.sum(), torch.zeros(()))

    def context(self, gates: Gates) -> Context:
        context = Context(self.budget, gates, {}, {}, self.state.scalars, 0.0)
        context.__dict__.update(expected_ms=torch.zeros(()), sampled_ms=torch.zeros(()))
        return context


def converged(scheme: Any, rate: float) -> tuple[float, float]:
    """Where alternating descent from a = 2, w = -2 ends."""
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(network.weight, -2.0)
    logit = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    weight_optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    state = SearchState(
        network, {"a": logit}, weight_optimizer, torch.optim.SGD([logit], lr=0.1), torch.Generator()  # type: ignore[arg-type]
    )  # fmt: skip
    recipe = replace(
        create_recipe("darts"), relaxation=Itself(), scheme=scheme, regularizers=(), weight_lr=rate,
        grad_clip=float("inf"),
    )  # fmt: skip
    step = Analytic(state, recipe, toy_budget(), Compute(device="cpu"), 0.0, TRAIN, lambda: VAL)
    for _ in range(400):
        scheme(step)
    return float(logit.detach()), float(network.weight.detach())


def toy_budget() -> Budget:
    _, model = toy_latency_model()
    return Budget(model, feasible_range_ms(model)[1])


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("exact", [True, False])
def test_unrolled_descent_ends_where_theory_says(rate: float, exact: bool) -> None:
    # a = w = 2 / (1 + 2 xi): 1.6667, 1.3333 and, with xi = 0.5, exactly the bi-level optimum 1.
    scheme = Alternating(gradient=Unrolled(exact=exact), arch_first=True)
    assert converged(scheme, rate) == pytest.approx((2 / (1 + 2 * rate),) * 2, abs=1e-6)


@pytest.mark.parametrize("arch_first", [True, False])
def test_first_order_descent_ends_at_two(arch_first: bool) -> None:
    assert converged(Alternating(gradient=FirstOrder(), arch_first=arch_first), 0.1) == pytest.approx((2, 2), abs=1e-6)


@dataclass(frozen=True)
class Problem:
    """One step on the toy space in double precision."""

    step: SearchStep
    train: Batch
    val: Batch


def problem(relaxation: Relaxation, gradient: ArchGradient = FirstOrder(), *, accumulate: int = 1) -> Problem:
    torch.manual_seed(0)
    budget = toy_budget()
    space = budget.model.space
    supernet = Supernet(space).double().train()
    logits = {c.name: nn.Parameter(torch.randn(len(c.options), dtype=torch.float64)) for c in space.choices}
    recipe = replace(
        create_recipe("darts"), relaxation=relaxation, regularizers=(), scheme=Alternating(gradient=gradient)
    )
    state = SearchState(
        supernet,
        logits,
        torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2),
        torch.optim.Adam(logits.values()),
        torch.Generator().manual_seed(0),
    )
    batches = [(torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(0, 10, (8,))) for _ in range(2)]
    compute = Compute(device="cpu", accumulate=accumulate)
    step = SearchStep(state, recipe, budget, compute, 0.0, batches[0], lambda: batches[1])
    return Problem(step, *batches)


def second_order(made: Problem, gates: Gates, rate: float) -> list[Tensor]:
    """Differentiates through the virtual step by automatic differentiation, gates as plain factors."""
    state = made.step.state
    parameters = dict(state.supernet.named_parameters())
    dense = {name: Gate(gate.weights, gate.active) for name, gate in gates.items()}

    def loss(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        return cross_entropy(functional_call(state.supernet, weights, (batch[0], dense)), batch[1])

    training = loss(parameters, made.train)
    gradients = torch.autograd.grad(training, list(parameters.values()), create_graph=True, allow_unused=True)
    moved = {}
    for (name, w), g in zip(parameters.items(), gradients, strict=True):
        on_path = g is not None and bool((g != 0).any())
        buffer = state.weight_optimizer.state.get(w, {}).get("momentum_buffer", torch.zeros_like(w))
        moved[name] = w - rate * (g + 1e-2 * w + 0.9 * buffer) if on_path and g is not None else w
    return list(torch.autograd.grad(loss(moved, made.val), list(state.logits.values())))


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize(
    ("relaxation", "gradient", "tolerance"),
    [
        (Softmax(), Unrolled(exact=True), 1e-9),
        (Softmax(), Unrolled(eps=1e-4), 1e-4),  # the published 0.01 is a long step in a net this small
        (Sigmoid(), Unrolled(exact=True), 1e-9),
        (StraightThroughGumbel(1.0), Unrolled(exact=True), 1e-9),
        (StraightThroughGumbel(1.0), Unrolled(eps=1e-4), 1e-4),
    ],
)
def test_unrolled_gradient_equals_automatic_second_order(
    relaxation: Relaxation, gradient: Unrolled, tolerance: float, momentum: bool
) -> None:
    made = problem(relaxation, gradient)
    step = made.step
    if momentum:
        step.run(made.train, step.draw(relaxation), weights=True)
        step.move_weights()

    def gates() -> Gates:
        step.state.generator.manual_seed(3)
        return step.draw(relaxation)

    before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
    found = gradient(step, gates()).gradients
    assert all(torch.equal(value, before[name]) for name, value in step.state.supernet.state_dict().items())
    assert all(p.grad is None for p in step.state.supernet.parameters())
    expected = second_order(made, gates(), step.weight_lr)
    first = FirstOrder()(step, gates()).gradients
    for name, reference in zip(found, expected, strict=True):
        value, plain = found[name], first[name]
        assert value is not None
        assert plain is not None
        assert float((value - reference).norm() / reference.norm()) < tolerance
        assert float((plain - reference).norm() / reference.norm()) > 10 * tolerance  # the correction is not small


@pytest.mark.parametrize("gradient", [FirstOrder(), Unrolled(exact=True), Unrolled(exact=False)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(gradient: ArchGradient) -> None:
    found = []
    for accumulate in (1, 4):
        made = problem(Softmax(), gradient, accumulate=accumulate)
        made.step.state.supernet.eval()  # in training mode every part has batch statistics of its own
        found.append(gradient(made.step, made.step.draw(Softmax())).gradients)
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-5, atol=1e-9)


def test_probed_options_have_no_exact_second_derivative() -> None:
    with pytest.raises(UsageError, match="no exact second derivative"):
        problem(BinaryGates("all"), Unrolled(exact=True))
    made = problem(BinaryGates("all"), Unrolled(exact=False))
    found = Unrolled()(made.step, made.step.draw(BinaryGates("all"))).gradients
    assert all(value is not None and torch.isfinite(value).all() for value in found.values())


def test_the_virtual_step_is_defined_for_sgd() -> None:
    with pytest.raises(UsageError, match="defined for plain SGD, not Adam"):
        virtual_step(torch.optim.Adam([nn.Parameter(torch.zeros(1))]), 0.1)
    with pytest.raises(UsageError, match="not Nesterov momentum"):
        virtual_step(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9, nesterov=True), 0.1)


def test_one_level_moves_both_by_one_pass_over_one_batch() -> None:
    made = problem(Softmax())
    step = made.step
    recipe: Recipe = replace(step.recipe, scheme=OneLevel(), weight_share=1.0)
    gates = step.draw(Softmax())
    dense = {name: Gate(gate.weights, gate.active) for name, gate in gates.items()}
    supernet, logits = step.state.supernet, step.state.logits
    loss = cross_entropy(supernet(made.train[0], dense), made.train[1])
    inputs = [*supernet.parameters(), *logits.values()]
    expected = torch.autograd.grad(loss, inputs, allow_unused=True)
    weights = [p.detach().clone() for p in supernet.parameters()]
    scores = [value.detach().clone() for value in logits.values()]
    rate, grad_rate = step.weight_lr, 0.5
    step.state.arch_optimizer = torch.optim.SGD(logits.values(), lr=grad_rate)
    plain = torch.optim.SGD(supernet.parameters(), lr=rate)
    step.state.weight_optimizer = plain
    OneLevel()(replace(step, recipe=replace(recipe, grad_clip=float("inf"))))
    for old, new, gradient in zip(weights, supernet.parameters(), expected, strict=False):
        moved = old if gradient is None else old - rate * gradient
        torch.testing.assert_close(new.detach(), moved)
    for old, new, gradient in zip(scores, logits.values(), expected[len(weights) :], strict=True):
        assert gradient is not None
        torch.testing.assert_close(new.detach(), old - grad_rate * gradient)
