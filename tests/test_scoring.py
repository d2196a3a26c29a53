"""Derivations that ask for accuracies: what they tell while they do, and what they ask first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from hwnas.console import figures_line
from hwnas.errors import UsageError
from hwnas.latency.budget import Budget
from hwnas.search.derivations import Evolution, MostProbableWithinBudget, SampleAndScore
from hwnas.search.protocols import Finished
from hwnas.search.sampling import BandSampler, log_probabilities
from hwnas.space import Architecture, SearchSpace
from hwnas.testing.toys import toy_latency_model

SPACE, MODEL = toy_latency_model()
SLOWEST_MS = float(MODEL.exact_ms_many([[1, 1, 1]])[0])
ALL = Budget(MODEL, SLOWEST_MS)


@dataclass
class Watcher:
    """Keeps what it is shown, as a progress callback of figures."""

    shown: list[tuple[str, int, int, Mapping[str, float]]] = field(default_factory=list)

    def __call__(self, what: str, done: int, total: int) -> None:
        pytest.fail("figures are shown where they can be")

    def show(self, what: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        self.shown.append((what, done, total, figures))


@dataclass
class Judge:
    """A random accuracy for every network of the toy space, and a record of what was asked."""

    seed: int = 0
    asked: list[Architecture] = field(default_factory=list)

    def __call__(self, architecture: Architecture) -> float:
        self.asked.append(architecture)
        values = np.random.default_rng(self.seed).random((3, 3, 3))
        return float(values[SPACE.indices(architecture)])


def probabilities(space: SearchSpace, *, peak: float, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {c.name: torch.softmax(peak * torch.randn(len(c.options), generator=generator), 0) for c in space.choices}


@pytest.mark.parametrize(
    ("derivation", "total"),
    [
        (SampleAndScore(9, floor=0), 9),
        (Evolution(population=4, generations=3, num_parents=2, num_mutations=2, num_crossovers=2), 12),
    ],
    ids=["samples", "evolution"],
)
def test_every_accuracy_is_told_with_the_best_so_far(derivation: SampleAndScore | Evolution, total: int) -> None:
    watcher, judge = Watcher(), Judge()
    derived = [*derivation(Finished(probabilities(SPACE, peak=1), judge, progress=watcher), ALL)]
    assert [(what, done, of) for what, done, of, _ in watcher.shown] == [
        ("scoring", number, total) for number in range(1, total + 1)
    ]
    for number, (*_, figures) in enumerate(watcher.shown, start=1):
        best = max(judge.asked[:number], key=Judge())
        assert figures == {
            "best_accuracy": Judge()(best),
            "exact_ms": MODEL.exact_ms(best),
            "target_ms": SLOWEST_MS,
        }
    assert derived[0] == max(judge.asked, key=Judge())
    assert figures_line(watcher.shown[-1][3]).startswith("best acc ")
    counts = list[tuple[str, int, int]]()
    plain = Finished(probabilities(SPACE, peak=1), judge, progress=lambda *count: counts.append(count))
    assert [*derivation(plain, ALL)] == derived
    assert counts == [(what, done, of) for what, done, of, _ in watcher.shown]


def test_an_evolution_that_ends_early_says_so() -> None:
    watcher, judge = Watcher(), Judge()
    evolution = Evolution(population=20, generations=10, num_mutations=2, num_crossovers=2)
    derived = [*evolution(Finished(probabilities(SPACE, peak=0), judge, progress=watcher), ALL)]
    assert len(derived) == len(judge.asked) == 27  # the whole space
    assert [shown[1:3] for shown in watcher.shown] == [*((number, 200) for number in range(1, 28)), (27, 27)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_samples", [1, 4, 1000])
def test_the_most_probable_network_is_the_first_sample(num_samples: int, seed: int) -> None:
    budget = Budget(MODEL, 0.8 * SLOWEST_MS)
    judge = Judge()
    finished = Finished(probabilities(SPACE, peak=2, seed=seed), judge, seed)
    derived = [*SampleAndScore(num_samples, floor=0.5)(finished, budget)]
    likely = next(MostProbableWithinBudget(0.5)(finished, budget))
    assert judge.asked[0] == likely
    assert Judge()(derived[0]) >= Judge()(likely)
    assert len(judge.asked) == len(set(judge.asked)) == len(derived) <= num_samples
    sampler = BandSampler(
        MODEL, log_probabilities(finished.probabilities, SPACE), max_ms=budget.max_ms, min_ms=0.5 * budget.max_ms
    )
    drawn = [each for each in sampler.distinct(seed) if each != likely]
    assert judge.asked[1:] == drawn[: num_samples - 1]


def test_several_of_the_most_probable_are_scored_before_any_is_drawn() -> None:
    budget, judge = Budget(MODEL, 0.8 * SLOWEST_MS), Judge()
    finished = Finished(probabilities(SPACE, peak=2), judge)
    likely = [*itertools.islice(MostProbableWithinBudget(0.5)(finished, budget), 3)]
    derived = [*SampleAndScore(3, num_likely=3, floor=0.5)(finished, budget)]
    assert judge.asked == likely
    assert derived == sorted(likely, key=Judge(), reverse=True)
    judge.asked.clear()
    list(SampleAndScore(5, num_likely=3, floor=0.5)(finished, budget))
    assert judge.asked[:3] == likely
    assert len(judge.asked) == 5
    for wrong in (0, 4):
        with pytest.raises(UsageError, match=f"num_likely={wrong} of 3"):
            SampleAndScore(3, num_likely=wrong)


def test_uniform_probabilities_prefer_no_network() -> None:
    uniform = probabilities(SPACE, peak=0)
    sampler = BandSampler(MODEL, log_probabilities(uniform, SPACE), max_ms=SLOWEST_MS, min_ms=-math.inf)
    firsts = set()
    for seed in range(8):
        judge = Judge()
        list(SampleAndScore(3, floor=0)(replace(Finished(uniform, judge), seed=seed), ALL))
        assert judge.asked == [*itertools.islice(sampler.distinct(seed), 3)]
        firsts.add(judge.asked[0])
    assert len(firsts) > 1


@pytest.mark.parametrize("max_ms", [SLOWEST_MS, 2 * SLOWEST_MS])
def test_a_limit_that_all_networks_keep_prefers_no_slow_ones(max_ms: float) -> None:
    judge = Judge()
    list(SampleAndScore(100)(Finished(probabilities(SPACE, peak=0), judge), Budget(MODEL, max_ms)))
    assert set(judge.asked) == set(SPACE)
    favoured = {name: torch.tensor([0.1, 0.1, 0.8]) for name in SPACE.choice_names}
    for derivation in (MostProbableWithinBudget(), SampleAndScore(1)):
        likely = next(iter(derivation(Finished(favoured, judge), Budget(MODEL, max_ms))))
        assert SPACE.indices(likely) == (2, 2, 2)  # the fastest
