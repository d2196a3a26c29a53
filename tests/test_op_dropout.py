"""Options dropped in groups: how often, which, and what the architecture step leaves as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hwnas.errors import UsageError
from hwnas.recipes import create_recipe
from hwnas.search.candidates import Narrowed
from hwnas.search.op_dropout import OpDropout
from hwnas.search.relaxations import Softmax
from hwnas.space import SearchSpace, create_space
from hwnas.supernet.gates import Gate
from hwnas.testing.parts import toy_step

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
CELL = create_space("darts-cell", **SMALL)
S2 = create_space("robust-darts", subspace=2, **SMALL)
FREE = {"none", "skip_connect", "max_pool_3x3", "avg_pool_3x3"}
NUM_DRAWS = 400  # of 28 choices each


def gates_of(rate: float, seed: int) -> dict[str, Gate]:
    logits = {choice.name: torch.zeros(len(choice.options)) for choice in CELL.choices}
    narrowed = Narrowed.to(CELL, OpDropout(rate), CELL.candidates)
    return narrowed.gates(logits, progress=0.0, generator=torch.Generator().manual_seed(seed))


def test_groups_are_found_from_the_operators() -> None:
    fitted = OpDropout().fit(CELL, CELL.candidates)
    for choice in CELL.choices:
        weighted, free = ({choice.options[k] for k in group} for group in fitted.groups[choice.name])
        assert free == FREE  # also in cells whose skips stride, where they are convolutions
        assert weighted == set(choice.options) - FREE
    with pytest.raises(TypeError):
        OpDropout(0.1, {})  # type: ignore[call-arg]
    narrow = create_space("darts-cell", with_none=0, **SMALL)
    for groups in OpDropout().fit(narrow, narrow.candidates).groups.values():  # numbers of the seven candidates
        assert groups == ((3, 4, 5, 6), (0, 1, 2))


def test_options_are_dropped_at_the_published_rate_and_no_group_is_lost() -> None:
    # P(dropped | not all of 4) = (p - p^4) / (1 - p^4) with p = r^(1/4); for r = 3e-5, p = 0.0740.
    published = OpDropout().rate ** (1 / 4)
    assert published == pytest.approx(0.0740, abs=1e-4)
    for rate, draws in ((3e-5, NUM_DRAWS), (0.2, NUM_DRAWS // 4)):
        groups, dropped, total = OpDropout(rate).fit(CELL, CELL.candidates).groups, 0, 0
        for seed in range(draws):
            for name, gate in gates_of(rate, seed).items():
                assert all(set(group) & set(gate.active) for group in groups[name])
                dropped, total = dropped + 8 - len(gate.active), total + 8
        p = rate**0.25
        expected = (p - rate) / (1 - rate)
        assert dropped / total == pytest.approx(expected, abs=4 * (expected / total) ** 0.5)


def test_kept_options_are_weighted_by_a_softmax_among_themselves() -> None:
    logits = {choice.name: torch.randn(8, generator=torch.Generator().manual_seed(1)) for choice in CELL.choices}
    narrowed = Narrowed.to(CELL, OpDropout(0.5), CELL.candidates)
    for name, gate in narrowed.gates(logits, progress=0.0, generator=torch.Generator().manual_seed(0)).items():
        kept = list(gate.active)
        assert torch.equal(gate.weights[kept], torch.softmax(logits[name][kept], 0))
        assert float(gate.weights.sum()) == pytest.approx(1, abs=1e-6)


def test_an_architecture_step_keeps_the_ratio_of_dropped_to_kept() -> None:
    step = toy_step(create_recipe("drop_nas", rate=0.5), space=CELL)
    for logit in step.state.logits.values():
        logit.data = logit.data.double()
    step.state.arch_optimizer = step.recipe.arch_optimizer(step.state.logits.values())  # with decay, which pulls at all
    gates = step.draw(step.recipe.relaxation)
    before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    generator = torch.Generator().manual_seed(0)
    gradients = {name: torch.randn(8, dtype=torch.float64, generator=generator) for name in before}
    step.move_logits(gradients, gates, step.context(gates))
    for name, gate in gates.items():
        kept = list(gate.active)
        dropped = [k for k in range(8) if k not in kept]
        old, new = before[name], step.state.logits[name].detach()
        assert not torch.equal(old[kept], new[kept])
        if dropped:
            ratios = [float(x[dropped].logsumexp(0) - x[kept].logsumexp(0)) for x in (old, new)]
            assert ratios[0] == pytest.approx(ratios[1], abs=1e-12)
            torch.testing.assert_close(new[dropped] - new[dropped][0], old[dropped] - old[dropped][0])
    assert any(len(gate.active) < 8 for gate in gates.values())


def test_weights_of_dropped_options_neither_move_nor_decay() -> None:
    step = toy_step(create_recipe("drop_nas", rate=0.5), space=CELL)
    gates = step.draw(step.recipe.relaxation)
    before = {name: value.clone() for name, value in step.state.supernet.state_dict().items()}
    step.run(step.weight_batch, gates, weights=True)
    step.move_weights()
    moved = {n for n, value in step.state.supernet.named_parameters() if not torch.equal(value, before[n])}
    assert moved
    for layer in CELL.layers:
        for choice in layer.choices:
            ran = {f"layers.{layer.name}.options.{k}" for k in gates[choice].active}
            mine = {".".join(n.split(".")[:4]) for n in moved if n.startswith(f"layers.{layer.name}.options.")}
            assert mine <= ran


def test_a_rate_of_zero_is_one_level_darts_bit_for_bit() -> None:
    dropping = create_recipe("drop_nas", rate=0.0)
    steps = [toy_step(each, space=CELL) for each in (dropping, replace(dropping, relaxation=Softmax()))]
    for step in steps:
        step.recipe.scheme(step)
    one, two = (step.state for step in steps)
    assert all(torch.equal(one.logits[name], two.logits[name]) for name in one.logits)
    assert all(torch.equal(a, b) for a, b in zip(one.supernet.parameters(), two.supernet.parameters(), strict=True))
    with pytest.raises(UsageError, match="from 0 to below 1"):
        OpDropout(1.0)


@pytest.mark.parametrize("space", [S2, create_space("gold-nas", **SMALL)], ids=lambda space: space.name)
def test_where_nothing_can_be_dropped_a_rate_is_refused(space: SearchSpace) -> None:
    with pytest.raises(UsageError, match=f"nothing can be dropped in space '{space.name}'.* rate of 0"):
        OpDropout(0.2).fit(space, space.candidates)
    assert OpDropout(0.0).fit(space, space.candidates).rate == 0
    pruned = dict.fromkeys(CELL.choice_names, (1,))
    assert OpDropout(0.2).fit(CELL, pruned).groups == dict.fromkeys(CELL.choice_names, ((0,),))


def test_the_rate_is_that_of_losing_a_whole_group_whatever_its_size() -> None:
    narrow, rate = create_space("darts-cell", with_none=0, **SMALL), 0.2
    fitted = OpDropout(rate).fit(narrow, narrow.candidates)
    logits = {choice.name: torch.zeros(len(choice.options) - 1) for choice in narrow.choices}
    generator, kept, total = torch.Generator().manual_seed(0), 0, 0
    for _ in range(NUM_DRAWS // 4):
        for gate in fitted(logits, progress=0.0, generator=generator).values():
            kept, total = kept + len({0, 1, 2} & set(gate.active)), total + 3  # the three without weights
    p = rate ** (1 / 3)
    assert 1 - kept / total == pytest.approx((p - rate) / (1 - rate), abs=4 * (0.25 / total) ** 0.5)
