"""What relaxations, schemes, regularizers and derivations must do; whoever writes one calls the same checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.search.protocols import Batch, Context, Derivation, Finished, Logits, Regularizer, Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.step import Part, SearchStep
from hwnas.space import Architecture, SearchSpace, whole
from hwnas.supernet.gates import Gate, Gates
from hwnas.testing.parts import toy_step
from hwnas.testing.toys import toy_latency_model, toy_space

NUM_DERIVED = 5
"""Architectures that a derivation is asked for."""


def check_relaxation(relaxation: Relaxation) -> None:
    """Gates name every choice, repeat under one seed, and agree with what relaxation and gates say of themselves.

    At the start, in the middle and at the end of a search:

    * one gate a choice, one finite weight an option; only active options weigh anything, and of a hard gate the
      one active option weighs exactly one;
    * the generator is the only randomness, and the logits stay as they are;
    * the weights have a graph to the logits if the relaxation is ``differentiable``, the gates have the
      log-probability of their draw if it ``draws``, and probed options if it ``probes``, and not otherwise;
    * probabilities add up to one, and are in proportion to the weights where these are not drawn.

    Raises:
        AssertionError: Says what the relaxation did wrong.
    """
    space = toy_space()
    logits = {c.name: nn.Parameter(torch.linspace(-1, 1, len(c.options))) for c in space.choices}
    before = {name: logit.detach().clone() for name, logit in logits.items()}
    reached = probed = False
    for progress in (0.0, 0.5, 1.0):
        gates, again, other = (
            relaxation(logits, progress=progress, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
        )
        assert all(torch.equal(logit, before[name]) for name, logit in logits.items()), "it changed the logits"
        assert set(gates) == set(logits), "every choice needs a gate, and nothing else has one"
        for name, gate in gates.items():
            _check_gate(gate, len(logits[name]))
            assert torch.equal(gate.weights, again[name].weights), "the generator must be the only randomness"
            _check_probabilities(relaxation, logits[name], progress, gate, other[name])
            assert (gate.log_prob is not None) == relaxation.draws, "gates have a log_prob if it 'draws', or else none"
            assert gate.weights.requires_grad == relaxation.differentiable, "it is not as 'differentiable' as it says"
            probed |= bool(gate.probed)
        reached |= _reaches(gates, logits)
    assert reached == relaxation.differentiable, "it is 'differentiable', but the weights' gradient is zero"
    assert probed == relaxation.probes, "options are probed if it 'probes', and only then"


def _check_gate(gate: Gate, num_options: int) -> None:
    assert gate.weights.shape == (num_options,), "one weight an option"
    assert bool(torch.isfinite(gate.weights).all()), "weights must be finite"
    assert gate.active, "something must run"
    named = [*gate.active, *gate.probed]
    assert len(set(named)) == len(named), "an option is active or probed, not both, and once"
    assert set(named) <= set(range(num_options)), "active and probed are numbers of options"
    idle = [k for k in range(num_options) if k not in gate.active]
    assert all(gate.weights[k] == 0 for k in idle), "an option that does not run weighs nothing"
    if gate.hard:
        assert len(gate.active) == 1, "a hard gate has one active option"
        assert gate.weights[gate.active[0]] == 1, "the active option of a hard gate weighs exactly one"


def _check_probabilities(relaxation: Relaxation, logit: Tensor, progress: float, gate: Gate, other: Gate) -> None:
    found = relaxation.probabilities(logit, progress=progress).detach()
    assert found.shape == logit.shape, "one probability an option"
    assert bool((found >= 0).all()), "probabilities are not negative"
    assert abs(float(found.sum()) - 1) < 1e-5, "probabilities add up to one"
    if torch.equal(gate.weights, other.weights):
        shares = gate.weights.detach() / gate.weights.detach().sum()
        if not gate.hard:
            assert torch.allclose(found, shares, atol=1e-5), "weights that are not drawn are the probabilities"
    if gate.log_prob is not None:
        difference = float(gate.log_prob.detach().exp() - found[gate.active[0]])
        assert abs(difference) < 1e-5, "log_prob is not that of the option's probability"
        assert gate.log_prob.requires_grad, "log_prob has no graph to the logits"


def _reaches(gates: Gates, logits: Logits) -> bool:
    """Whether a gradient of the weights, other for every option, moves a logit."""
    sums = [
        (g.weights * torch.arange(1.0, len(g.weights) + 1)).sum() for g in gates.values() if g.weights.requires_grad
    ]
    found = torch.autograd.grad(sums, list(logits.values()), allow_unused=True) if sums else []
    return any(value is not None and bool(value.any()) for value in found)


@dataclass(frozen=True)
class _Watched(SearchStep):
    """A step that remembers which options ran with a graph."""

    paths: set[tuple[str, int]] = field(default_factory=set)

    def losses(self, batch: Batch, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        if torch.is_grad_enabled():
            self.paths.update((name, option) for name, gate in gates.items() for option in gate.active)
        return super().losses(batch, gates, label_smoothing=label_smoothing)


def check_scheme(recipe: Recipe, *, progress: float = 0.5, space: SearchSpace | None = None) -> SearchState:
    """One step of a recipe's scheme is finite and repeatable, and keeps weights and logits apart.

    A scheme needs other parts beside it, so the check takes a recipe; ``dataclasses.replace`` puts a scheme of one's
    own into another's. On the toy space, whatever the recipe's optimizers:

    * the same state and seed give the same step, so that the scheme remembers nothing but in the search state;
    * something moves, and figures, weights and logits stay finite;
    * gradients of None are left behind, and batch-norm in training;
    * batches of the architecture half come from ``arch_batch()``, which counts them for resumption, and none comes
      unless the scheme ``needs_arch_split``;
    * weights of options that never ran stay bit for bit, in spite of weight decay;
    * images of the architecture half reach the weights only through the logits.

    Args:
        recipe: With the scheme.
        progress: Of the search; one at which the scheme does all it ever does.
        space: In place of the toy space, such as a small one of cells.

    Returns:
        The state after one step.

    Raises:
        AssertionError: Says what the scheme did wrong.
    """
    before = _state_of(toy_step(recipe, num_layers=2, space=space).state)
    (step, figures), (repeated, same_figures) = (_one_step(recipe, progress, space) for _ in range(2))
    state, after = step.state, _state_of(step.state)
    assert all(map(math.isfinite, figures.values())), f"a figure is not finite: {figures}"
    assert all(bool(torch.isfinite(value).all()) for value in after.values()), "weights or logits are not finite"
    assert figures == same_figures, "the same seed gave other figures; keep nothing outside the search state"
    assert not _differences(after, _state_of(repeated.state)), "the same seed moved weights or logits otherwise"
    assert state.scalars == repeated.state.scalars, "the same seed gave other scalars"
    assert _differences(before, after), "neither weights nor logits moved"
    left = [p for p in (*state.supernet.parameters(), *state.logits.values()) if p.grad is not None]
    assert not left, "it left gradients behind; the next step would add to them"
    assert all(module.training for module in state.supernet.modules()), "it left the supernet out of training"
    moved = _differences(before, after)
    off_path = [name for name in moved if name.startswith(tuple(_idle(state.supernet.space, step.paths)))]
    assert not off_path, f"weights moved that were on no path: {off_path}; a gradient of None must stay None"
    _check_apart(recipe, progress, space)
    return state


def _idle(space: SearchSpace, paths: set[tuple[str, int]]) -> Iterator[str]:
    """How names of weights of options begin that never ran."""
    for layer in space.layers:
        for choice in layer.choices:
            for k in range(len(layer.signatures)):
                if (choice, k) not in paths:
                    yield f"layers.{layer.name}.options.{k}."


def _check_apart(recipe: Recipe, progress: float, space: SearchSpace | None) -> None:
    """With logits that stand still, other images of the architecture half leave the same weights."""
    still = recipe if recipe.arch_lr is None else replace(recipe, arch_lr=0.0)
    results = [
        _one_step(still, progress, space, arch_rate=0.0, negative=negative)[0].state for negative in (False, True)
    ]
    weights = [state.supernet.state_dict() for state in results]
    assert not _differences(*weights), "images of the architecture half moved weights or batch-norm statistics"


def _one_step(
    recipe: Recipe, progress: float, space: SearchSpace | None, *, arch_rate: float = 0.01, negative: bool = False
) -> tuple[_Watched, dict[str, float]]:
    toy = toy_step(recipe, num_layers=2, progress=progress, space=space)
    fetched: list[None] = []
    toy.state.arch_optimizer.param_groups[0]["lr"] = arch_rate
    images, labels = toy.next_arch_batch()

    def fetch() -> Batch:
        fetched.append(None)
        return (-images, 9 - labels) if negative else (images, labels)

    step = _Watched(**{**vars(toy), "next_arch_batch": fetch})
    with step.compute.seeded(0):  # as in a search, for what operators draw themselves
        figures = recipe.scheme(step)
    assert len(fetched) == step.state.arch_batches, "fetch images by step.arch_batch(), or a resumed search differs"
    assert not fetched or recipe.scheme.needs_arch_split, "it used images that it says it does not need"
    return step, figures


def _state_of(state: SearchState) -> dict[str, Tensor]:
    logits = {f"logits of {name}": logit.detach() for name, logit in state.logits.items()}
    return {name: value.clone() for name, value in (state.supernet.state_dict() | logits).items()}


def _differences(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def check_regularizer(term: Regularizer, *, of_latency: bool = True, idle: Regularizer | None = None) -> None:
    """A term is finite, keeps the task's sense, reaches the logits, and makes slow networks dear.

    On a made-up device of 22 to 132 ms, with limits above, below and out of reach of the expected latency, in the
    middle of a search, for a loss and for a reward (a negative loss, such as minus an accuracy):

    * the result is a finite scalar and grows with the task loss;
    * a call changes nothing; ``update`` changes only the scalars of the context, which stay finite, and the term
      remembers nothing elsewhere;
    * after two updates above the limit, a gradient reaches the logits, and following it lowers the expected latency.

    Args:
        term: The regularizer.
        of_latency: Whether it is about latency at all.
        idle: The same with a weight of zero, which must return the loss as it is.

    Raises:
        AssertionError: Says what the regularizer did wrong.
    """
    for ratio, task in itertools.product((0.6, 0.75, 1.25), (2.0, -0.75)):
        context, logits = _context(ratio)
        loss = torch.tensor(task, dtype=torch.float64, requires_grad=True)
        first = term(loss, context)
        assert first.shape == (), "the result is a scalar"
        assert math.isfinite(float(first.detach())), f"at {ratio} times the limit the result is not finite"
        assert torch.equal(first, term(loss, context)), "called twice, it gave two results; state moves in update()"
        assert not context.scalars, "a call changed the scalars; that is what update() is for"
        if idle is not None:
            assert torch.equal(idle(loss, context), loss), "with a weight of zero the loss must stay as it is"
        scalars = _updated(term, context)
        assert scalars == _updated(term, _context(ratio)[0]), "update() depends on more than the context"
        assert all(map(math.isfinite, scalars.values())), f"a scalar is not finite: {scalars}"
        result = term(loss, context)
        assert math.isfinite(float(result.detach())), "after updates the result is not finite"
        (slope,) = torch.autograd.grad(result, [loss], retain_graph=True)
        assert 0 < float(slope) < math.inf, "a smaller task loss must give a smaller result"
        if ratio > 1:
            _check_pull(result, context, logits, of_latency)


def _check_pull(result: Tensor, context: Context, logits: list[nn.Parameter], of_latency: bool) -> None:
    found = torch.autograd.grad(result, logits, retain_graph=True, allow_unused=True)
    pull = torch.cat([torch.zeros_like(x) if g is None else g for g, x in zip(found, logits, strict=True)])
    assert bool(torch.isfinite(pull).all()), "the gradient of the logits is not finite"
    assert bool(pull.any()), "no gradient reaches the logits, so the term has no effect"
    slower = torch.cat(torch.autograd.grad(context.expected_ms, logits, retain_graph=True))
    assert not of_latency or float(pull @ slower) > 0, "above the limit it pulls towards slower networks"


def _updated(term: Regularizer, context: Context) -> dict[str, float]:
    before = {name: p.detach().clone() for name, p in context.probabilities.items()}
    for progress in (context.progress, context.progress + 0.1):
        term.update(replace(context, progress=progress))
    assert all(torch.equal(p, before[name]) for name, p in context.probabilities.items()), "it changed probabilities"
    return dict(context.scalars)


def _context(ratio: float) -> tuple[Context, list[nn.Parameter]]:
    """Two layers of 30, 60 or 5 ms and 12 ms beside them, at a limit that the expected latency is a ratio of."""
    space = toy_space(num_layers=2)
    layers = ([10.0], [30.0, 60.0, 5.0], [30.0, 60.0, 5.0], [2.0])
    model = LatencyModel(space, tuple(map(np.array, layers)))
    logits = {name: nn.Parameter(torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64)) for name in space.choice_names}
    probabilities = {name: torch.softmax(logit, 0) for name, logit in logits.items()}
    gates = {name: Gate(p, (0, 1, 2)) for name, p in probabilities.items()}
    budget = Budget(model, float(model.expected_ms(probabilities).detach()) / ratio)
    context = Context(budget, gates, probabilities, probabilities, {}, 0.5, probabilities, logits)
    return context, list(logits.values())


def check_derivation(derivation: Derivation, model: LatencyModel | None = None) -> None:
    """A derivation yields architectures within the budget, at least one, each once, the same for the same seed.

    In each the image reaches the output, and no operator changes nothing.

    At limits that one network keeps, that some keep and that all keep. A derivation asks for accuracies if it says
    that it ``evaluates``, and only then.

    Args:
        derivation: Asked for a few architectures.
        model: Latency of the space to derive from; that of the toy space if not given.

    Raises:
        AssertionError: Says what the derivation did wrong.
    """
    model = model or toy_latency_model()[1]
    low, high = feasible_range_ms(model)
    generator = torch.Generator().manual_seed(0)
    probabilities = {
        choice.name: torch.softmax(torch.randn(len(choice.options), generator=generator), 0)
        for choice in model.space.choices
    }
    asked = []

    def accuracy(architecture: Architecture) -> float:
        assert derivation.evaluates, "it asks for an accuracy, but does not say that it 'evaluates'"
        asked.append(architecture)
        return float(np.random.default_rng(model.space.indices(architecture)).random())

    for max_ms in (low, (low + high) / 2, high):
        budget, finished = Budget(model, max_ms), Finished(probabilities, accuracy)
        found, again = (list(itertools.islice(derivation(finished, budget), NUM_DERIVED)) for _ in range(2))
        assert found, f"nothing was derived, but a network keeps the limit of {max_ms:g} ms"
        slowest = max(map(model.exact_ms, found))
        assert budget.allows(slowest), f"a network of {slowest:g} ms was derived for a limit of {max_ms:g} ms"
        assert len(set(map(model.space.operators, found))) == len(found), "a network came twice"
        assert found == again, "the same seed derived other networks"
        for row in map(model.space.indices, found):
            assert whole(row, model.space), f"part of a network is cut off: {row}"
    assert bool(asked) == derivation.evaluates, "it says that it 'evaluates', but asked for no accuracy"
