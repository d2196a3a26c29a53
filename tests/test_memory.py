"""Peak memory: the measured one by hand, the predicted one against the measured one."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from hwnas.compute import Compute
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.memory import measured_peak
from hwnas.recipes import create_recipe
from hwnas.search.derivations import SampleAndScore
from hwnas.search.gradients import FirstOrder
from hwnas.search.protocols import Relaxation, SearchState
from hwnas.search.recipe import Recipe
from hwnas.search.rehearsal import PredictedPeak, predicted_peak
from hwnas.search.relaxations import BinaryGates, Concrete, Softmax, StraightThroughGumbel, UniformPath
from hwnas.search.schemes import OneLevel, WeightsOnly, weight_step
from hwnas.search.step import SearchStep
from hwnas.search.stoppers import EigenvalueRise
from hwnas.space import Choice, SearchSpace, create_space
from hwnas.supernet.supernet import Supernet
from hwnas.testing.toys import toy_space, toy_table

CPU = torch.device("cpu")
BATCH_SIZE = 16
RELAXATIONS = {
    "one path": StraightThroughGumbel(1.0),
    "two paths": BinaryGates("two"),
    "all probed": BinaryGates("all"),
    "all run": Softmax(),
}


def budget_of(space: SearchSpace) -> Budget:
    model = LatencyModel.from_table(space, toy_table(space))
    return Budget(model, sum(feasible_range_ms(model)) / 2)


def recipe_of(relaxation: Relaxation, **changes: Any) -> Recipe:
    return replace(create_recipe("gdas", batch_size=BATCH_SIZE), relaxation=relaxation, **changes)


def predict(space: SearchSpace, recipe: Recipe, compute: Compute = Compute("cpu")) -> PredictedPeak:
    return predicted_peak(budget_of(space), recipe, compute=compute)


def real_step(space: SearchSpace, recipe: Recipe, compute: Compute, path: tuple[int, ...]) -> SearchStep:
    """A step whose draws are of that path; optimizer state is there already."""
    torch.manual_seed(0)
    supernet = Supernet(space)
    compute.move(supernet.train())
    logits = {choice.name: nn.Parameter(torch.zeros(len(choice.options))) for choice in space.choices}
    for choice, index in zip(space.choices, path, strict=True):
        logits[choice.name].data[index] = 50.0  # another is drawn once in exp(50) times
        logits[choice.name].data -= 40.0 * torch.tensor([option == "skip" for option in choice.options])  # nor second
    optimizers = recipe.weight_optimizer(supernet.parameters()), recipe.arch_optimizer(logits.values())
    state = SearchState(supernet, logits, *optimizers, torch.Generator().manual_seed(0))
    batch = torch.randn(recipe.batch_size, *space.input_shape), torch.arange(recipe.batch_size) % space.num_classes
    step = SearchStep(state, recipe, budget_of(space), compute, 1.0, batch, lambda: batch)
    weight_step(step)
    arch_step(step)
    return step


def arch_step(step: SearchStep) -> None:
    gates = step.draw(step.recipe.relaxation)
    estimate = FirstOrder()(step, gates)
    step.move_logits(estimate.gradients, gates, estimate.context)


def measure(step: SearchStep) -> tuple[int, int]:
    """Bytes of a weight step and of an architecture step."""
    with measured_peak(CPU) as weights:
        weight_step(step)
    with measured_peak(CPU) as arch:
        arch_step(step)
    return weights.bytes, arch.bytes


def test_a_peak_counts_what_lives_at_one_time() -> None:
    with measured_peak(CPU) as peak:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        first.add_(1)
        del first
        second = torch.zeros(500)
        del view, second
        torch.zeros(1200)
    # 1000 numbers, kept by their view, and 500; the 1200 come after both are gone.
    assert peak.bytes == 4 * 1500


def test_a_peak_counts_the_backward_pass_but_not_what_was_there() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    with measured_peak(CPU) as peak:
        weight.exp().sum().backward()
        with torch.no_grad():
            weight.add_(1)
    # The exponential, its sum, the sum's gradient (spread out as a view), and the gradient of the weight.
    assert peak.bytes == 4 * (1000 + 1 + 1 + 1000)


def test_a_peak_does_not_count_what_is_made_while_it_is_paused() -> None:
    with measured_peak(CPU) as peak:
        first = torch.zeros(100)
        with peak.paused():
            images = torch.zeros(1000)
        second = images + 1
    assert peak.bytes == 4 * (100 + 1000)
    assert len(first) + len(images) == 1100
    assert len(second) == 1000


def test_a_peak_ends_when_the_block_does() -> None:
    with measured_peak(CPU) as peak:
        kept = torch.zeros(10)
    again = torch.zeros(100)
    assert peak.bytes == 40
    assert len(kept) + len(again) == 110


@pytest.mark.parametrize("name", ["toy", "tiny-mbconv", "nas-bench-201"])
@pytest.mark.parametrize("relaxation", RELAXATIONS.values(), ids=RELAXATIONS)
def test_the_prediction_is_what_is_measured(name: str, relaxation: Relaxation) -> None:
    small = {"tiny-mbconv": {"width": 0.25}, "nas-bench-201": {"num_cells": 1}}
    space = create_space(name, resolution=16, **small[name]) if name in small else toy_space()
    recipe = recipe_of(relaxation)
    predicted = predict(space, recipe)
    weights, arch = measure(real_step(space, recipe, Compute("cpu"), space.indices(predicted.path)))
    # Kernels may return gradients in another layout, which are then copied; of two paths the second is random.
    assert predicted.weight_step_bytes == pytest.approx(weights, rel=0.02)
    assert predicted.arch_step_bytes == pytest.approx(arch, rel=0.05)


@pytest.mark.parametrize("relaxation", [RELAXATIONS["two paths"], RELAXATIONS["all run"]], ids=["two paths", "all run"])
@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 2}, {"checkpoint_activations": True}, {"precision": "bf16"}, {"channels_last": False}],
    ids=lambda changes: "-".join(changes),
)
def test_memory_savings_are_predicted(changes: dict[str, Any], relaxation: Relaxation) -> None:
    space, recipe, compute = toy_space(), recipe_of(relaxation), Compute("cpu", **changes)
    predicted = predict(space, recipe, compute)
    weights, arch = measure(real_step(space, recipe, compute, space.indices(predicted.path)))
    assert predicted.weight_step_bytes == pytest.approx(weights, rel=0.05)
    assert predicted.arch_step_bytes == pytest.approx(arch, rel=0.05)
    if "channels_last" not in changes:
        assert predicted.step_bytes < 0.75 * predict(space, recipe).step_bytes


def test_no_path_needs_more_than_predicted() -> None:
    space, recipe = toy_space(), recipe_of(RELAXATIONS["one path"])
    predicted = predict(space, recipe)
    # Both blocks keep maps of the same size; the larger kernel has more weights.
    assert dict(predicted.path.options) == dict.fromkeys(space.choice_names, "k5_e2")
    for path in ((0, 0, 0), (2, 2, 2), (1, 2, 0)):
        weights, arch = measure(real_step(space, recipe, Compute("cpu"), path))
        assert weights < predicted.weight_step_bytes
        assert arch <= predicted.arch_step_bytes


def test_weights_and_optimizer_are_those_of_all_candidates() -> None:
    space = toy_space()
    tensors = list(Supernet(space).state_dict().values())
    parameters = 4 * sum(parameter.numel() for parameter in Supernet(space).parameters())
    sgd = predict(space, recipe_of(RELAXATIONS["one path"]))
    assert sgd.weights_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert sgd.optimizer_bytes == parameters  # one momentum each
    adam = predict(space, recipe_of(RELAXATIONS["one path"], weight_optimizer=torch.optim.Adam))
    assert adam.optimizer_bytes == 2 * parameters  # two moments; the counts of steps are numbers on the processor
    assert adam.total_bytes == adam.weights_bytes + adam.optimizer_bytes + adam.step_bytes


def more_options(space: SearchSpace, times: int) -> SearchSpace:
    """The same space with every option ``times`` times."""
    choices = [Choice(c.name, tuple(f"{o}_{i}" for i in range(times) for o in c.options)) for c in space.choices]
    layers = [replace(layer, signatures=layer.signatures * (times if layer.choices else 1)) for layer in space.layers]
    return replace(space, choices=tuple(choices), layers=tuple(layers))


@pytest.mark.parametrize("name", RELAXATIONS)
def test_only_paths_that_run_need_memory(name: str) -> None:
    recipe, space = recipe_of(RELAXATIONS[name]), toy_space()
    three, twelve = predict(space, recipe), predict(more_options(space, 4), recipe)
    growth = twelve.arch_step_bytes / three.arch_step_bytes
    # One number an option is all that is added; if all run, memory is nearly in proportion to them.
    assert growth > 3 if name == "all run" else growth < 1.01


def test_schemes_are_rehearsed_as_they_are() -> None:
    space = toy_space()
    derivation = SampleAndScore(num_samples=2)
    only = predict(space, recipe_of(UniformPath(), scheme=WeightsOnly(), regularizers=(), derivation=derivation))
    assert only.weight_step_bytes > only.arch_step_bytes == 0
    assert "architecture step" not in str(only)
    together = predict(space, recipe_of(Concrete(1.0), scheme=OneLevel(), weight_share=1.0))
    assert together.weight_step_bytes > predict(space, recipe_of(Concrete(1.0))).arch_step_bytes


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=["plain", "parts", "bf16"])
def test_what_a_stopper_measures_is_predicted(changes: dict[str, Any]) -> None:
    space, compute, recipe = toy_space(), Compute("cpu", **changes), recipe_of(Softmax(), stopper=EigenvalueRise())
    predicted = predict(space, recipe, compute)
    step = real_step(space, recipe, compute, space.indices(predicted.path))
    with measured_peak(CPU) as peak:
        EigenvalueRise().measure(step)
    assert predicted.stopper_bytes == pytest.approx(peak.bytes, rel=0.05)
    assert predicted.stopper_bytes > 1.5 * predicted.step_bytes
    assert predicted.total_bytes == predicted.weights_bytes + predicted.optimizer_bytes + predicted.stopper_bytes
    assert "in what the stopper measures (" in str(predicted)
    if "accumulate" in changes:  # one part after the other
        assert predicted.stopper_bytes < 0.6 * predict(space, recipe).stopper_bytes
    assert predict(space, recipe_of(Softmax()), compute).stopper_bytes == 0


def test_nothing_of_size_is_allocated_and_no_random_state_moves() -> None:
    space, before = toy_space(), torch.get_rng_state()
    predicted = predict(space, recipe_of(RELAXATIONS["all probed"], batch_size=100_000_000))
    assert torch.equal(torch.get_rng_state(), before)
    assert predicted.step_bytes > 2**40  # a tebibyte would not have passed unnoticed
    thousandth = predict(space, recipe_of(RELAXATIONS["all probed"], batch_size=100_000))
    # Beside activations there are only weights, which do not matter at so many images.
    assert predicted.step_bytes == pytest.approx(1000 * thousandth.step_bytes, rel=0.01)


def test_the_prediction_says_which_step_is_larger() -> None:
    space = toy_space()
    path, size = space.architecture([0, 0, 0]), 2**20
    assert str(PredictedPeak(20 * size, 20 * size, 772 * size, 700 * size, path)) == (
        "predicted peak 812 MiB: weights 20, optimizer 20, activations and gradients 772 in a weight step "
        "(700 in an architecture step)"
    )
    assert str(PredictedPeak(size, 0, size // 2, 3000 * size, path)) == (
        "predicted peak 3,001 MiB: weights 1.0, optimizer 0.0, activations and gradients 3,000 in an architecture step "
        "(0.5 in a weight step)"
    )


def test_dry_run_of_the_benchmark(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_benchmark("search_cost")
    monkeypatch.setattr(sys, "argv", ["search_cost.py", "--dry-run"])
    script.main()
    out = capsys.readouterr().out
    ratios = dict(re.findall(r"^  (\S.*?)  +memory +([\d.]+)  .*time", out, re.MULTILINE))
    assert len(ratios) == 6
    assert float(ratios["weight step"]) == pytest.approx(1.0, abs=0.05)
    assert float(ratios["softmax"]) > 1.5
    assert all(math.isfinite(float(ratio)) for ratio in ratios.values())
