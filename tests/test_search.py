"""Relaxation, regularizer, scheme, derivation and the search loop on the toy space."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.checkpoint import load_checkpoint
from hwnas.data import ImageData, load_data
from hwnas.errors import NumericsError, UnknownNameError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.device import Device
from hwnas.latency.model import LatencyModel
from hwnas.metrics import read_log
from hwnas.recipes import create_recipe, recipe_names
from hwnas.run import RunFolder
from hwnas.search.derivations import MostProbableWithinBudget, SampleAndScore
from hwnas.search.loop import search
from hwnas.search.protocols import Context, Derivation, Finished
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import MULTIPLIER, AdaptiveLatency, hard_limit
from hwnas.search.relaxations import StraightThroughGumbel, gumbel
from hwnas.search.schedules import Cosine, Exponential, Linear, value_at
from hwnas.search.schemes import Reinforce, WeightsOnly
from hwnas.search.step import SearchStep
from hwnas.search.target import DerivationRound, meet_target, settled
from hwnas.testing.toys import AnalyticProfiler, toy_latency_model, toy_space, toy_table


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", resolution=8)


@pytest.fixture
def budget() -> Budget:
    _, model = toy_latency_model()
    low, high = feasible_range_ms(model)
    return Budget(model, (low + high) / 2)


def one_layer() -> LatencyModel:
    space = toy_space(num_layers=1)
    return LatencyModel.from_table(space, toy_table(space))


@pytest.fixture
def small() -> Budget:
    """Of one layer, half way between the fastest and the slowest network."""
    model = one_layer()
    low, high = feasible_range_ms(model)
    return Budget(model, (low + high) / 2)


def short(**changes: Any) -> Recipe:
    return replace(create_recipe("gdas", num_epochs=2, batch_size=128), **changes)


def test_schedules() -> None:
    assert [Linear(10, 0)(p) for p in (0, 0.5, 1)] == [10, 5, 0]
    assert [Exponential(8, 2)(p) for p in (0, 0.5, 1)] == pytest.approx([8, 4, 2])
    assert [Cosine(1.0)(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [Cosine(1.0, 0.2, warm_up=0.5)(p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.5, 1, 0.2])
    assert value_at(3, 0.7) == 3
    assert value_at(Linear(0, 1), 0.25) == 0.25


def test_gumbel_noise_has_the_right_mean_and_variance() -> None:
    noise = gumbel(torch.zeros(200_000, dtype=torch.float64), torch.Generator().manual_seed(0))
    # Euler's constant and pi^2 / 6; the standard error of the mean is sqrt(1.645 / 2e5) = 0.003.
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.012)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.03)
    assert torch.isfinite(noise).all()


def test_gumbel_noise_is_finite_even_where_the_draw_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **options: self.zero_())
    assert torch.isfinite(gumbel(torch.zeros(4), torch.Generator())).all()


def test_straight_through_gradient_is_the_published_one() -> None:
    torch.manual_seed(0)
    tau, logits = 0.7, {"a": nn.Parameter(torch.randn(4, dtype=torch.float64))}
    seed, contributions = 3, torch.randn(4, dtype=torch.float64)  # <g, o_k(x)>
    gate = StraightThroughGumbel(tau)(logits, progress=0, generator=torch.Generator().manual_seed(seed))["a"]
    (i,) = gate.active
    (gate.weights[i] * contributions[i]).backward()
    noise = gumbel(logits["a"], torch.Generator().manual_seed(seed))
    w = torch.softmax((torch.log_softmax(logits["a"].detach(), 0) + noise) / tau, 0)
    expected = contributions[i] * w[i] * ((torch.arange(4) == i).double() - w) / tau
    assert int(w.argmax()) == i
    torch.testing.assert_close(logits["a"].grad, expected)


def told(budget: Budget, expected_ms: torch.Tensor, scalars: dict[str, float]) -> Context:
    """A context that knows nothing but its expected latency."""
    context = Context(budget, {}, {}, {}, scalars, 0.0)
    context.__dict__.update(expected_ms=expected_ms, drawn_ms=expected_ms, sampled_ms=expected_ms)
    return context


def untrained(probabilities: dict[str, torch.Tensor]) -> Finished:
    """A search that knows probabilities only."""
    return Finished(probabilities, lambda architecture: pytest.fail("nothing may be evaluated"))


def test_multiplier_rises_above_the_limit_and_falls_below() -> None:
    _, model = toy_latency_model()
    low, high = feasible_range_ms(model)
    term, scalars = AdaptiveLatency(rate=0.5, penalty=3.0), dict[str, float]()
    budget = Budget(model, (low + high) / 2)
    expected = torch.tensor(2 * budget.max_ms, dtype=torch.float64, requires_grad=True)
    dear = told(budget, expected, scalars)
    # Twice the limit: g = 1. The multiplier starts at zero, so only the quadratic term acts: 1 + 3 / 2.
    assert term(torch.tensor(1.0, dtype=torch.float64), dear).item() == pytest.approx(2.5)
    term.update(dear)
    assert scalars[MULTIPLIER] == pytest.approx(0.5)
    loss = term(torch.tensor(1.0, dtype=torch.float64), dear)
    assert loss.item() == pytest.approx(3.0)
    (gradient,) = torch.autograd.grad(loss, expected)
    # The penalty has a gradient: (multiplier + penalty * g) / max_ms.
    assert gradient.item() == pytest.approx(3.5 / budget.max_ms)
    term.update(told(budget, torch.tensor(0.0, dtype=torch.float64), scalars))
    assert scalars[MULTIPLIER] == pytest.approx(0.0)


@pytest.mark.parametrize(("position", "rate"), [(0.2, 0.02), (0.5, 0.01), (0.8, 0.02), (0.5, 0.05)])
def test_expected_latency_settles_at_the_target(position: float, rate: float) -> None:
    # A task loss that pulls a layer to its slowest option; the multiplier has to hold it at the limit.
    model = one_layer()
    low, high = feasible_range_ms(model)
    budget = Budget(model, low + position * (high - low))
    term, steps = hard_limit(rate), int(12 / rate)
    logits = {name: nn.Parameter(torch.zeros(3)) for name in model.space.choice_names}
    optimizer, scalars, tail = torch.optim.Adam(logits.values(), lr=rate, betas=(0.5, 0.999)), dict[str, float](), []
    for step in range(steps):
        expected = model.expected_ms({name: torch.softmax(v, 0) for name, v in logits.items()})
        context = told(budget, expected, scalars)
        task = -0.1 * sum(torch.softmax(v, 0)[1] for v in logits.values())
        optimizer.zero_grad()
        term(torch.as_tensor(task), context).backward()
        optimizer.step()
        term.update(context)
        if step >= steps // 2:
            tail.append(float(expected.detach()) / budget.max_ms)
    assert np.mean(tail) == pytest.approx(1.0, abs=0.01)
    assert np.ptp(tail) < 0.05  # without the quadratic term it swings by more than this for ever


def test_derivation_keeps_the_budget_and_uses_it(budget: Budget) -> None:
    torch.manual_seed(0)
    probabilities = {name: torch.softmax(2 * torch.randn(3), 0) for name in budget.model.space.choice_names}
    derived = list(MostProbableWithinBudget(floor=0.7)(untrained(probabilities), budget))
    scores = [
        sum(math.log(probabilities[c][i]) for c, i in zip(probabilities, budget.model.space.indices(a), strict=True))
        for a in derived
    ]
    assert derived
    assert scores == sorted(scores, reverse=True)
    assert all(0.7 * budget.max_ms <= budget.model.exact_ms(a) <= budget.max_ms for a in derived)


def test_derivation_from_a_one_hot_state_returns_that_architecture(budget: Budget) -> None:
    space = budget.model.space
    wanted = next(a for a in space if 0.95 * budget.max_ms <= budget.model.exact_ms(a) <= budget.max_ms)
    probabilities = {
        c.name: torch.nn.functional.one_hot(torch.tensor(i), len(c.options)).float()
        for c, i in zip(space.choices, space.indices(wanted), strict=True)
    }
    assert next(MostProbableWithinBudget()(untrained(probabilities), budget)) == wanted


@pytest.mark.parametrize("derivation", [MostProbableWithinBudget(), SampleAndScore(3, floor=0.98)])
def test_derivation_comes_as_near_to_the_limit_as_the_space_does(derivation: Derivation) -> None:
    _, model = toy_latency_model()
    networks = [model.space.architecture(options) for options in itertools.product(range(3), repeat=3)]
    latencies = np.sort([model.exact_ms(each) for each in networks])
    probabilities = {name: torch.tensor([0.05, 0.05, 0.9]) for name in model.space.choice_names}  # all skips
    gaps = [(low, high) for low, high in itertools.pairwise(latencies) if low < 0.95 * high]
    assert len(gaps) > 1
    for slowest, above in gaps:
        found = next(derivation(Finished(probabilities, lambda each: 0.5), Budget(model, above * 0.999)))
        assert slowest * 0.98 <= model.exact_ms(found) <= slowest * (1 + 1e-9)
    without = next(MostProbableWithinBudget()(untrained(probabilities), Budget(model, latencies[-1] * 1.1)))
    assert model.exact_ms(without) == pytest.approx(latencies[0]), "no limit, and so the most probable"


def test_derivation_lowers_its_floor_where_the_band_is_empty() -> None:
    _, model = toy_latency_model()
    low, _ = feasible_range_ms(model)
    probabilities = {name: torch.tensor([0.5, 0.4, 0.1]) for name in model.space.choice_names}
    only = list(MostProbableWithinBudget(floor=1.0)(untrained(probabilities), Budget(model, low * 1.001)))
    assert [a.options for a in only] == [model.space.architecture([2, 2, 2]).options]


@pytest.mark.parametrize("slowdown", [0.85, 0.93, 1.0, 1.08, 1.6])
def test_the_limit_moves_by_what_was_measured(budget: Budget, slowdown: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.latency.device.PAUSE_SECONDS", 0.0)
    space = budget.model.space
    kind = LatencyModel(space, tuple(ms / slowdown for ms in budget.model.layer_ms))
    target = Budget(kind, feasible_range_ms(budget.model)[1] * 0.8)
    probabilities = {name: torch.tensor([0.2, 0.7, 0.1]) for name in space.choice_names}
    device = Device(AnalyticProfiler(), toy_table(space))
    rounds = settled(meet_target(MostProbableWithinBudget(), untrained(probabilities), target, device, num_rounds=4))
    for each in rounds:
        assert each.measured_ms == pytest.approx(budget.model.exact_ms(each.architecture))
        assert each.met == (each.measured_ms <= target.max_ms)
        assert each.predicted_ms <= each.limit_ms
    assert len({each.architecture for each in rounds}) == len(rounds)
    moved = {0.98 * target.max_ms * each.predicted_ms / (each.measured_ms or 0) for each in rounds}
    assert {each.limit_ms for each in rounds} <= {target.max_ms, *moved}
    assert rounds[-1].met
    if slowdown > 1:
        assert len(rounds) > 1
        assert max(each.limit_ms for each in rounds) == target.max_ms
    if slowdown < 0.9:
        assert rounds[-1].limit_ms > target.max_ms
    # The result is the best use of the limit among what was tried.
    used = [each.measured_ms for each in rounds if each.met and each.measured_ms is not None]
    assert rounds[-1].measured_ms == max(used)


def test_the_slowest_network_that_keeps_the_target_is_the_result() -> None:
    a, b, c, d = itertools.islice(toy_space(), 4)
    measured = ((a, 13.0, False), (b, 10.0, True), (c, 11.9, True), (d, 11.0, True))
    rounds = [DerivationRound(network, 12.0, 11.5, ms, met) for network, ms, met in measured]
    assert [each.architecture for each in settled(rounds)] == [a, b, d, c]
    assert settled(rounds[:1]) == rounds[:1], "none kept it"


def test_without_a_device_the_prediction_decides(budget: Budget) -> None:
    probabilities = {name: torch.tensor([0.2, 0.7, 0.1]) for name in budget.model.space.choice_names}
    (only,) = settled(meet_target(MostProbableWithinBudget(), untrained(probabilities), budget, None))
    assert only.met
    assert only.measured_ms is None
    assert "not measured, target met" in str(only)


def folder(path: Path) -> RunFolder:
    path.mkdir(exist_ok=True)
    return RunFolder(path)


def test_same_seed_same_trace_and_other_seed_other_trace(tmp_path: Path, small: Budget, digits: ImageData) -> None:
    runs = [folder(tmp_path / name) for name in ("a", "b", "c")]
    results = [search(small, digits, short(), run, seed=seed) for run, seed in zip(runs, (0, 0, 1), strict=True)]
    logs = [run.file("search.jsonl").read_bytes() for run in runs]
    assert logs[0] == logs[1]
    assert logs[0] != logs[2]
    assert all(torch.equal(results[0].probabilities[k], results[1].probabilities[k]) for k in results[0].probabilities)
    entries = read_log(runs[0].file("search.jsonl"))
    assert entries[-1]["step"] == 2 * (len(digits.train) // 2 // 128) - 1
    assert all(math.isfinite(e["weight_loss"]) for e in entries)


def reinforce() -> Recipe:
    """Few samples, and logits that move from the first step on."""
    recipe = create_recipe("proxylessnas", mode="reinforce", num_epochs=1, batch_size=128, weight_share=0.5)
    return replace(recipe, scheme=Reinforce(num_samples=3))


@pytest.mark.parametrize(
    "recipe",
    [short(), reinforce(), create_recipe("darts", order=2, num_epochs=1, batch_size=128)],
    ids=["gumbel", "reinforce", "unrolled"],
)
def test_interrupted_search_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, small: Budget, digits: ImageData
) -> None:
    whole, broken = folder(tmp_path / "whole"), folder(tmp_path / "broken")
    search(small, digits, recipe, whole)

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        search(small, digits, recipe, broken, checkpoint_seconds=0, progress=stop)
    assert 0 < load_checkpoint(broken.file("search.pt"))["step"] < 3
    search(small, digits, recipe, broken)
    assert whole.file("search.jsonl").read_bytes() == broken.file("search.jsonl").read_bytes()
    expected, found = (load_checkpoint(run.file("search.pt")) for run in (whole, broken))
    assert all(expected[name] == found[name] for name in ("step", "arch_batches", "scalars"))
    for part in ("supernet", "logits"):
        assert all(torch.equal(value, found[part][name]) for name, value in expected[part].items())


def test_learning_happens(tmp_path: Path, digits: ImageData) -> None:
    # By chance 0.1 of the 640 images of 20 steps are right, give or take 0.012; a few epochs bring about 0.22.
    run, model = folder(tmp_path / "run"), one_layer()
    recipe = create_recipe("gdas", num_epochs=4, batch_size=32)
    search(Budget(model, feasible_range_ms(model)[1]), digits, recipe, run)
    entries = read_log(run.file("search.jsonl"))
    assert np.mean([e["weight_accuracy"] for e in entries[-20:]]) > 0.16


def test_nan_stops_the_search_and_names_the_step(tmp_path: Path, small: Budget, digits: ImageData) -> None:
    class Explode(WeightsOnly):
        def __call__(self, step: SearchStep) -> dict[str, float]:
            return {"weight_loss": math.nan if step.state.step == 3 else 1.0}

    recipe = short(scheme=Explode(), regularizers=(), derivation=SampleAndScore(num_samples=2))
    with pytest.raises(NumericsError, match=r"not finite at step 3.*no checkpoint yet\. .* learning rate: of"):
        search(small, digits, recipe, folder(tmp_path / "run"))


def test_networks_of_random_weights_are_not_compared_without_a_word(
    tmp_path: Path, small: Budget, digits: ImageData, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = short(scheme=WeightsOnly(), regularizers=(), derivation=SampleAndScore(num_samples=2), num_epochs=0)
    found = search(small, digits, recipe, folder(tmp_path / "untrained"))
    assert "compared with random weights" in caplog.text
    caplog.clear()
    search(small, digits, recipe, folder(tmp_path / "trained"), weights=found.supernet.state_dict())
    assert not caplog.text


@pytest.mark.parametrize(("broken", "found"), [(4, "not finite at step 5"), (9, "NaN before step 10")])  # the last one
def test_a_step_that_breaks_the_weights_is_not_kept(
    broken: int, found: str, tmp_path: Path, small: Budget, digits: ImageData
) -> None:
    class Diverge(WeightsOnly):
        def __call__(self, step: SearchStep) -> dict[str, float]:
            figures = super().__call__(step)
            if step.state.step == broken:
                for parameter in step.state.supernet.parameters():
                    parameter.data.fill_(math.inf)
            return figures

    recipe = short(scheme=Diverge(), regularizers=(), derivation=SampleAndScore(num_samples=2))
    run = folder(tmp_path / "run")
    with pytest.raises(NumericsError, match=rf"{found}.*search\.pt from before it is kept\. .* learning rate: of"):
        search(small, digits, recipe, run, checkpoint_seconds=0)
    kept = load_checkpoint(run.file("search.pt"))
    assert kept["step"] == broken  # the state before the step that broke it
    assert all(torch.isfinite(value).all() for value in kept["supernet"].values())


def test_recipes_are_listed_with_a_description_and_check_their_arguments() -> None:
    names = recipe_names()
    assert all(names.values())
    for name in names:
        assert create_recipe(name).name == name
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'gatess'.*Did you mean 'gates'"):
        create_recipe("gatess")
    with pytest.raises(UsageError, match="recipe 'gates' has no argument 'lambda_'"):
        create_recipe("gates", lambda_=0.1)
    with pytest.raises(UsageError, match="at least 0 epochs"):
        create_recipe("gates", num_epochs=-1)
