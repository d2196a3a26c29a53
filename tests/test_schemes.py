"""Every relaxation with every scheme and every regularizer, on the toy space; and what schemes leave alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from hwnas.errors import UsageError
from hwnas.recipes import create_recipe, recipe_names
from hwnas.search.derivations import SampleAndScore
from hwnas.search.gradients import Amended, MixedLevel, Unrolled
from hwnas.search.growing import GrowingCost
from hwnas.search.logit_terms import BetaDecay, ZeroOne
from hwnas.search.perturbations import Adversarial
from hwnas.search.protocols import Batch, Regularizer, Relaxation, UpdateScheme
from hwnas.search.rating import Rated
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import (
    AbsoluteLatency,
    AdaptiveLatency,
    AdditiveLatency,
    Entropy,
    ExpectedCost,
    HingeLatency,
    LogLatency,
    PowerLatency,
    hard_limit,
)
from hwnas.search.relaxations import (
    BinaryGates,
    UniformPath,
)
from hwnas.search.schedules import Linear
from hwnas.search.schemes import BASELINE, Alternating, OneLevel, Reinforce, WeightsOnly
from hwnas.search.step import SearchStep, Task
from hwnas.space import create_space, parameters
from hwnas.supernet.gates import Gate, Gates, one_hot
from hwnas.testing.parts import RELAXATIONS, toy_step
from hwnas.testing.search_contracts import check_scheme

SCHEMES: dict[str, UpdateScheme] = {
    "alternating": Alternating(),
    "arch-first": Alternating(arch_first=True),
    "one-level": OneLevel(),
    "unrolled": Alternating(gradient=Unrolled()),
    "unrolled-exact": Alternating(gradient=Unrolled(exact=True)),
    "amended": Alternating(gradient=Amended()),
    "amended-exact": Alternating(gradient=Amended(exact=True)),
    "mixed-level": Alternating(gradient=MixedLevel()),
    "attacked": Alternating(attack=Adversarial(0.1, steps=2)),
    "reinforce": Reinforce(num_samples=2),
    "rated": Rated(),
    "weights-only": WeightsOnly(),
}
REGULARIZERS: dict[str, tuple[Regularizer, ...]] = {
    "none": (),
    "adaptive": (hard_limit(0.01),),
    "dual-ascent": (AdaptiveLatency(rate=0.1),),
    "additive": (AdditiveLatency(Linear(0.0, 1.0)),),
    "relative": (AdditiveLatency(0.1, relative=True),),
    "log": (LogLatency(units_per_ms=1000),),
    "log-relative": (LogLatency(0.2, 0.3, relative=True, units_per_ms=1000, of="probabilities"),),
    "hinge": (HingeLatency(1.0),),
    "absolute": (AbsoluteLatency(),),
    "power": (PowerLatency(),),
    "entropy": (Entropy(0.1),),
    "cost": (hard_limit(0.01), ExpectedCost(parameters, 1e4, Linear(0.0, 0.1))),
    "two": (hard_limit(0.01), Entropy(-0.1)),
    "zero-one": (ZeroOne(),),
    "beta-decay": (BetaDecay(0.5),),
    "growing": (GrowingCost(),),
}


CELLS = create_space("robust-darts", subspace=2, channels=4, num_cells=3, resolution=16)


def works(relaxation: str, scheme: str, regularizer: str) -> bool:
    """The sets that mean something; all others are refused."""
    if scheme == "weights-only":
        return regularizer == "none"
    if scheme == "reinforce":
        return relaxation == "categorical"
    if scheme == "rated" or relaxation == "turns":
        return scheme == "rated" and relaxation == "turns"
    if relaxation in ("categorical", "uniform"):
        return False
    if scheme == "attacked":
        return relaxation in ("softmax", "tempered", "perturbed")
    return not (scheme in ("unrolled-exact", "amended-exact") and relaxation in ("two-path", "all-probed"))


GUMBEL = create_recipe("gdas")


def composed(relaxation: str, scheme: str, regularizer: str) -> Recipe:
    return replace(
        GUMBEL,
        relaxation=RELAXATIONS[relaxation],
        scheme=SCHEMES[scheme],
        regularizers=REGULARIZERS[regularizer],
        **({"weight_share": 1.0} if scheme == "one-level" else {}),
        **({"derivation": SampleAndScore(num_samples=2)} if scheme == "weights-only" else {}),
    )


@pytest.mark.parametrize(("relaxation", "scheme"), list(itertools.product(RELAXATIONS, SCHEMES)))
def test_every_set_runs_or_says_why_not(relaxation: str, scheme: str) -> None:
    step = None
    for regularizer in REGULARIZERS:
        if not works(relaxation, scheme, regularizer):
            with pytest.raises(UsageError, match="recipe 'gdas'"):
                composed(relaxation, scheme, regularizer)
            continue
        recipe = composed(relaxation, scheme, regularizer)
        step = replace(step, recipe=recipe) if step else toy_step(recipe)
        before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
        assert all(map(math.isfinite, recipe.scheme(step).values()))
        moved = any(not torch.equal(before[name], logit) for name, logit in step.state.logits.items())
        assert moved == (scheme != "weights-only")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contract(scheme: str) -> None:
    # All options run, one runs, one runs and others are probed, one is drawn.
    kinds = ("softmax", "gumbel", "two-path", "categorical", "turns")
    regularizer = "none" if scheme == "weights-only" else "two"
    for relaxation in kinds:
        if works(relaxation, scheme, regularizer):
            check_scheme(composed(relaxation, scheme, regularizer))


@pytest.mark.parametrize("name", recipe_names())
def test_contract_of_recipes(name: str) -> None:
    recipe = create_recipe(name)
    if recipe.proxy:
        recipe = recipe.in_proxy({"num_cells": 3})
    check_scheme(recipe, space=CELLS if name in ("p_darts", "pc_darts") else None)


@pytest.mark.parametrize("scheme", ["alternating", "unrolled", "amended", "mixed-level", "reinforce"])
@pytest.mark.parametrize("relaxation", ["softmax", "two-path", "categorical"])
def test_architecture_steps_leave_weights_and_buffers_alone(relaxation: str, scheme: str) -> None:
    if not works(relaxation, scheme, "none"):
        pytest.skip("refused; see above")
    step = toy_step(composed(relaxation, scheme, "adaptive"), num_layers=2)
    before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
    step.recipe.scheme._arch_step(step)  # type: ignore[attr-defined]
    assert all(torch.equal(value, before[name]) for name, value in step.state.supernet.state_dict().items())
    assert not step.state.weight_optimizer.state
    assert step.state.arch_batches == 1


def test_weight_steps_leave_logits_and_everything_off_the_path_alone() -> None:
    step = toy_step(composed("gumbel", "alternating", "adaptive"), num_layers=2)
    step = replace(step, recipe=replace(step.recipe, scheme=Alternating(warm_up=0.6)))
    logits = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    for _ in range(3):
        before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
        with torch.no_grad():
            step.state.generator.manual_seed(7)
            (gates,) = [step.draw(step.recipe.relaxation)]
            step.state.generator.manual_seed(7)
        assert "arch_loss" not in step.recipe.scheme(step)
        path = {f"layers.{name}.options.{gate.active[0]}." for name, gate in gates.items()}
        for name, value in step.state.supernet.state_dict().items():
            searched = ".options." in name
            if searched and not any(name.startswith(prefix) for prefix in path):
                assert torch.equal(value, before[name]), name
    assert all(torch.equal(logits[name], logit) for name, logit in step.state.logits.items())
    assert step.state.arch_batches == 0
    # Optimizer state exists only for what has been on a path.
    touched = {p for p in step.state.supernet.parameters() if p in step.state.weight_optimizer.state}
    assert 0 < len(touched) < len(list(step.state.supernet.parameters()))


def test_a_weight_step_goes_no_further_than_the_clipped_gradient() -> None:
    recipe = replace(
        create_recipe("darts"), weight_optimizer=partial(torch.optim.SGD, lr=1.0), weight_lr=0.1, grad_clip=5.0
    )
    for norm, clipped in ((2.0, 2.0), (1e6, 5.0)):
        step = toy_step(recipe)
        parameters = list(step.state.supernet.parameters())
        before = nn.utils.parameters_to_vector(parameters).detach().clone()
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, norm / len(before) ** 0.5)
        step.move_weights()
        moved = float((nn.utils.parameters_to_vector(parameters).detach() - before).norm())
        assert moved == pytest.approx(0.1 * clipped, rel=0.05)  # decay moves them a little, too


def test_an_architecture_step_comes_every_so_often() -> None:
    step = toy_step(replace(composed("gumbel", "alternating", "none"), scheme=Alternating(every=3)))
    seen = []
    for number in range(7):
        step.state.step = number
        seen.append("arch_loss" in step.recipe.scheme(step))
    assert seen == [True, False, False, True, False, False, True]
    assert step.state.arch_batches == 3


@pytest.mark.parametrize(
    ("scheme", "too_few"),
    [(Alternating(warm_up=0.5), 1), (Alternating(warm_up=0.5, every=4), 4), (Reinforce(warm_up=0.7, every=3), 3)],
)
def test_a_search_that_would_never_move_the_architecture_is_refused(scheme: UpdateScheme, too_few: int) -> None:
    with pytest.raises(UsageError, match=f"never move in a search of {too_few} steps"):
        scheme.check_length(too_few)
    scheme.check_length(too_few + 1)
    for moving in (scheme, OneLevel()):
        with pytest.raises(UsageError, match="never move in a search of 0 steps"):
            moving.check_length(0)
    OneLevel().check_length(1)
    WeightsOnly().check_length(0)


@pytest.mark.parametrize("arch_first", [True, False])
def test_what_comes_first_is_seen_by_what_comes_second(arch_first: bool) -> None:
    scheme, seen = Alternating(arch_first=arch_first), list[tuple[str, bool, bool]]()
    step = toy_step(replace(composed("softmax", "alternating", "none"), scheme=scheme))
    name, logit = next(iter(step.state.logits.items()))
    weight, start = next(step.state.supernet.parameters()), logit.detach().clone()
    other = weight.detach().clone()

    class Watched(SearchStep):
        def run(self, batch: Batch, gates: Gates, **options: Any) -> Task:
            kind = "weights" if batch is self.weight_batch else "logits"
            mixed = torch.equal(gates[name].weights, torch.softmax(start, 0))
            seen.append((kind, torch.equal(weight, other), mixed))
            return super().run(batch, gates, **options)

    scheme(Watched(**vars(step)))
    order = ["logits", "weights"] if arch_first else ["weights", "logits"]
    # The first at the weights and logits from before; the second at what the first has moved, and the rest as before.
    assert seen == [(order[0], True, True), (order[1], arch_first, not arch_first)]


def test_one_path_may_train_weights_while_another_kind_of_gate_moves_logits() -> None:
    recipe = replace(composed("softmax", "alternating", "none"), weight_relaxation=UniformPath())
    step = toy_step(recipe, num_layers=2)
    recipe.scheme(step)
    options = {n for n, p in step.state.supernet.named_parameters() if p in step.state.weight_optimizer.state}
    for layer in ("layer1", "layer2"):
        assert len({name.split(".options.")[1][0] for name in options if f"{layer}.options." in name}) <= 1
    with pytest.raises(UsageError, match="weight_relaxation"):
        replace(recipe, scheme=OneLevel(), weight_share=1.0)
    with pytest.raises(UsageError, match="weight_relaxation"):
        replace(recipe, scheme=WeightsOnly(), derivation=SampleAndScore(num_samples=2))


class Scripted(Relaxation):
    """Draws what it is told; the log-probabilities are those of the logits."""

    draws = True

    def __init__(self, paths: Iterator[tuple[int, ...]]) -> None:
        self.paths = paths

    def __call__(self, logits: Any, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        path = next(self.paths)
        return {
            name: Gate(one_hot(k, len(logit)), (k,), hard=True, log_prob=torch.log_softmax(logit, 0)[k])
            for (name, logit), k in zip(logits.items(), path, strict=True)
        }


@pytest.mark.parametrize(
    ("include_current", "offset", "factor"), [(True, 0.0, 1 - 0.99 / 2), (True, 5.0, 1 - 0.99 / 2), (False, 0.0, 1.0)]
)
def test_reinforce_has_the_enumerated_gradient(include_current: bool, offset: float, factor: float) -> None:
    # Rewards of the nine networks; two samples a step. A baseline that holds the samples themselves scales the
    # expectation by 1 - decay / num_samples; a constant added to all rewards changes nothing.
    rewards = torch.arange(9, dtype=torch.float64).reshape(3, 3).sqrt()
    recipe = composed("categorical", "reinforce", "none")
    step = toy_step(recipe, num_layers=2)
    logits = {n: nn.Parameter(torch.randn(3, dtype=torch.float64)) for n in step.state.logits}
    p = [torch.softmax(logit.detach(), 0) for logit in logits.values()]
    networks = list(itertools.product(range(3), range(3)))

    class Rewarded(SearchStep):
        def run(self, batch: Batch, gates: Gates, **options: Any) -> Task:
            i, j = (gate.active[0] for gate in gates.values())
            return Task(torch.zeros(()), float(rewards[i, j]) + offset, {})

    old, total = 3.0 + offset, {name: torch.zeros(3, dtype=torch.float64) for name in logits}
    for first, second in itertools.product(networks, networks):
        scheme = Reinforce(num_samples=2, decay=0.99, include_current=include_current)
        state = replace(step.state, logits=logits, scalars={BASELINE: old})
        state.arch_optimizer = torch.optim.SGD(logits.values(), lr=1.0)
        before = {name: logit.detach().clone() for name, logit in logits.items()}
        given = replace(recipe, relaxation=Scripted(iter([first, second])), scheme=scheme)
        scheme._arch_step(
            Rewarded(state, given, step.budget, step.compute, 0.0, step.weight_batch, lambda: (None, None))
        )  # type: ignore[arg-type, return-value]
        chance = math.prod(float(p[0][i] * p[1][j]) for i, j in (first, second))
        for name, logit in logits.items():
            total[name] += chance * (logit.detach() - before[name])
            logit.data.copy_(before[name])
    leaves = [logit.detach().clone().requires_grad_() for logit in logits.values()]
    value = torch.einsum("i,j,ij->", *(torch.softmax(leaf, 0) for leaf in leaves), rewards)
    for found, exact in zip(total.values(), torch.autograd.grad(value, leaves), strict=True):
        torch.testing.assert_close(found, factor * exact)


def test_the_baseline_moves_as_published() -> None:
    step = toy_step(composed("categorical", "reinforce", "none"), num_layers=2)
    scheme = Reinforce(decay=0.05, include_current=False)
    assert scheme._baseline(step, 0.4) == pytest.approx(0.4)  # starts at the first mean
    assert scheme._baseline(step, 0.8) == pytest.approx(0.4)
    assert step.state.scalars[BASELINE] == pytest.approx(0.42)


def test_recipes_refuse_what_would_have_no_effect() -> None:
    recipe = create_recipe("gdas")
    with pytest.raises(UsageError, match=r"leaves no images for the architecture.*Alternating"):
        replace(recipe, weight_share=1.0)
    with pytest.raises(UsageError, match=r"share of 1\.5"):
        replace(recipe, weight_share=1.5)
    with pytest.raises(UsageError, match="wastes them"):
        replace(recipe, scheme=OneLevel())
    with pytest.raises(UsageError, match="only a derivation that evaluates networks can choose"):
        replace(recipe, scheme=WeightsOnly(), regularizers=(), weight_share=1.0)
    with pytest.raises(UsageError, match=r"every 1 or more steps; got 1\.0 and 1"):
        Alternating(warm_up=1.0)
    with pytest.raises(UsageError, match="at least 1 sample"):
        Reinforce(num_samples=0)
    with pytest.raises(UsageError, match="'two' or 'all'"):
        BinaryGates("three")  # type: ignore[arg-type]
