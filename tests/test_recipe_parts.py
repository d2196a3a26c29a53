"""The parts that every recipe of the DARTS family is made of, and what its arguments reach.

Comments name the section of the project's method reference. Where that confirms no number, the recipe is given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from hwnas.errors import UsageError
from hwnas.recipes import create_recipe
from hwnas.search.derivations import StrongestEdges, Survivors, Threshold
from hwnas.search.gradients import Amended, FirstOrder, MixedLevel, Unrolled
from hwnas.search.growing import GrowingCost
from hwnas.search.logit_terms import BetaDecay, ZeroOne
from hwnas.search.op_dropout import OpDropout
from hwnas.search.perturbations import Adversarial, Perturbed
from hwnas.search.protocols import Derivation, Pruner, Regularizer, Relaxation, Stopper, UpdateScheme
from hwnas.search.pruners import BelowShare, BelowThreshold, DropWorst
from hwnas.search.rating import Rated, WithoutReplacement
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import AbsoluteLatency, AdditiveLatency, ExpectedCost, HingeLatency, hard_limit
from hwnas.search.relaxations import Concrete, Sigmoid, Softmax, StraightThroughGumbel
from hwnas.search.schedules import Exponential, Linear, Scalar
from hwnas.search.schemes import Alternating, OneLevel
from hwnas.search.stoppers import EigenvalueRise, RollBack, SkipCount, StableRanking
from hwnas.space import macs

FIRST = Alternating(arch_first=True, gradient=FirstOrder())
SECOND = Alternating(arch_first=True, gradient=Unrolled(exact=False, eps=0.01))
EPS = Linear(0.03, 0.3)


class Parts(NamedTuple):
    """What a recipe is made of; where nothing else is said, the parts of first-order DARTS (section 6.1)."""

    relaxation: Relaxation = Softmax()
    weight_relaxation: Relaxation | None = None
    scheme: UpdateScheme = FIRST
    regularizers: tuple[Regularizer, ...] = (hard_limit(3e-4),)
    derivation: Derivation = StrongestEdges()
    edge_weights: bool = False
    partial_channels: int = 1
    drop_path: Scalar = 0.0
    cutout: Scalar = 0.0
    pruner: Pruner | None = None
    stopper: Stopper | None = None
    roll_back: RollBack | None = None


GOLD = {
    "lambda0": 0.5, "lambda_growth": 3.0, "per_op": 0.2, "prune_threshold": 0.03, "min_prune_per_epoch": 7,
    "to_limit": False, "cutout": 0.4,
}  # fmt: skip

TABLE: list[tuple[str, dict[str, Any], Parts]] = [
    ("darts", {}, Parts()),
    ("darts", {"order": 2}, Parts(scheme=SECOND)),
    # 6.2: A, two skips; B, ten epochs
    ("darts_plus", {"back": 3}, Parts(stopper=SkipCount(2, back=3))),
    ("darts_plus", {"criterion": "ranking", "order": 2}, Parts(scheme=SECOND, stopper=StableRanking(10))),
    # 6.3: second order, a rise by 1.3 of means of 5, every second epoch
    ("robust_darts", {}, Parts(scheme=SECOND, stopper=EigenvalueRise(1.3, window=5, lag=4, every=2, first=10))),
    ("robust_darts", {"mode": "l2"}, Parts(scheme=SECOND)),
    (
        "robust_darts",
        {"mode": "drop_path", "largest": 0.6},
        Parts(scheme=SECOND, drop_path=Linear(0.0, 0.6), cutout=Linear(0.0, 1.0)),
    ),
    (
        "robust_darts",
        {"mode": "adaptive", "factor": 3.0},
        Parts(scheme=SECOND, stopper=EigenvalueRise(), roll_back=RollBack(3.0, 0.03)),
    ),
    # 6.4: noise in the weight step alone, 7 ascents
    ("sdarts", {}, Parts(weight_relaxation=Perturbed(eps=EPS))),
    ("sdarts", {"mode": "adversarial"}, Parts(scheme=Alternating(arch_first=True, attack=Adversarial(EPS, steps=7)))),
    # 6.5, 6.6: no number is confirmed
    ("milenas", {"weight": 0.7}, Parts(scheme=Alternating(arch_first=True, gradient=MixedLevel(0.7)))),
    ("amended_darts", {"eta": 0.3, "every": 4}, Parts(scheme=Alternating(0.0, 4, True, Amended(0.3)))),
    # 6.7
    (
        "pc_darts",
        {},
        Parts(
            scheme=Alternating(warm_up=0.3, arch_first=True),
            regularizers=(hard_limit(6e-4),),
            edge_weights=True,
            partial_channels=4,
        ),
    ),
    # 6.8: the skip cap is 2
    (
        "p_darts",
        {},
        Parts(
            scheme=Alternating(warm_up=0.4, arch_first=True),
            regularizers=(hard_limit(6e-4),),
            derivation=StrongestEdges(max_skips=2),
        ),
    ),
    ("snas", {}, Parts(Concrete(Linear(1.0, 0.03)), scheme=OneLevel())),  # 6.9
    # 6.10: the variant of NAS-Bench-201 is an option
    ("gdas", {}, Parts(StraightThroughGumbel(Linear(10.0, 0.1), added=False), scheme=Alternating())),
    ("gdas", {"added": True}, Parts(StraightThroughGumbel(Linear(10.0, 0.1), added=True), scheme=Alternating())),
    # 6.11
    (
        "fair_darts",
        {},
        Parts(Sigmoid(), regularizers=(ZeroOne(10.0, "square"), hard_limit(3e-3)), derivation=Threshold(0.85, 2)),
    ),
    (
        "fair_darts",
        {"kind": "absolute", "weight": 2.0, "threshold": 0.7},
        Parts(Sigmoid(), regularizers=(ZeroOne(2.0, "absolute"), hard_limit(3e-3)), derivation=Threshold(0.7, 2)),
    ),
    # 6.12: no number is confirmed
    (
        "gold_nas",
        GOLD,
        Parts(
            Sigmoid(),
            scheme=OneLevel(),
            regularizers=(GrowingCost(0.5, 3.0, 0.2),),
            derivation=Survivors(),
            cutout=0.4,
            pruner=BelowThreshold(0.03, 7, False),
        ),
    ),
    # 6.13: constants of the re-implementation
    (
        "asap",
        {},
        Parts(
            Softmax(Exponential(1.6, 1.6 * 0.95**50)),
            scheme=Alternating(warm_up=0.2, arch_first=True),
            derivation=Survivors(),
            pruner=BelowShare(0.4, warm_up=0.2),
        ),
    ),
    # 6.14: one a round
    (
        "cp_nas",
        {"epochs_per_round": 5},
        Parts(
            WithoutReplacement(),
            scheme=Rated(),
            regularizers=(hard_limit(0.01),),
            derivation=Survivors(),
            pruner=DropWorst(1, every=5),
        ),
    ),
    # 6.15: 50 t / 100 in epoch t of 100
    ("beta_darts", {}, Parts(regularizers=(BetaDecay(Linear(0.0, 50.0)), hard_limit(3e-4)))),
    ("beta_darts", {"weight": 25.0}, Parts(regularizers=(BetaDecay(Linear(0.0, 25.0)), hard_limit(3e-4)))),
    ("drop_nas", {}, Parts(OpDropout(3e-5), scheme=OneLevel())),  # 6.16
]


def parts(recipe: Recipe) -> Parts:
    """The same of a recipe."""
    return Parts(*(getattr(recipe, name) for name in Parts._fields))


@pytest.mark.parametrize(("name", "arguments", "expected"), TABLE, ids=[" ".join([n, *a]) for n, a, _ in TABLE])
def test_parts(name: str, arguments: dict[str, Any], expected: Parts) -> None:
    recipe = create_recipe(name, **arguments)
    assert recipe.name == name
    assert parts(recipe) == expected


def test_partial_channels_of_imagenet_are_an_argument() -> None:
    assert create_recipe("pc_darts", partial_channels=2).partial_channels == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda weight: ZeroOne(weight),
        lambda weight: BetaDecay(weight),
        lambda weight: MixedLevel(weight),
        lambda weight: Amended(eta=weight),
        lambda weight: AdditiveLatency(weight),
        lambda weight: HingeLatency(weight),
        lambda weight: AbsoluteLatency(weight),
        lambda weight: ExpectedCost(macs, 1.0, weight),
    ],
)
@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_a_weight_that_would_turn_a_term_round_is_refused(build: Callable[[float], object], weight: float) -> None:
    build(0.0)
    with pytest.raises(UsageError, match=f"weight of .* is {weight:g}; expected a finite number of at least 0"):
        build(weight)


def test_depths_that_grow_are_not_replaced_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    create_recipe("p_darts").in_proxy({"channels": 4})
    assert not caplog.records
    create_recipe("p_darts").in_proxy({"num_cells": 3})
    assert "All searches of recipe 'p_darts' have num_cells=3, not [5, 11, 17]." in caplog.text
