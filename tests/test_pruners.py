"""What leaves a search: below a share, below a threshold, the worst; and ratings that are fair."""

from __future__ import annotations

import itertools
import json
import math
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.compute import Compute
from hwnas.data import ImageData, load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.epochs import end_epoch
from hwnas.search.growing import PRICE
from hwnas.search.loop import SearchResult, search
from hwnas.search.protocols import Candidates, Epoch, Finished, Pruner
from hwnas.search.pruners import BelowShare, BelowThreshold, DropWorst
from hwnas.search.rating import Rated, WithoutReplacement
from hwnas.search.relaxations import Sigmoid, Softmax
from hwnas.search.schedules import value_at
from hwnas.search.step import Part, SearchStep, Task
from hwnas.search.surviving import survivors
from hwnas.space import NONE, SearchSpace, create_space, without_dead
from hwnas.steps import search_run
from hwnas.supernet.gates import Gate, Gates
from hwnas.testing.parts import toy_step
from hwnas.testing.toys import toy_space, toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
GOLD = create_space("gold-nas", **SMALL)
NODES = create_space("robust-darts", subspace=2, **SMALL)
FREE = create_space("robust-darts", subspace=3, inputs=0, **SMALL)


def step_of(recipe: str, space: SearchSpace, seed: int = 0, *, spread: float = 2.0, **changes: Any) -> SearchStep:
    """A step whose logits are spread out."""
    step = toy_step(replace(create_recipe(recipe), **changes), space=space, progress=0.9)
    generator = torch.Generator().manual_seed(seed)
    for logit in step.state.logits.values():
        logit.data = spread * torch.randn(len(logit), generator=generator)
    return step


# --- below a share


def test_asap_cools_below_one_in_epoch_ten_and_rests_until_then() -> None:
    recipe = create_recipe("asap")
    assert isinstance(recipe.relaxation, Softmax)
    taus = [value_at(recipe.relaxation.tau, epoch / recipe.num_epochs) for epoch in range(50)]
    assert taus == pytest.approx([1.6 * 0.95**epoch for epoch in range(50)])
    assert next(epoch for epoch, tau in enumerate(taus) if tau < 1) == 10
    assert taus[10] == pytest.approx(0.95798, abs=1e-5)
    step = step_of("asap", FREE)
    before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    for progress, rests in ((9.9 / 50, True), (10 / 50, False)):
        now = replace(step, progress=progress)
        now.recipe.scheme(now)
        still = all(torch.equal(before[name], logit) for name, logit in now.state.logits.items())
        pruned = now.recipe.pruner(now) != now.state.candidates  # type: ignore[misc]
        assert (still, pruned) == (rests, not rests)


@pytest.mark.parametrize("space", [FREE, NODES, toy_space()], ids=["cells", "nodes", "chain"])
def test_what_is_below_its_share_leaves_and_the_largest_never(space: SearchSpace) -> None:
    seen = set()
    for seed in range(5):
        step = step_of("asap", space, seed, spread=0.1 * seed)
        p = step.probabilities()
        left = BelowShare(0.4)(step)
        for choice in space.choices:
            among = step.state.candidates.get(choice.name, tuple(range(len(choice.options))))
            values = p[choice.name]
            assert left[choice.name] == tuple(k for k in among if float(values[k]) >= 0.4 / len(among))
            assert int(values.argmax()) in left[choice.name]
            seen.add(len(left[choice.name]) < len(among))
    assert seen == {True, False}


def test_options_that_stay_keep_their_ratios() -> None:
    step = step_of("asap", FREE)
    before = step.probabilities()
    step.state.candidates = left = BelowShare(0.9)(step)
    for name, p in step.probabilities().items():
        kept = list(left[name])
        torch.testing.assert_close(p[kept] / p[kept][0], before[name][kept] / before[name][kept][0])
        assert float(p.sum()) == pytest.approx(1, abs=1e-6)


# --- below a threshold


def test_weak_operators_leave_and_their_choices_become_none() -> None:
    step = step_of("gold_nas", GOLD)
    p = step.probabilities()
    threshold = sorted(float(values[1]) for values in p.values())[len(p) // 3]  # of one operator, which stays
    left = BelowThreshold(threshold, to_limit=False)(step)
    strong = {name: (1,) if float(values[1]) >= threshold else (0,) for name, values in p.items()}
    assert left == without_dead(strong, GOLD)
    assert set(left.values()) == {(0,), (1,)}
    step.state.candidates = left
    for name, among in left.items():
        assert step.probabilities()[name].tolist() == ([1.0, 0.0] if among == (0,) else p[name].tolist())
    step.recipe.scheme(step)  # which goes on with what is left


def test_so_many_leave_every_epoch_and_what_has_left_stays_away() -> None:
    step = step_of("gold_nas", GOLD)
    p = step.probabilities()
    weakest_first = sorted(GOLD.choice_names, key=lambda name: float(p[name][1]))
    for epoch in range(1, 5):  # so few that nothing is dead without them
        step.state.candidates = BelowThreshold(1e-9, at_least=5, to_limit=False)(step)
        gone = {name for name, among in step.state.candidates.items() if among == (0,)}
        assert gone == set(weakest_first[: 5 * epoch])
    assert BelowThreshold(1e-9, to_limit=False)(step) == step.state.candidates


def test_pruning_ends_at_the_limit() -> None:
    step = step_of("gold_nas", GOLD)
    model = step.budget.model
    low, high = step.budget.reachable_ms
    found = []
    for max_ms in (low + 0.3 * (high - low), low + 0.7 * (high - low), high):
        left = BelowThreshold(0.999)(replace(step, budget=Budget(model, max_ms)))
        (ms,) = model.exact_ms_many([[among[0] for among in left.values()]])
        assert ms <= max_ms
        assert BelowThreshold(0.999)(replace(step, budget=Budget(model, float(ms)))) == left  # none left before
        found.append({name for name, among in left.items() if among == (1,)})
    assert found[0] < found[1] < found[2] == set(GOLD.choice_names)
    gone = BelowThreshold(0.999, to_limit=False)(step)
    assert {name for name, among in gone.items() if among == (1,)} < found[0]


@dataclass(frozen=True)
class Flat(SearchStep):
    """A step whose task loss is the same everywhere."""

    def losses(self, batch: Any, gates: Gates, *, label_smoothing: float = 0.0) -> Iterator[Part]:
        yield Part(torch.stack([0 * gate.weights.sum() for gate in gates.values()]).sum(), torch.zeros(()))


def test_without_cost_and_without_a_gradient_nothing_leaves() -> None:
    pruner: Any = create_recipe("gold_nas", min_prune_per_epoch=0).pruner
    step = Flat(**vars(step_of("gold_nas", GOLD, pruner=pruner)))
    logits, recipe = step.state.logits, step.recipe
    step.state.arch_optimizer = recipe.arch_optimizer(logits.values())
    border = math.log(pruner.threshold / (1 - pruner.threshold))
    for logit in logits.values():
        logit.data.fill_(border + 0.01)  # the weakest that stay
    before = {name: logit.detach().clone() for name, logit in logits.items()}
    for _ in range(2):
        recipe.scheme(step)
        end_epoch(step)
    assert step.state.scalars[PRICE] == 0
    assert all(torch.equal(before[name], logit) for name, logit in logits.items())
    assert step.state.candidates == GOLD.candidates
    logits["cell0_edge02_sep3"].data.fill_(border - 0.01)
    assert pruner(step) == {**GOLD.candidates, "cell0_edge02_sep3": (0,)}
    assert [*create_recipe("gold_nas").pruner(step).values()].count((0,)) == 4  # type: ignore[misc]


def outputs(step: SearchStep, candidates: Candidates) -> dict[str, Tensor]:
    """What every layer puts out, with everything in double precision."""
    step.state.candidates, seen = candidates, {}
    handles = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.detach()}))  # type: ignore[misc]
        for name, layer in step.state.supernet.layers.items()
    ]
    with torch.no_grad():
        gates = {name: replace(gate, weights=gate.weights.double()) for name, gate in step.draw(Sigmoid()).items()}
        step.state.supernet(step.weight_batch[0].double(), gates)
    for handle in handles:
        handle.remove()
    return seen


def test_a_pruned_operator_takes_its_weighted_output_from_its_node_and_dead_ones_nothing() -> None:
    step = step_of("gold_nas", GOLD)
    step.state.supernet.double()
    whole, name = GOLD.candidates, "cell1_edge02_sep3"
    full = outputs(step, whole)
    fewer = outputs(step, {**whole, name: (0,)})
    s = torch.sigmoid(step.state.logits[name].detach().double()[1])
    module = step.state.supernet.layers[name].options[1]  # type: ignore[index,union-attr]
    with torch.no_grad():
        alone = module(full["cell1_pre0"])
    torch.testing.assert_close(full["cell1_node2"] - fewer["cell1_node2"], s.double() * alone)
    empty = {**whole, **{n: (0,) for n in whole if n.startswith(("cell1_edge02", "cell1_edge12"))}}
    without = without_dead(empty, GOLD)
    assert without is not None
    dead = {n for n in whole if without[n] != empty[n]}
    assert dead == {n for n in whole if n.startswith(("cell1_edge23", "cell1_edge24", "cell1_edge25"))}
    a, b = outputs(step, empty), outputs(step, without)
    assert all(torch.equal(a[layer], b[layer]) for layer in a if not layer.startswith("cell1_edge2"))
    assert not a["cell1_node2"].any()


def test_operators_that_reach_nothing_leave_too_and_one_way_stays() -> None:
    last = {n for n in GOLD.choice_names if n.startswith("cell2_")}
    from_cell1 = {n for n in last if n.startswith(("cell2_edge12", "cell2_edge13", "cell2_edge14", "cell2_edge15"))}
    left = without_dead({**GOLD.candidates, **dict.fromkeys(from_cell1, (0,))}, GOLD)
    assert left is not None
    assert all(left[n] == (0,) for n in GOLD.choice_names if n.startswith("cell1_"))  # only cell 2 reads it
    assert all(left[n] == (1,) for n in last - from_cell1)
    assert without_dead(dict.fromkeys(GOLD.choice_names, (0,)), GOLD) is None
    step = step_of("gold_nas", GOLD)
    ends = BelowThreshold(0.999999, to_limit=False)(step)
    assert (1,) in ends.values()
    assert without_dead(ends, GOLD) == ends


# --- the worst


def test_the_worst_leave_in_rounds_until_one_is_left() -> None:
    space = create_space("darts-cell", inputs=0, **SMALL)
    step, scores = step_of("cp_nas", space, pruner=DropWorst()), {}
    for name, logit in step.state.logits.items():
        scores[name] = logit.detach().clone()
    for left in range(8, 1, -1):  # 7 rounds of 8 candidates
        assert {len(step.state.candidates.get(name, range(8))) for name in scores} == {left}
        step.state.candidates = DropWorst()(step)
    assert step.state.candidates == {name: (int(score.argmax()),) for name, score in scores.items()}
    assert DropWorst()(step) == step.state.candidates


def test_rounds_may_take_several_epochs() -> None:
    step = step_of("cp_nas", toy_space())
    figures = Epoch(step.probabilities(), {})
    step.state.history = [figures]
    assert DropWorst(every=2)(step) == step.state.candidates
    step.state.history = [figures, figures]
    assert {len(among) for among in DropWorst(count=2, every=2)(step).values()} == {1}


@pytest.mark.parametrize("pruner", [DropWorst(3), BelowShare(0.9), BelowThreshold(0.1, to_limit=False)], ids=repr)
def test_options_of_a_choice_compare_whatever_their_edge_weighs(pruner: Pruner) -> None:
    space = create_space("darts-cell", **SMALL)
    plain, weighed = (step_of("darts", space, edge_weights=edges) for edges in (False, True))
    left = pruner(weighed)
    assert left == pruner(plain)
    assert any(0 not in among for among in left.values())  # none, which has what edges lose


def test_numbers_out_of_range_are_refused() -> None:
    for make in (lambda: BelowShare(1.0), lambda: BelowThreshold(0.0), lambda: DropWorst(0)):
        with pytest.raises(UsageError, match=r"expected|at least"):
            make()


# --- fair ratings


@dataclass(frozen=True)
class Played(SearchStep):
    """A step in which the accuracy of a network is the sum of what its options bring."""

    def run(self, batch: Any, gates: Gates, **options: Any) -> Task:
        half = self.weight_batch if options.get("weights") else self.next_arch_batch()
        assert batch is half, "weights move on images of their half, and networks are rated on those of the other"
        ran.append({name: gate.active[0] for name, gate in gates.items()})
        accuracy = sum(float(SCORES[name][gate.active[0]]) for name, gate in gates.items())
        return Task(torch.zeros((), dtype=torch.float64), accuracy, {})

    def move_weights(self) -> None:
        pass


CHAIN = toy_space(num_layers=3)
SCORES = {
    name: 0.5 * torch.randperm(3, generator=torch.Generator().manual_seed(number))
    for number, name in enumerate(CHAIN.choice_names)
}
ran: list[dict[str, int]] = []


def test_every_option_runs_once_in_as_many_samples_as_there_are() -> None:
    logits = {name: torch.zeros(count) for name, count in (("a", 8), ("b", 8), ("c", 5))}
    generator = torch.Generator().manual_seed(0)
    orders = set()
    for _ in range(20):
        start = generator.get_state()
        drawn: list[dict[str, Gate]] = []
        for turn in range(8):
            generator.set_state(start)
            drawn.append(WithoutReplacement(turn)(logits, progress=0.0, generator=generator))
        taken = {name: [gates[name].active[0] for gates in drawn] for name in logits}
        assert sorted(taken["a"]) == sorted(taken["b"]) == list(range(8))
        assert sorted(taken["c"][:5]) == list(range(5))
        orders |= {tuple(taken["a"]), tuple(taken["b"])}
    assert len(orders) > 30  # of 40 random orders of 8


def test_rated_by_a_sum_of_scores_the_best_option_of_every_choice_survives() -> None:
    plain = toy_step(create_recipe("cp_nas"), space=CHAIN)
    recipe = replace(plain.recipe, regularizers=(), pruner=DropWorst())
    step = Played(**{**vars(plain), "recipe": recipe})
    for logit in step.state.logits.values():
        logit.data = logit.data.double().zero_()
    step.state.arch_optimizer = recipe.arch_optimizer(step.state.logits.values())
    for left in (3, 2):  # two rounds for three options
        for _ in range(100):  # what other choices add to a sample is noise, 0.6 of it, less than 0.5 in the mean of 100
            ran.clear()
            fetched = step.state.arch_batches
            recipe.scheme(step)
            assert len(ran) == 2 * left  # as many weight steps as ratings
            assert step.state.arch_batches == fetched + 1  # all are rated on the same images
            for name in SCORES:
                assert len({each[name] for each in ran[:left]}) == left
                assert [each[name] for each in ran[left:]] == [each[name] for each in ran[:left]]
        step.state.candidates = DropWorst()(step)
    assert step.state.candidates == {name: (int(score.argmax()),) for name, score in SCORES.items()}
    assert any(int(score.argmax()) for score in SCORES.values())


def test_a_rating_is_the_accuracy_less_that_of_all() -> None:
    plain = toy_step(create_recipe("cp_nas"), space=toy_space(num_layers=1))
    step = Played(**{**vars(plain), "recipe": replace(plain.recipe, regularizers=())})
    (logit,) = step.state.logits.values()
    logit.data = logit.data.double().zero_()
    step.state.arch_optimizer = torch.optim.SGD([logit], lr=0.1)
    step.recipe.scheme(step)
    scores = SCORES["layer1"].double()
    torch.testing.assert_close(logit.detach(), 0.1 * (scores - scores.mean()))


def test_ratings_need_fair_samples() -> None:
    assert isinstance(create_recipe("cp_nas").scheme, Rated)
    with pytest.raises(UsageError, match="WithoutReplacement"):
        replace(create_recipe("cp_nas"), relaxation=Softmax())
    with pytest.raises(UsageError, match="counts the turns itself"):
        replace(create_recipe("cp_nas"), relaxation=WithoutReplacement(1))
    with pytest.raises(UsageError, match="edges have no ratings"):
        replace(create_recipe("cp_nas"), edge_weights=True)


# --- whole searches


@pytest.fixture(scope="module")
def few() -> ImageData:
    data = load_data("digits", resolution=16)
    return replace(data, train=data.train.subset(np.arange(64)))


def searched(path: Path, space: SearchSpace, data: ImageData, name: str, **arguments: Any) -> tuple[SearchResult, Any]:
    model = LatencyModel.from_table(space, toy_table(space))
    low, high = feasible_range_ms(model)
    budget, recipe = Budget(model, low + 0.6 * (high - low)), create_recipe(name, batch_size=16, **arguments)
    return search(budget, data, recipe, RunFolder(path), say=lambda line: None), (recipe, budget)


def test_gold_nas_leaves_a_series_of_smaller_and_smaller_networks(tmp_path: Path, few: ImageData) -> None:
    found, (recipe, budget) = searched(
        tmp_path, GOLD, few, "gold_nas", num_epochs=4, min_prune_per_epoch=12, to_limit=False
    )
    series = survivors(found, budget.model)
    assert [each.epoch for each in series] == [1, 2, 3, 4, 5]
    assert all(a.exact_ms > b.exact_ms for a, b in itertools.pairwise(series))
    kept = [{name for name, option in each.architecture.options if option != NONE} for each in series]
    assert all(b < a for a, b in itertools.pairwise(kept))
    derived = next(recipe.derivation(Finished(found.probabilities, lambda architecture: 0.0), budget))
    assert derived == series[-1].architecture


def test_a_run_lists_the_networks_that_pruning_left(tmp_path: Path) -> None:
    shared = runpy.run_path(str(Path(__file__).with_name("finished_run.py")))
    space, told = create_space("gold-nas", num_classes=2, **SMALL), list[str]()
    table, data = shared["saved_table"](space, tmp_path), shared["tiny_data"](tmp_path)
    model = LatencyModel.from_table(space, table)
    arguments = {"num_epochs": 3, "batch_size": 4, "min_prune_per_epoch": 12, "to_limit": False}
    rounds = search_run(
        space, table, tmp_path / "run", data=data.spec, recipe="gold_nas", recipe_arguments=arguments,
        max_ms=feasible_range_ms(model)[1], other_device=True, compute=Compute(device="cpu"), say=told.append,
    )  # fmt: skip
    kept = [json.loads(line) for line in (tmp_path / "run" / "survivors.jsonl").read_text().splitlines()]
    assert [each["epoch"] for each in kept] == [1, 2, 3, 4]
    found = [model.exact_ms(space.architecture(each["architecture"])) for each in kept]
    assert found == [each["predicted_ms"] for each in kept] == sorted(found, reverse=True)
    assert rounds[0].architecture == space.architecture(kept[-1]["architecture"])
    assert ", ".join(f"{ms:.4g}" for ms in found) in told[-1]


def test_cp_nas_ends_with_one_option_a_choice(tmp_path: Path, few: ImageData) -> None:
    found, (recipe, budget) = searched(tmp_path, FREE, few, "cp_nas", num_epochs=2, epochs_per_round=1)
    assert {len(among) for among in found.candidates.values()} == {1}  # three candidates
    assert next(recipe.derivation(Finished(found.probabilities, lambda architecture: 0.0), budget))
