"""The published checks catch parts that break their contract, clause by clause."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwnas.latency.budget import Budget
from hwnas.recipes import create_recipe
from hwnas.search.derivations import Argmax, SampleAndScore
from hwnas.search.protocols import Context, Derivation, Finished, Regularizer, Relaxation
from hwnas.search.regularizers import AdaptiveLatency, AdditiveLatency, HingeLatency
from hwnas.search.relaxations import BinaryGates, Categorical, Softmax, StraightThroughGumbel
from hwnas.search.schemes import Alternating, OneLevel, Reinforce, WeightsOnly, weight_step
from hwnas.search.step import SearchStep
from hwnas.space import Architecture
from hwnas.supernet.gates import Gate
from hwnas.testing.search_contracts import check_derivation, check_regularizer, check_relaxation, check_scheme

# --- relaxations


def changed(relaxation: Relaxation, **change: Callable[[Gate], Any]) -> Relaxation:
    """The same relaxation, but fields of its gates are made anew."""

    class Changed(type(relaxation)):  # type: ignore[misc]
        def __call__(self, logits: Any, **options: Any) -> dict[str, Gate]:
            gates = super().__call__(logits, **options)
            return {n: replace(g, **{field: make(g) for field, make in change.items()}) for n, g in gates.items()}

    return Changed(**vars(relaxation))


class Half(Softmax):
    """Gates of the first choice only."""

    def __call__(self, logits: Any, **options: Any) -> dict[str, Gate]:
        return dict(itertools.islice(super().__call__(logits, **options).items(), 1))


class Mover(Softmax):
    """Moves the logits."""

    def __call__(self, logits: Any, **options: Any) -> dict[str, Gate]:
        gates = super().__call__(logits, **options)
        with torch.no_grad():
            next(iter(logits.values())).add_(1.0)
        return gates


class Unnormalised(Softmax):
    """Probabilities that add up to more than one."""

    def probabilities(self, logit: Tensor, *, progress: float) -> Tensor:
        return torch.sigmoid(logit)


class Boastful(StraightThroughGumbel):
    """Says that it draws with known probability and probes options."""

    draws, probes = True, True


class Shy(BinaryGates):
    """Does not say that it probes."""

    probes = False


@pytest.mark.parametrize(
    ("relaxation", "words"),
    [
        (Half(), "every choice needs a gate"),
        (Mover(), "changed the logits"),
        (changed(Softmax(), weights=lambda gate: gate.weights**2), "are the probabilities"),
        (Unnormalised(), "add up to one"),
        (Boastful(1.0), "log_prob"),
        (Shy("all"), "probed if it 'probes'"),
        (changed(Softmax(), weights=lambda gate: torch.rand(3)), "only randomness"),
        (changed(Softmax(), weights=lambda gate: gate.weights[:2]), "one weight an option"),
        (changed(Softmax(), weights=lambda gate: gate.weights * torch.nan), "finite"),
        (changed(Softmax(), weights=lambda gate: gate.weights.detach()), "'differentiable'"),
        (changed(Softmax(), active=lambda gate: ()), "something must run"),
        (changed(Softmax(), active=lambda gate: (0, 1)), "does not run weighs nothing"),
        (changed(Softmax(), active=lambda gate: (0, 1, 2, 3)), "numbers of options"),
        (changed(Softmax(), probed=lambda gate: (0,)), "active or probed"),
        (changed(Softmax(), hard=lambda gate: True), "one active option"),
        (changed(StraightThroughGumbel(1.0), weights=lambda gate: 2 * gate.weights), "weighs exactly one"),
        (changed(Categorical(), log_prob=lambda gate: gate.log_prob.detach()), "no graph"),  # type: ignore[union-attr]
        (changed(Categorical(), log_prob=lambda gate: gate.log_prob - 1), "not that of"),  # type: ignore[operator]
    ],
)
def test_wrong_relaxations_are_caught(relaxation: Relaxation, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_relaxation(relaxation)


def test_right_relaxations_pass() -> None:
    check_relaxation(changed(Softmax(tau=0.5)))
    check_relaxation(changed(BinaryGates("two")))


# --- schemes


class Collects(Alternating):
    """Leaves gradients behind."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        figures = super().__call__(step)
        step.run(step.weight_batch, step.draw(step.recipe.relaxation), weights=True)
        return figures


class FillsZeros(WeightsOnly):
    """Gives options that did not run a gradient of zero."""

    needs_arch_split = True

    def __call__(self, step: SearchStep) -> dict[str, float]:
        task = step.run(step.weight_batch, step.draw(step.recipe.relaxation), weights=True)
        for parameter in step.state.supernet.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        step.move_weights()
        return {"weight_loss": float(task.loss)}


class WrongHalf(Alternating):
    """Trains weights on images of the architecture half."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        return super().__call__(step) | weight_step(replace(step, weight_batch=step.arch_batch()))


class MovesBuffers(Alternating):
    """Lets images of the architecture half into the statistics of batch-norm."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        figures = super().__call__(step)
        with torch.no_grad():
            step.run(step.arch_batch(), step.draw(step.recipe.relaxation), buffers=True)
        return figures


class Uncounted(Alternating):
    """Fetches images past the counter."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        step.next_arch_batch()
        return super().__call__(step)


class Undeclared(Alternating):
    """Uses images that it says it does not need."""

    needs_arch_split = False


class Idle(Alternating):
    """Does nothing."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        return {}


class Evaluates(Alternating):
    """Leaves batch-norm in evaluation."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        figures = super().__call__(step)
        step.state.supernet.eval()
        return figures


class Remembers(Alternating):
    """Keeps state of its own."""

    steps: list[int] = []  # noqa: RUF012

    def __call__(self, step: SearchStep) -> dict[str, float]:
        self.steps.append(1)
        return super().__call__(step) | {"steps": len(self.steps)}


class Noisy(Alternating):
    """Draws from a generator that no seed of the search reaches."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        figures = super().__call__(step)
        with torch.no_grad():
            next(iter(step.state.logits.values())).add_(random.random())
        return figures


class NotFinite(Alternating):
    """Reports a number that is none."""

    def __call__(self, step: SearchStep) -> dict[str, float]:
        return super().__call__(step) | {"share": float("nan")}


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Collects(), "left gradients behind"),
        (WrongHalf(), "architecture half moved weights"),
        (MovesBuffers(), "batch-norm statistics"),
        (Uncounted(), r"step\.arch_batch\(\)"),
        (Idle(), "neither weights nor logits moved"),
        (Evaluates(), "out of training"),
        (Remembers(), "nothing outside the search state"),
        (Noisy(), "otherwise"),
        (NotFinite(), "not finite"),
    ],
)
def test_wrong_schemes_are_caught(scheme: Alternating, words: str) -> None:
    recipe = replace(create_recipe("gdas"), scheme=scheme)
    check_scheme(replace(recipe, scheme=Alternating()))
    with pytest.raises(AssertionError, match=words):
        check_scheme(recipe)


def test_a_scheme_that_moves_what_did_not_run_is_caught() -> None:
    right = replace(create_recipe("spos"), derivation=SampleAndScore(2))
    check_scheme(right)
    with pytest.raises(AssertionError, match="on no path"):
        check_scheme(replace(right, scheme=FillsZeros()))


def test_a_scheme_that_uses_images_it_does_not_ask_for_is_caught() -> None:
    recipe = replace(create_recipe("snas"), scheme=OneLevel())
    check_scheme(recipe)
    with pytest.raises(AssertionError, match="does not need"):
        check_scheme(replace(recipe, scheme=Undeclared()))


# --- regularizers


class Term(Regularizer):
    """Made of a function of loss and context, and one for the update."""

    def __init__(self, call: Callable[..., Tensor], update: Callable[[Context], None] = lambda context: None) -> None:
        self.call, self.update = call, update  # type: ignore[method-assign]
        self.calls = 0

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        self.calls += 1
        return self.call(loss, context)


def restless() -> Term:
    """Grows from call to call."""
    term = Term(lambda loss, context: loss + term.calls * context.expected_ms)
    return term


def forgetful() -> Term:
    """Its update depends on how often it was called."""
    counter = itertools.count()
    return Term(AdditiveLatency(1.0), lambda context: context.scalars.update(calls=float(next(counter))))


def greedy(loss: Tensor, context: Context) -> Tensor:
    context.scalars["seen"] = 1.0
    return loss + context.expected_ms


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (Term(lambda loss, context: loss - context.expected_ms), "towards slower"),
        (Term(lambda loss, context: loss * (context.expected_ms / context.budget.max_ms)), "towards slower"),
        (Term(lambda loss, context: loss + context.expected_ms.detach()), "no gradient"),
        (Term(lambda loss, context: -loss + context.expected_ms), "smaller task loss"),
        (Term(lambda loss, context: loss + (context.expected_ms - 200).log()), "limit the result is not finite"),
        (Term(lambda loss, context: loss + context.expected_ms.reshape(1)), "scalar"),
        (Term(greedy), "changed the scalars"),
        (restless(), "called twice"),
        (forgetful(), "more than the context"),
        (Term(AdditiveLatency(1.0), lambda context: context.scalars.update(m=float("inf"))), "scalar is not finite"),
        (AdaptiveLatency(rate=-1.0), "towards slower"),
    ],
)
def test_wrong_regularizers_are_caught(term: Regularizer, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_regularizer(term)


def test_a_weight_of_zero_that_has_an_effect_is_caught() -> None:
    check_regularizer(HingeLatency(1.0), idle=HingeLatency(0.0))
    with pytest.raises(AssertionError, match="weight of zero"):
        check_regularizer(HingeLatency(1.0), idle=Term(lambda loss, context: loss + 1e-3))


# --- derivations


class Derives(Derivation):
    """Made of a function of probabilities, seed and budget."""

    def __init__(self, call: Callable[..., Iterator[Architecture]], *, evaluates: bool = False) -> None:
        self.call, self.evaluates = call, evaluates  # type: ignore[misc]

    def __call__(self, finished: Finished, budget: Budget) -> Iterator[Architecture]:
        return self.call(finished, budget)


def everything(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    return iter(budget.model.space)


def within(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    return (a for a in budget.model.space if budget.allows(budget.model.exact_ms(a)))


def twice(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    for architecture in within(finished, budget):
        yield from (architecture, architecture)


def strictly(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    return (a for a in budget.model.space if budget.model.exact_ms(a) < budget.max_ms)


def by_chance(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    found = list(within(finished, budget))
    return iter([found[i] for i in torch.randperm(len(found))])


def most_accurate(finished: Finished, budget: Budget) -> Iterator[Architecture]:
    return iter(sorted(within(finished, budget), key=finished.evaluate, reverse=True))


@pytest.mark.parametrize(
    ("derivation", "words"),
    [
        (Derives(everything), "was derived for a limit of"),
        (Derives(twice), "came twice"),
        (Derives(strictly), "nothing was derived"),
        (Derives(by_chance), "same seed"),
        (Derives(most_accurate), "does not say that it 'evaluates'"),
        (Derives(within, evaluates=True), "asked for no accuracy"),
    ],
)
def test_wrong_derivations_are_caught(derivation: Derivation, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_derivation(derivation)


def test_right_derivations_pass() -> None:
    check_derivation(Argmax())
    check_derivation(Derives(within))
    check_derivation(Derives(most_accurate, evaluates=True))


def test_reinforce_keeps_its_baseline_in_the_search_state() -> None:
    recipe = replace(create_recipe("gdas"), relaxation=Categorical(), scheme=Reinforce(num_samples=2))
    assert "reward_baseline" in check_scheme(recipe).scalars
