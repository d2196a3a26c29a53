"""Networks are whole: what changes nothing is ``none``, and the image reaches the output."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from hwnas.latency.budget import feasible_range_ms, solve
from hwnas.latency.model import LatencyModel
from hwnas.search.sampling import BandSampler, tidy
from hwnas.space import NONE, SearchSpace, create_space, macs, tidied
from hwnas.supernet.supernet import Supernet, extract
from hwnas.testing.toys import toy_table

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
BENCH = create_space("nas-bench-201", width=0.25, num_cells=1, resolution=16)
GOLD = create_space("gold-nas", **SMALL)
FREE = create_space("robust-darts", subspace=3, inputs=0, **SMALL)
WAYS = ({"0-3"}, {"0-1", "1-3"}, {"0-2", "2-3"}, {"0-1", "1-2", "2-3"})
"""Every way through a cell of NAS-Bench-201."""
NUM_NETWORKS = 8
EDGES = ("0-1", "0-2", "1-2", "0-3", "1-3", "2-3")


def counting(space: SearchSpace) -> LatencyModel:
    return LatencyModel.counting(space, lambda s: macs(s) / 1e6)


def thinned(space: SearchSpace, seed: int) -> list[int]:
    """A random network of which many edges are none, or nearly all."""
    rng, share = random.Random(seed), (0.5, 0.95)[seed % 2]
    return [
        choice.options.index(NONE) if rng.random() < share else rng.randrange(len(choice.options))
        for choice in space.choices
    ]


def all_rows() -> np.ndarray:
    return np.array([*itertools.product(*map(range, BENCH.num_options))])


def test_an_edge_lives_on_a_way_through_the_cell() -> None:
    rows, none = all_rows(), BENCH.choices[0].options.index(NONE)
    there = {edge: rows[:, k] != none for k, edge in enumerate(EDGES)}
    open_ways = [np.all([there[edge] for edge in way], axis=0) for way in WAYS]
    found, connected = tidy(rows, BENCH)
    assert np.array_equal(connected, np.any(open_ways, axis=0))
    for k, edge in enumerate(EDGES):
        lives = np.any([way for way, edges in zip(open_ways, WAYS, strict=True) if edge in edges], axis=0)
        assert np.array_equal(found[:, k], np.where(lives, rows[:, k], none))


@pytest.mark.parametrize("space", [BENCH, GOLD, FREE], ids=lambda space: space.name)
def test_what_becomes_none_changes_no_output(space: SearchSpace) -> None:
    supernet, images = Supernet(space).double().eval(), torch.randn(2, *space.input_shape, dtype=torch.float64)
    changed = cut_off = 0
    with torch.no_grad():
        for seed in range(NUM_NETWORKS):
            row = thinned(space, seed)
            found, connected = tidied(row, space)
            assert [tidied(found, space)] == [(found, connected)]
            changed, cut_off = changed + (found != row), cut_off + (not connected)
            before, after = (extract(supernet, space.architecture(each))(images) for each in (row, found))
            torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
            reached = extract(supernet, space.architecture(found))(-images)
            assert torch.equal(after, reached) != connected
    assert changed > 0
    assert 0 < cut_off < NUM_NETWORKS


def test_many_networks_at_once_are_those_one_by_one() -> None:
    rows = np.array([thinned(GOLD, seed) for seed in range(50)])
    found, connected = tidy(rows, GOLD)
    for row, many, whole in zip(rows.tolist(), found.tolist(), connected, strict=True):
        assert tidied(row, GOLD) == (many, whole)


def test_the_programme_and_the_sampler_find_whole_networks_and_all_of_them() -> None:
    model, rows = LatencyModel.from_table(BENCH, toy_table(BENCH)), all_rows()
    found, connected = tidy(rows, BENCH)
    whole = rows[connected & (found == rows).all(axis=1)]
    ms = model.exact_ms_many(whole)
    assert feasible_range_ms(model) == pytest.approx((ms.min(), ms.max()))
    even = [np.zeros(count) for count in BENCH.num_options]
    limit = float(np.sort(ms)[15])
    wanted = {tuple(row) for row in whole[ms <= limit].tolist()}
    assert set(solve(model, even, max_ms=limit)) == wanted
    sampler = BandSampler(model, even, max_ms=limit)
    assert set(map(BENCH.indices, sampler.distinct(0))) == wanted


@pytest.mark.parametrize("space", [GOLD, FREE], ids=lambda space: space.name)
def test_the_fastest_network_is_a_network(space: SearchSpace) -> None:
    model = counting(space)
    fastest = next(solve(model, [np.zeros(count) for count in space.num_options], latency=-1.0))
    assert tidied(fastest, space) == ([*fastest], True)
    assert any(space.choices[k].options[option] != NONE for k, option in enumerate(fastest))


def test_random_networks_are_whole() -> None:
    for space in (GOLD, FREE, BENCH):
        for architecture in space.distinct(20, seed=0):
            row = space.indices(architecture)
            assert tidied(row, space) == ([*row], True)
