"""Searching cells: steps of published methods, what runs and what it keeps in memory, and narrowed choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.cli_options import built_space, numbers
from hwnas.compute import Compute
from hwnas.data import load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.candidates import Narrowed
from hwnas.search.derivations import StrongestEdges
from hwnas.search.loop import search
from hwnas.search.protocols import Finished
from hwnas.search.rehearsal import predicted_peak
from hwnas.search.relaxations import BinaryGates, Softmax, StraightThroughGumbel
from hwnas.space import NONE, SearchSpace, create_space
from hwnas.supernet.gates import Gates
from hwnas.supernet.supernet import Network, extract
from hwnas.testing.parts import RELAXATIONS, toy_step
from hwnas.testing.toys import toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
CELL = create_space("darts-cell", **SMALL)
S2 = create_space("robust-darts", subspace=2, **SMALL)


@pytest.mark.parametrize("space", [CELL, S2, create_space("gold-nas", **SMALL)], ids=lambda space: space.name)
@pytest.mark.parametrize("name", ["darts", "gdas", "snas"])
def test_a_step_moves_logits_and_ends_in_cells_within_the_limit(name: str, space: SearchSpace) -> None:
    step = toy_step(create_recipe(name), space=space)
    before = {key: logit.detach().clone() for key, logit in step.state.logits.items()}
    figures = step.recipe.scheme(step)
    assert figures["weight_loss"] > 0
    moved = [not torch.equal(before[key], logit) for key, logit in step.state.logits.items()]
    assert all(moved) or space.name == "gold-nas"  # a softmax over one option has no gradient
    logits = {key: logit.detach() for key, logit in step.state.logits.items()}
    chances = Narrowed(step.recipe.relaxation, space.candidates).probabilities(logits, progress=1.0)
    for derivation in (step.recipe.derivation, StrongestEdges()):
        found = next(derivation(Finished(chances, lambda architecture: 0.0), step.budget))
        assert step.budget.model.exact_ms(found) <= step.budget.max_ms
        space.indices(found)  # which refuses nodes of other than two edges


def test_second_order_reaches_shared_logits() -> None:
    step = toy_step(create_recipe("darts", order=2), space=CELL)
    first = toy_step(create_recipe("darts"), space=CELL)
    for each in (step, first):
        each.recipe.scheme(each)
    assert any(not torch.equal(first.state.logits[k], x) for k, x in step.state.logits.items())


def test_cells_of_a_kind_run_the_same_options() -> None:
    step = toy_step(create_recipe("gdas"), space=CELL)
    gates = step.draw(step.recipe.relaxation)
    step.run(step.weight_batch, gates, weights=True)
    ran = {name for name, parameter in step.state.supernet.named_parameters() if parameter.grad is not None}
    for layer in CELL.layers:
        for choice in layer.choices:
            options = {name.split(".")[3] for name in ran if name.startswith(f"layers.{layer.name}.options.")}
            assert options <= {str(gates[choice].active[0])}


def kept_bytes(space: SearchSpace, relaxation: StraightThroughGumbel | Softmax) -> int:
    step = toy_step(replace(create_recipe("gdas"), relaxation=relaxation), space=space)
    return saved(lambda: step.state.supernet(step.weight_batch[0], step.draw(relaxation)))


def saved(run: Callable[[], Tensor]) -> int:
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(sizes.values())


def test_a_method_that_samples_keeps_one_path_in_memory() -> None:
    # Whichever of the candidates runs: never more than the most that one of them keeps, which both spaces have.
    wide, narrow = CELL, create_space("robust-darts", subspace=2, **SMALL)
    sampled = StraightThroughGumbel(tau=1.0)
    assert kept_bytes(wide, Softmax()) > 2 * kept_bytes(narrow, Softmax())
    assert kept_bytes(wide, sampled) < 0.35 * kept_bytes(wide, Softmax())
    recipes = {order: create_recipe(order, batch_size=4) for order in ("gdas", "darts")}
    budget = toy_step(recipes["gdas"], space=wide).budget
    peaks = {k: predicted_peak(budget, r, compute=Compute(device="cpu")).step_bytes for k, r in recipes.items()}
    assert peaks["gdas"] < 0.5 * peaks["darts"]


@pytest.mark.parametrize("name", RELAXATIONS)
def test_options_that_are_not_searched_neither_run_nor_count(name: str) -> None:
    relaxation, generator = RELAXATIONS[name], torch.Generator().manual_seed(0)
    logits = {choice.name: torch.randn(3, generator=generator).requires_grad_() for choice in S2.choices}
    assert S2.choices[0].options[0] == NONE
    narrowed = Narrowed(relaxation, S2.candidates)
    gates: Gates = narrowed.gates(logits, progress=0.5, generator=generator.manual_seed(1))
    plain = {key: logit[1:] for key, logit in logits.items()}
    expected = relaxation(plain, progress=0.5, generator=generator.manual_seed(1))
    for key, gate in gates.items():
        assert 0 not in (*gate.active, *gate.probed)
        assert gate.weights[0] == 0
        assert torch.equal(gate.weights[1:], expected[key].weights)
        assert [k - 1 for k in gate.active] == [*expected[key].active]
    for key, p in narrowed.probabilities(logits, progress=0.5).items():
        assert p[0] == 0
        assert torch.equal(p[1:], relaxation.probabilities(plain[key], progress=0.5))


def test_narrowed_pairs_leave_other_probabilities_as_they_were() -> None:
    logits = {"a": torch.tensor([9.0, 0.3, -0.2, 0.5, 0.1]).requires_grad_()}
    narrowed = Narrowed(BinaryGates("two"), {"a": (1, 2, 3, 4)})
    gates = narrowed.gates(logits, progress=0.0, generator=torch.Generator().manual_seed(3))
    pair = sorted((*gates["a"].active, *gates["a"].probed))
    before = {"a": logits["a"].detach().clone()}
    with torch.no_grad():
        logits["a"][pair] += torch.tensor([0.7, -0.1])
    narrowed.settle(logits, gates, before)
    others = [k for k in (1, 2, 3, 4) if k not in pair]
    p, old = (torch.softmax(x.detach()[1:], 0) for x in (logits["a"], before["a"]))
    assert torch.allclose(p[[k - 1 for k in others]], old[[k - 1 for k in others]])
    assert not torch.allclose(p, old)
    assert logits["a"][0] == 9.0


def test_cells_are_searched_in_a_smaller_network_than_is_derived(tmp_path: Path) -> None:
    data = load_data("digits", resolution=16)
    data = replace(data, train=data.train.subset(np.arange(64)), val=data.val.subset(np.arange(8)))
    large = create_space("robust-darts", subspace=4, resolution=16, channels=8, num_cells=4)  # noise is drawn, too
    model = LatencyModel.from_table(large, toy_table(large))
    recipe = replace(create_recipe("gdas", num_epochs=1, batch_size=16), proxy={"channels": 4, "num_cells": 3})
    found = []
    for name in ("one", "two"):
        torch.manual_seed(len(found))  # means nothing
        (tmp_path / name).mkdir()
        budget = Budget(model, float(np.mean(feasible_range_ms(model))))
        result = search(budget, data, recipe, RunFolder(tmp_path / name), say=lambda line: None)
        assert result.supernet.space.options["num_cells"] == 3
        derived = next(recipe.derivation(Finished(result.probabilities, lambda architecture: 0.0), budget))
        assert len(Network(large, derived)) > len(extract(result.supernet, derived))
        found.append(result)
    states = [result.supernet.state_dict() for result in found]
    assert all(torch.equal(one, two) for one, two in zip(*(state.values() for state in states), strict=True))


def test_a_proxy_of_other_choices_is_refused() -> None:
    recipe = replace(create_recipe("darts"), proxy={"with_none": 0})
    with pytest.raises(UsageError, match="has other choices, images or classes"):
        recipe.searched(CELL)
    with pytest.raises(UsageError, match="has no option 'depth'"):
        replace(recipe, proxy={"depth": 3}).searched(CELL)
    assert replace(recipe, proxy={}).searched(CELL) is CELL


def test_seeded_draws_repeat_and_leave_others_alone() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in ((1, 2), (1, 2), (1, 3)):
        with Compute(device="cpu").seeded(*seed):
            drawn.append(torch.randn(3))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(before, torch.get_rng_state())


def test_any_option_of_a_space_can_be_named_with_it() -> None:
    space = built_space("darts-cell:channels=4,num_cells=3", 16, None, None)
    assert space.fingerprint == CELL.fingerprint
    assert numbers("") == {}
    assert numbers("a=3,b=0.5") == {"a": 3, "b": 0.5}
    for wrong in ("a", "a=x", "a=1,a=2", "a=nan", "=3"):
        with pytest.raises(UsageError, match="is not NAME=NUMBER, or is there twice"):
            numbers(wrong)
    with pytest.raises(UsageError, match="resolution is given twice"):
        built_space("darts-cell:resolution=32", 16, None, None)
