"""P-DARTS: its stages, its dropout, and the limit on skips in the derivation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.checkpoint import load_checkpoint
from hwnas.data import load_data
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget, feasible_range_ms, solve
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder
from hwnas.search.derivations import StrongestEdges
from hwnas.search.derivations.cells import plain_skips, strongest
from hwnas.search.loop import search
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import StraightThroughGumbel
from hwnas.search.sampling import log_probabilities
from hwnas.search.schedules import value_at
from hwnas.space import NONE, Architecture, SearchSpace, create_space
from hwnas.testing.search_contracts import check_derivation
from hwnas.testing.toys import toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
CELLS = create_space("darts-cell", **SMALL)
SKIP = "skip_connect"


def model_of(space: SearchSpace) -> LatencyModel:
    return LatencyModel.from_table(space, toy_table(space))


MODEL = model_of(CELLS)


# --- stages


def test_depths_and_options_of_the_stages() -> None:
    recipe = create_recipe("p_darts")
    searches = [*(stage.recipe for stage in recipe.stages), recipe]
    assert [each.proxy["num_cells"] for each in searches] == [5, 11, 17]
    assert [stage.keep for stage in recipe.stages] == [5, 3]
    assert [value_at(each.skip_dropout, 0.4) for each in searches] == pytest.approx([0.1, 0.4, 0.7])
    assert all(each.num_epochs == 25 and each.batch_size == 96 for each in searches)
    assert [each.scheme.warm_up for each in searches] == [10 / 25] * 3  # type: ignore[attr-defined]
    assert recipe.searched(create_space("darts-cell", channels=36, num_cells=20)).options["num_cells"] == 17
    assert [stage.recipe.proxy for stage in recipe.in_proxy({"channels": 8}).stages] == [
        {"num_cells": n, "channels": 8} for n in (5, 11)
    ]


def test_every_search_goes_on_with_the_most_probable_options(tmp_path: Path) -> None:
    data = load_data("digits", resolution=16)
    two_each = np.concatenate([np.flatnonzero(data.train.labels == k)[:2] for k in range(10)])
    data = replace(data, train=data.train.subset(two_each))
    recipe = create_recipe("p_darts", num_epochs=2, batch_size=10).in_proxy({"num_cells": 3})
    recipe = one_path(replace(recipe, stages=tuple(replace(s, recipe=one_path(s.recipe)) for s in recipe.stages)))
    found = search(Budget(MODEL, feasible_range_ms(MODEL)[1]), data, recipe, RunFolder(tmp_path))
    left = [load_checkpoint(path / "search.pt")["candidates"] for path in (tmp_path / "stage2", tmp_path)]
    assert not load_checkpoint(tmp_path / "stage1" / "search.pt")["candidates"]  # all 8 of every edge
    assert [{len(each) for each in some.values()} for some in left] == [{5}, {3}]
    assert all(set(left[1][name]) < set(some) for name, some in left[0].items())
    assert left[1] == found.candidates
    for name, p in found.probabilities.items():
        assert set(torch.nonzero(p).flatten().tolist()) == set(found.candidates[name])


def one_path(recipe: Recipe) -> Recipe:
    """The same, quicker."""
    return replace(recipe, relaxation=StraightThroughGumbel(1.0))


def test_dropout_falls_linearly_returns_and_decays() -> None:
    rate = create_recipe("p_darts").stages[1].recipe.skip_dropout
    for epoch, expected in {0: 0.384, 9: 0.24, 10: 0.4, 15: 0.1472, 24: 0.0243}.items():
        assert value_at(rate, epoch / 25) == pytest.approx(expected, abs=5e-5)  # as printed, to four places
    assert value_at(rate, 24 / 25) == pytest.approx(0.4 * math.exp(-0.2 * 14))
    assert create_recipe("p_darts", dropout1=0.0).stages[0].recipe.skip_dropout == 0.0


# --- skips


def crafted(skips: dict[str, float], *, kind: str = "normal") -> dict[str, Tensor]:
    """Probabilities of which the rule keeps edges 0 and 1 of every node, with those skips among them.

    Args:
        skips: Edge -> probability of its skip; 0.1 less than that for a sep_conv_3x3.
        kind: Of the cell.
    """
    found = {}
    for choice in CELLS.choices:
        options, p = choice.options, torch.full((len(choice.options),), 0.01)
        p[options.index("sep_conv_3x3")] = 0.4 if choice.name[-2] in "01" else 0.05
        edge = choice.name.removeprefix(f"{kind}_edge")
        if edge in skips:
            p[options.index(SKIP)], p[options.index("sep_conv_3x3")] = skips[edge], skips[edge] - 0.1
        p[options.index(NONE)] = 0
        p[options.index(NONE)] = 1 - p.sum()
        found[choice.name] = p
    return found


def derive(probabilities: dict[str, Tensor], max_skips: int | None, *, share: float = 1.0) -> list[Architecture]:
    low, high = feasible_range_ms(MODEL)
    derived = StrongestEdges(max_skips=max_skips)(
        Finished(probabilities, lambda architecture: 0.0), Budget(MODEL, low + share * (high - low))
    )
    return list(itertools.islice(derived, 4))


def skips_of(architecture: Architecture, kind: str = "normal") -> set[str]:
    """Edges of the cell that are skips."""
    return {name[-2:] for name, option in architecture.options if option == SKIP and name.startswith(kind)}


FOUR = {"02": 0.7, "12": 0.55, "03": 0.65, "04": 0.6}


def test_the_least_probable_skips_lose_their_places() -> None:
    probabilities = crafted(FOUR)
    (free, *_), (capped, *_) = derive(probabilities, None), derive(probabilities, 2)
    assert skips_of(free) == set(FOUR)
    assert skips_of(capped) == {"02", "03"}  # without those of 0.55 and 0.6
    chosen = dict(capped.options)
    assert chosen["normal_edge12"] == chosen["normal_edge04"] == "sep_conv_3x3"  # the next best, still strong enough
    for most in range(5):
        assert len(skips_of(derive(probabilities, most)[0])) == most
    assert derive(probabilities, 4)[0] == free


def test_an_edge_may_lose_its_place_with_its_skip() -> None:
    probabilities = crafted({"03": 0.5})
    probabilities["normal_edge03"][CELLS.choices[0].options.index("sep_conv_3x3")] = 0.02
    chosen = dict(derive(probabilities, 0)[0].options)
    assert chosen["normal_edge03"] == NONE
    assert chosen["normal_edge23"] == "sep_conv_3x3"  # of 0.05
    assert dict(derive(probabilities, 1)[0].options)["normal_edge03"] == SKIP


def test_skips_of_the_reducing_cell_are_not_counted() -> None:
    (found, *_) = derive(crafted(FOUR, kind="reduce"), 0)
    assert skips_of(found, "reduce") == set(FOUR)
    assert {CELLS.choice_names[choice][:6] for choice, _ in plain_skips(CELLS)} == {"normal"}
    assert len(plain_skips(CELLS)) == 14


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_what_comes_next_and_what_a_limit_leaves_keeps_to_it_too(share: float) -> None:
    likely, generator = torch.tensor([-3.0, 0, 0, 4.0, 0.5, 0, 0, 0]), torch.Generator().manual_seed(0)
    probabilities = {c.name: torch.softmax(likely + torch.randn(8, generator=generator), 0) for c in CELLS.choices}
    found = derive(probabilities, 2, share=share)
    assert len(found) == 4
    assert all(len(skips_of(each)) <= 2 for each in found)
    scores = log_probabilities(probabilities, CELLS)
    rule = CELLS.architecture(strongest(scores, CELLS))
    assert len(skips_of(rule)) > 2
    assert any(len(skips_of(each)) > 2 for each in derive(probabilities, None, share=share))


def test_where_the_limit_leaves_none_there_are_as_few_as_there_can_be() -> None:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    free = (NONE, "skip")
    layers = ([0.0 if s.op in free else rng.uniform(0.9, 1.1) for s in layer.signatures] for layer in CELLS.layers)
    model = LatencyModel(CELLS, tuple(map(np.array, layers)))
    # There is one normal cell, of 8 edges; 3.5 ms are enough for 3 that are no skips, but not for 4 of 0.9 ms.
    budget = Budget(model, feasible_range_ms(model)[0] + 3.5)
    probabilities = {c.name: torch.softmax(torch.randn(8, generator=generator), 0) for c in CELLS.choices}
    found = next(StrongestEdges(max_skips=2)(Finished(probabilities, lambda architecture: 0.0), budget))
    assert len(skips_of(found)) == 5


def test_a_programme_with_rare_options_equals_enumeration() -> None:
    space = create_space("tiny-mbconv")
    model, rng = model_of(space), np.random.default_rng(0)
    scores, rare = [rng.normal(size=n) for n in space.num_options], [(c, 0) for c in range(len(space.choices))]
    found = [*itertools.islice(solve(model, scores, rare=rare, max_rare=1), 5)]
    rows = [space.indices(each) for each in space]
    rows = [row for row in rows if sum(k == 0 for k in row) <= 1]
    rows.sort(key=lambda row: -sum(float(score[k]) for score, k in zip(scores, row, strict=True)))
    assert found == rows[:5]


def test_contract() -> None:
    check_derivation(StrongestEdges(max_skips=2), MODEL)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: StrongestEdges(max_skips=-1), "expected 0 or more"),
        (lambda: StrongestEdges(max_skips=2).check(create_space("tiny-mbconv")), "no cell whose skips max_skips=2"),
        (lambda: create_recipe("p_darts").searched(create_space("gold-nas")), "other choices"),
        (lambda: create_recipe("p_darts", dropout3=1.2), "has a skip_dropout of"),
        (lambda: create_recipe("p_darts", dropout3=1.03), "has a skip_dropout of 1.03"),  # after its tenth epoch
    ],
)
def test_what_would_have_no_effect_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build()
