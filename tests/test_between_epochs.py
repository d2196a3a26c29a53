"""Pruners, stoppers, stages and weights of edges: what changes a search between its epochs, or its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.checkpoint import load_checkpoint
from hwnas.data import ImageData, load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.candidates import Narrowed
from hwnas.search.epochs import end_epoch, most_probable
from hwnas.search.loop import SearchResult, _probabilities, search
from hwnas.search.protocols import Candidates, Epoch, Pruner, Stopper
from hwnas.search.recipe import Recipe, Stage
from hwnas.search.relaxations import Softmax, StraightThroughGumbel
from hwnas.search.step import SearchStep
from hwnas.space import NONE, create_space
from hwnas.testing.parts import toy_step
from hwnas.testing.toys import toy_table

CELLS = create_space("robust-darts", subspace=2, channels=4, num_cells=3, resolution=16)
EPOCH_STEPS = 2


@dataclass(frozen=True)
class WorstOut(Pruner):
    """Takes the least probable option out of every choice."""

    def __call__(self, step: SearchStep) -> Candidates:
        left = {}
        for name, p in step.probabilities().items():
            among = step.state.candidates.get(name, tuple(range(len(p))))
            left[name] = tuple(k for k in among if len(among) == 1 or k != min(among, key=lambda k: float(p[k])))
        return left


@dataclass(frozen=True)
class After(Stopper):
    """Stops after some epochs, with what an earlier one found."""

    epochs: int
    result: int

    def measure(self, step: SearchStep) -> dict[str, float]:
        return {"accuracy": step.run(step.arch_batch(), step.draw(step.recipe.relaxation)).accuracy}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        return self.result if len(history) >= self.epochs else None


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load_data("digits", resolution=16)
    return replace(data, train=data.train.subset(np.arange(2 * 16 * EPOCH_STEPS + 16)))


@pytest.fixture(scope="module")
def budget() -> Budget:
    model = LatencyModel.from_table(CELLS, toy_table(CELLS))
    return Budget(model, sum(feasible_range_ms(model)) / 2)


def recipe(**changes: Any) -> Recipe:
    return replace(create_recipe("darts", batch_size=16, num_epochs=3), **changes)


def run(path: Path, budget: Budget, data: ImageData, recipe: Recipe, **options: Any) -> SearchResult:
    path.mkdir(exist_ok=True)
    return search(budget, data, recipe, RunFolder(path), **options)


def test_pruned_options_leave_the_search_at_the_end_of_their_epoch(
    tmp_path: Path, budget: Budget, few: ImageData
) -> None:
    found = run(tmp_path / "a", budget, few, recipe(pruner=WorstOut(), num_epochs=2))
    assert {len(left) for left in found.candidates.values()} == {1}
    for name, p in found.probabilities.items():
        (left,) = found.candidates[name]
        assert p[left] == 1
        assert p.sum() == 1
    assert CELLS.choice("normal_edge02").options[found.candidates["normal_edge02"][0]] != NONE  # was never searched


def test_a_stopped_search_returns_the_epoch_that_was_chosen(tmp_path: Path, budget: Budget, few: ImageData) -> None:
    stopped = run(tmp_path / "a", budget, few, recipe(stopper=After(2, result=1)))
    steps = (tmp_path / "a" / "search.jsonl").read_text().splitlines()
    assert len(steps) == 2 * EPOCH_STEPS
    first = run(tmp_path / "b", budget, few, recipe(stopper=After(1, result=1)))
    for name, p in stopped.probabilities.items():
        assert torch.equal(p, first.probabilities[name])
    again = run(tmp_path / "a", budget, few, recipe(stopper=After(2, result=1)))  # from its checkpoint, without a step
    assert all(torch.equal(p, again.probabilities[name]) for name, p in stopped.probabilities.items())


def test_stages_begin_anew_with_what_is_left(tmp_path: Path, budget: Budget, few: ImageData) -> None:
    first = recipe(num_epochs=1, proxy={"num_cells": 4})
    found = run(tmp_path / "a", budget, few, recipe(num_epochs=1, stages=(Stage(first, keep=1),)))
    assert {len(left) for left in found.candidates.values()} == {1}
    assert (tmp_path / "a" / "stage1" / "search.pt").exists()
    assert not any(name.startswith("cell3") for name in found.supernet.layers)
    with pytest.raises(UsageError, match="at least 1"):
        Stage(first, keep=0)


def test_interrupted_after_a_prune_it_goes_on_with_what_is_left(tmp_path: Path, budget: Budget, few: ImageData) -> None:
    whole = run(tmp_path / "whole", budget, few, recipe(pruner=WorstOut(), num_epochs=2))

    class Enough(Exception):
        pass

    def killed(text: str, done: int, total: int, *more: Any) -> None:
        if done == EPOCH_STEPS + 1:
            raise Enough

    with pytest.raises(Enough):
        run(
            tmp_path / "cut",
            budget,
            few,
            recipe(pruner=WorstOut(), num_epochs=2),
            progress=killed,
            checkpoint_seconds=0.0,
        )
    again = run(tmp_path / "cut", budget, few, recipe(pruner=WorstOut(), num_epochs=2))
    assert again.candidates == whole.candidates
    assert all(
        torch.equal(value, again.supernet.state_dict()[name]) for name, value in whole.supernet.state_dict().items()
    )


def test_the_most_probable_are_left_and_of_equal_ones_the_first() -> None:
    p = {"a": torch.tensor([0.1, 0.4, 0.4, 0.1]), "b": torch.tensor([0.7, 0.3])}
    assert most_probable(p, {"a": (0, 1, 3)}, 2) == {"a": (0, 1), "b": (0, 1)}
    assert most_probable(p, {}, 1) == {"a": (1,), "b": (0,)}


# --- weights of edges


def test_edge_weights_multiply_what_comes_along_an_edge() -> None:
    step = toy_step(recipe(edge_weights=True), space=CELLS)
    gates = step.draw(Softmax())
    node = CELLS.nodes[0]
    assert torch.equal(gates[node.name].weights, torch.softmax(step.state.logits[node.name], 0))
    images, seen = step.weight_batch[0], {}

    def hook(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: (inputs, output)})

    layers = step.state.supernet.layers
    for name in ("cell0_edge02", "cell0_edge12", "cell0_node2"):
        layers[name].register_forward_hook(hook(name))
    step.state.supernet(images, gates)
    first, second = (seen[name][1] for name in ("cell0_edge02", "cell0_edge12"))
    weights = gates[node.name].weights
    torch.testing.assert_close(seen["cell0_node2"][0][0], weights[0] * first + weights[1] * second)


def test_logits_of_edges_get_the_gradient_of_finite_differences() -> None:
    step = toy_step(recipe(edge_weights=True), space=CELLS)
    step.state.supernet.double()
    for logit in step.state.logits.values():
        logit.data = logit.data.double()
    batch = (step.weight_batch[0].double(), step.weight_batch[1])
    gates, name = step.draw(Softmax()), CELLS.nodes[1].name
    weights, logit = gates[name].weights, step.state.logits[name]
    slopes = step.run(batch, gates, arch=True).gate_gradients[name]
    (found,) = torch.autograd.grad(weights, logit, slopes)

    def loss(change: Tensor) -> float:
        with torch.no_grad():
            moved = {**step.state.logits, name: logit + change}
            return float(step.run(batch, Narrowed(Softmax(), CELLS.candidates, CELLS.edges).gates(
                moved, progress=0.0, generator=step.state.generator)).loss)  # fmt: skip

    for i in range(len(logit)):
        eps = 1e-5 * torch.eye(len(logit), dtype=torch.float64)[i]
        assert float(found[i]) == pytest.approx((loss(eps) - loss(-eps)) / 2e-5, rel=1e-4, abs=1e-8)


def test_probabilities_are_products_with_edge_weights_and_the_rest_is_none() -> None:
    step = toy_step(recipe(edge_weights=True), space=CELLS)
    node = CELLS.nodes[3]
    beta = torch.softmax(step.state.logits[node.name], 0)
    for edge, name in enumerate(node.choices):
        alpha = torch.softmax(step.state.logits[name][[1, 2]], 0)  # none is no candidate in S2
        p = step.probabilities()[name]
        torch.testing.assert_close(p[[1, 2]], beta[edge] * alpha)
        assert float(p.sum()) == pytest.approx(1)


def test_no_stage_is_searched_before_a_later_one_is_refused(tmp_path: Path, budget: Budget, few: ImageData) -> None:
    unfit = replace(create_recipe("asap", num_epochs=1, batch_size=16), name="unfit")
    stages = (Stage(recipe(num_epochs=1), keep=2), Stage(unfit, keep=1))
    with pytest.raises(UsageError, match="what survives in a node"):
        run(tmp_path / "a", budget, few, recipe(num_epochs=1, stages=stages))
    assert not [*(tmp_path / "a").rglob("search.pt")]


def test_stages_keep_options_whatever_their_edge_weighs(tmp_path: Path, few: ImageData) -> None:
    space = create_space("darts-cell", channels=4, num_cells=3, resolution=16)
    model = LatencyModel.from_table(space, toy_table(space))
    one_step = recipe(edge_weights=True, logit_std=2.0, num_epochs=1e-3)
    made = replace(one_step, stages=(Stage(one_step, keep=3),))
    found = run(tmp_path / "a", Budget(model, feasible_range_ms(model)[1]), few, made)
    logits = load_checkpoint(tmp_path / "a" / "stage1" / "search.pt")["logits"]
    expected = {name: tuple(sorted(logits[name].topk(3).indices.tolist())) for name in space.choice_names}
    assert found.candidates == expected
    assert any(0 not in among for among in expected.values())


def test_a_stopped_search_knows_its_probabilities_without_weights_of_edges() -> None:
    step = toy_step(recipe(edge_weights=True, stopper=After(1, result=1)), space=CELLS)
    within, p = step.within(), step.probabilities()
    end_epoch(step)
    for logit in step.state.logits.values():
        logit.data.zero_()
    for without_edges, right in ((False, p), (True, within)):
        found = _probabilities(step.state, step.recipe, progress=1.0, within=without_edges)
        assert all(torch.equal(found[name], right[name]) for name in right)
    assert any(not torch.equal(p[name], within[name]) for name in within)


@pytest.mark.parametrize("relaxation", [Softmax(), StraightThroughGumbel(1.0)], ids=["softmax", "gumbel"])
def test_a_step_moves_the_logits_of_edges(relaxation: Any) -> None:
    step = toy_step(recipe(edge_weights=True, relaxation=relaxation), space=CELLS)
    before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    step.recipe.scheme(step)
    for node in CELLS.nodes:
        assert not torch.equal(step.state.logits[node.name], before[node.name])


def test_weights_of_edges_need_nodes(tmp_path: Path, few: ImageData) -> None:
    space = create_space("tiny-mbconv", resolution=16)
    model = LatencyModel.from_table(space, toy_table(space))
    with pytest.raises(UsageError, match="has none that keep"):
        run(tmp_path / "a", Budget(model, feasible_range_ms(model)[1]), few, recipe(edge_weights=True))
