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
from hwnas.search.gradients import Amended, ArchGradient, FirstOrder, MixedLevel, Unrolled, through_gates, virtual_step
from hwnas.search.products import hessian_product, mixed_product
from hwnas.search.protocols import Batch, Context, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import BinaryGates, Sigmoid, Softmax, StraightThroughGumbel
from hwnas.search.schedules import Linear
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


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("exact", [True, False])
def test_amended_descent_ends_where_theory_says(eta: float, exact: bool) -> None:
    # H = 2, M = -2, v = a: w - 2 + 4 eta a = 0 at w = a; 1.4286 for eta = 0.1, and the optimum 1 for 0.25.
    scheme = Alternating(gradient=Amended(eta, exact=exact), arch_first=True)
    assert converged(scheme, 0.1) == pytest.approx((2 / (1 + 4 * eta),) * 2, abs=1e-6)


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_mixed_level_descent_ends_at_two(weight: float) -> None:
    # 2 a - 2 w + weight (w - 2) = 0 at w = a.
    assert converged(Alternating(gradient=MixedLevel(weight)), 0.1) == pytest.approx((2, 2), abs=1e-6)


@dataclass(frozen=True)
class Quadratic(Analytic):
    """``L_tr = w'Hw / 2 + a'Mw`` and ``L_val = v'w``."""

    terms: tuple[Tensor, Tensor, Tensor] = (torch.zeros(0),) * 3

    def losses(self, batch: Batch, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        (matrix,), a, (hessian, mixed, v) = self.state.supernet.parameters(), gates["a"].weights, self.terms
        w = matrix.flatten()
        loss = w @ hessian @ w / 2 + a @ mixed @ w if batch is TRAIN else v @ w
        yield Part(loss + 0 * a.sum(), torch.zeros(()))


def amended_term(hessian: Tensor, mixed: Tensor, v: Tensor, *, eta: float, exact: bool) -> Tensor:
    """The gradient that ``Amended`` finds there; ``dL_val / da`` is 0."""
    network = nn.Linear(len(v), 1, bias=False).double()
    logit = nn.Parameter(torch.randn(len(mixed), dtype=torch.float64))
    optimizers = torch.optim.SGD(network.parameters(), lr=0.1), torch.optim.SGD([logit], lr=0.1)
    state = SearchState(network, {"a": logit}, *optimizers, torch.Generator())  # type: ignore[arg-type]
    recipe = replace(create_recipe("darts"), relaxation=Itself(), regularizers=())
    terms = hessian, mixed, v
    step = Quadratic(state, recipe, toy_budget(), Compute(device="cpu"), 0.0, TRAIN, lambda: VAL, terms)
    found = Amended(eta, exact=exact)(step, step.recipe.relaxation(
        state.logits, progress=0.0, generator=state.generator)).gradients["a"]  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_the_amended_term_is_that_of_a_known_quadratic(exact: bool) -> None:
    torch.manual_seed(1)
    root, mixed, v = torch.randn(5, 5).double(), torch.randn(3, 5).double(), torch.randn(5).double()
    hessian = root @ root.T
    found = amended_term(hessian, mixed, v, eta=0.1, exact=exact)
    torch.testing.assert_close(found, -0.1 * mixed @ hessian @ v, rtol=1e-6, atol=1e-6)
    c = 3.0  # H = c I: a multiple, eta c^2, of the implicit term -M v / c
    found = amended_term(c * torch.eye(5).double(), mixed, v, eta=0.1, exact=exact)
    torch.testing.assert_close(found, 0.1 * c**2 * (-mixed @ v / c), rtol=1e-6, atol=1e-6)


def test_the_amended_term_may_point_away_from_the_implicit_one() -> None:
    # The authors' claim that it never does is no identity: M H^-1 v = 1 - 0.01, M H v = 1 - 100.
    hessian, mixed, v = (torch.tensor(x).double() for x in ([[1, 0], [0, 100]], [[1, 1]], [1, -1]))
    implicit = -mixed @ torch.linalg.solve(hessian, v)
    found = amended_term(hessian, mixed, v, eta=0.1, exact=False)
    torch.testing.assert_close(found, torch.tensor([9.9]).double())
    assert float(implicit @ found) == pytest.approx(-9.801)


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
    parameters: dict[str, Tensor] = dict(state.supernet.named_parameters())
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
        (Softmax(), Unrolled(), 0.12),  # the published 0.01 is a long step in a net this small
        (Softmax(), Unrolled(eps=1e-4), 1e-4),
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
        error, without = (float((each - reference).norm() / reference.norm()) for each in (value, plain))
        assert error < tolerance
        assert without > max(0.01, 2 * error)  # the correction is not small


@pytest.mark.parametrize("relaxation", [Softmax(), StraightThroughGumbel(1.0), BinaryGates("two")])
def test_without_its_term_a_gradient_is_the_plain_one_bit_for_bit(relaxation: Relaxation) -> None:
    def found(gradient: ArchGradient) -> dict[str, Tensor | None]:
        step = problem(relaxation).step
        return gradient(step, step.draw(relaxation)).gradients

    def one_level() -> dict[str, Tensor | None]:
        step = problem(relaxation).step
        gates = step.draw(relaxation)
        return through_gates(step, gates, step.run(step.weight_batch, gates, weights=True, arch=True)).gradients

    for plain, reduced, term in (
        (found(FirstOrder()), found(Amended(0.0)), found(Amended(0.1))),
        (one_level(), found(MixedLevel(0.0)), found(MixedLevel(1.0))),
    ):
        for name, value in plain.items():
            assert value is not None
            assert torch.equal(value, reduced[name])  # type: ignore[arg-type]
        assert any(not torch.equal(value, term[name]) for name, value in plain.items())  # type: ignore[arg-type]


def test_the_amended_gradient_leaves_weights_and_statistics() -> None:
    step = problem(Softmax()).step
    before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
    exact, near = (made(step, step.draw(Softmax())).gradients for made in (Amended(exact=True), Amended(eps=1e-4)))
    assert all(torch.equal(value, before[name]) for name, value in step.state.supernet.state_dict().items())
    assert all(p.grad is None for p in step.state.supernet.parameters())
    for name, value in exact.items():
        assert value is not None
        torch.testing.assert_close(near[name], value, rtol=0, atol=1e-3 * float(value.norm()))


@pytest.mark.parametrize(
    "gradient",
    [FirstOrder(), Unrolled(exact=True), Unrolled(exact=False), Amended(), Amended(exact=True), MixedLevel()],
)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(gradient: ArchGradient) -> None:
    found = []
    for accumulate in (1, 4):
        made = problem(Softmax(), gradient, accumulate=accumulate)
        made.step.state.supernet.eval()  # in training mode every part has batch statistics of its own
        found.append(gradient(made.step, made.step.draw(Softmax())).gradients)
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_a_direction_of_nothing_has_a_product_of_zeros(empty: bool, exact: bool) -> None:
    step = problem(Softmax()).step
    gates, parameters = step.draw(Softmax()), list(step.state.supernet.parameters())
    direction = [None if empty else torch.zeros_like(parameter) for parameter in parameters]
    curved = hessian_product(step, gates, direction, length=0.01, exact=exact)
    mixed = mixed_product(step, gates, direction, length=0.01, exact=exact)
    for value, like in (*zip(curved, parameters, strict=True), *((mixed[name], gates[name].weights) for name in gates)):
        assert value is not None
        assert torch.equal(value, torch.zeros_like(like))


def smoothed(step: SearchStep) -> SearchStep:
    return replace(step, recipe=replace(step.recipe, label_smoothing=0.3))


def test_mixed_level_adds_so_much_of_the_gradient_of_architecture_images() -> None:
    made = problem(Softmax())
    step = smoothed(made.step)
    gates = step.draw(Softmax())
    dense = {name: Gate(gate.weights, gate.active) for name, gate in gates.items()}
    outputs = [step.state.supernet(batch[0], dense) for batch in (made.train, made.val)]
    # Labels are smoothed in the loss that trains weights, not in that of the architecture.
    train = cross_entropy(outputs[0], made.train[1], label_smoothing=0.3)
    loss = train + 2.0 * cross_entropy(outputs[1], made.val[1])
    expected = torch.autograd.grad(loss, list(step.state.logits.values()))
    found = MixedLevel(2.0)(step, step.draw(Softmax())).gradients
    for value, reference in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-9), (False, 1e-4)])
def test_products_are_those_of_the_smoothed_training_loss(exact: bool, tolerance: float) -> None:
    made = problem(Softmax())
    step, parameters = smoothed(made.step), list(made.step.state.supernet.parameters())
    gates = {
        name: Gate(gate.weights.detach().requires_grad_(), gate.active)
        for name, gate in made.step.draw(Softmax()).items()
    }
    direction = [torch.randn_like(parameter) for parameter in parameters]
    loss = cross_entropy(step.state.supernet(made.train[0], gates), made.train[1], label_smoothing=0.3)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    inputs = [*parameters, *(gate.weights for gate in gates.values())]
    dot = torch.stack([(g * u).sum() for g, u in zip(slopes, direction, strict=True)]).sum()
    expected = torch.autograd.grad(dot, inputs)
    curved = hessian_product(step, gates, direction, length=1e-4, exact=exact)
    mixed = mixed_product(step, gates, direction, length=1e-4, exact=exact)
    for value, reference in zip([*curved, *mixed.values()], expected, strict=True):
        assert value is not None
        assert float((value - reference).norm()) <= tolerance * float(reference.norm()) + 1e-9


def test_the_amended_term_is_weighed_by_the_schedule_of_the_moment() -> None:
    step = replace(problem(Softmax()).step, progress=0.5)
    found, expected = (
        made(step, step.draw(Softmax())).gradients for made in (Amended(Linear(0.0, 0.5)), Amended(0.25))
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())  # type: ignore[arg-type]


def test_probed_options_have_no_exact_second_derivative() -> None:
    with pytest.raises(UsageError, match="no exact second derivative"):
        problem(BinaryGates("all"), Unrolled(exact=True))
    with pytest.raises(UsageError, match=r"Use Amended\(exact=False\)"):
        problem(BinaryGates("all"), Amended(exact=True))
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
