"""The published numbers of every recipe.

Comments name the section of the project's method reference; papers and their sections are in the recipes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from hwnas.recipes import create_recipe, recipe_names
from hwnas.search.recipe import OptimizerFactory
from hwnas.search.schedules import value_at

Built = tuple[type[Optimizer], dict[str, Any]]
"""Class of an optimizer, and some of its defaults."""

DONE = (0.0, 1 / 16, 1 / 4, 7 / 16, 1.0)
"""Where in a search learning rates are compared: not in the middle, where half a cosine crosses the straight line."""


def cosine(start: float, end: float = 0.0, *, done: tuple[float, ...] = DONE) -> tuple[float, ...]:
    """Half a cosine."""
    return tuple(end + (start - end) * (1 + math.cos(math.pi * share)) / 2 for share in done)


def line(start: float, end: float) -> tuple[float, ...]:
    return tuple(start + (end - start) * share for share in DONE)


def sgd(lr: float, decay: float, *, nesterov: bool = False) -> Built:
    return SGD, {"lr": lr, "momentum": 0.9, "nesterov": nesterov, "weight_decay": decay}


def adam(lr: float, decay: float, betas: tuple[float, float] = (0.5, 0.999)) -> Built:
    return Adam, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": decay}


class Numbers(NamedTuple):
    """What a recipe is built with; where nothing else is said, the numbers and shapes of DARTS (section 6.1)."""

    epochs: int = 50
    batch: int = 64
    share: float = 0.5
    weights: Built = sgd(0.025, 3e-4)
    weight_lr: tuple[float, ...] = cosine(0.025, 0.001)
    logits: Built = adam(3e-4, 1e-3)
    logit_std: float = 1e-3
    clip: float = 5.0
    smoothing: float = 0.0
    warm_up: float = 0.0
    every: int = 1
    arch_first: bool = True


# 7.1: 40 + 120 epochs, so that 1/16 is a quarter of the first cosine, 1/4 the start of the second and 7/16 a quarter of
# it, (7/16 - 1/4) / (3/4); no logits move in the first of the 120.
PROXYLESS = Numbers(
    160, 256, 0.96, sgd(0.05, 4e-5, nesterov=True),
    (*cosine(0.05, done=(0, 1 / 4)), *cosine(0.025, done=(0, 1 / 4, 1))), adam(1e-3, 0.0, (0.0, 0.999)),
    clip=math.inf, smoothing=0.1, warm_up=41 / 160, every=5, arch_first=False,
)  # fmt: skip
# 7.5: 150,000 steps of 1024 images are 120 epochs; 50,000 of 1.28 million images are held out. Logits never move.
SPOS = Numbers(
    120, 1024, 0.96, sgd(0.5, 4e-5), line(0.5, 0.0), adam(1e-3, 0.0, (0.9, 0.999)),
    clip=math.inf, smoothing=0.1, arch_first=False,
)  # fmt: skip

TABLE: list[tuple[str, dict[str, Any], Numbers]] = [
    ("darts", {}, Numbers()),  # 6.1
    ("darts_plus", {}, Numbers()),  # 6.2
    ("robust_darts", {}, Numbers()),  # 6.3
    ("robust_darts", {"mode": "l2", "factor": 27.0}, Numbers(weights=sgd(0.025, 27 * 3e-4))),  # 6.3, variants
    ("sdarts", {}, Numbers()),  # 6.4
    ("milenas", {}, Numbers()),  # 6.5
    ("amended_darts", {}, Numbers()),  # 6.6
    # 6.7: logits move from epoch 15 of 50 on
    ("pc_darts", {}, Numbers(
        50, 256, weights=sgd(0.1, 3e-4), weight_lr=cosine(0.1), logits=adam(6e-4, 1e-3), warm_up=0.3,
    )),
    # 6.8: the first 10 of 25 epochs train weights only
    ("p_darts", {}, Numbers(25, 96, weight_lr=cosine(0.025), logits=adam(6e-4, 1e-3), warm_up=0.4)),
    ("snas", {}, Numbers(150, share=1.0, logit_std=0.01, arch_first=False)),  # 6.9
    # 6.10: weights first
    ("gdas", {}, Numbers(250, weights=sgd(0.025, 5e-4, nesterov=True), arch_first=False)),
    # 6.11
    ("fair_darts", {}, Numbers(
        50, 128, weights=sgd(0.005, 3e-4), weight_lr=cosine(0.005, 0.001),
        logits=adam(3e-3, 1e-3, (0.9, 0.999)), logit_std=0.0,
    )),
    # 6.12: one level, which is all that is confirmed; the numbers are given
    ("gold_nas", {"num_epochs": 7, "batch_size": 32, "arch_lr": 0.02}, Numbers(
        7, 32, share=1.0, logits=adam(0.02, 0.0), arch_first=False,
    )),
    ("asap", {}, Numbers(warm_up=0.2)),  # 6.13: at rest for 10 of 50 epochs
    # 6.14 has none of these numbers; they are given
    ("cp_nas", {"num_epochs": 9, "batch_size": 32, "arch_lr": 0.2}, Numbers(
        9, 32, logits=(SGD, {"lr": 0.2, "momentum": 0, "weight_decay": 0}), logit_std=0.0, arch_first=False,
    )),
    ("beta_darts", {}, Numbers(100)),  # 6.15
    # 6.16
    ("drop_nas", {}, Numbers(76, 96, 1.0, sgd(0.0375, 3e-4), cosine(0.0375, 0.0015), clip=3.0, arch_first=False)),
    ("proxylessnas", {}, PROXYLESS),
    # 7.1: 300 updates an epoch of 1.23 million images in batches of 256 are one in 16 steps
    ("proxylessnas", {"mode": "reinforce"}, PROXYLESS._replace(every=16)),
    # 7.2: 80 % of the images for weights, the rest, so every fourth step, for logits; frozen for 10 of 90 epochs
    ("fbnet", {}, Numbers(
        90, 192, 0.8, sgd(0.1, 1e-4), cosine(0.1), adam(0.01, 5e-4, (0.9, 0.999)),
        clip=math.inf, warm_up=10 / 90, every=4, arch_first=False,
    )),
    ("spos", {}, SPOS),
    ("random", {}, SPOS),
    # of hwnas: gates of 7.1, pace of 7.2, decay and clip of 6.10
    ("gates", {}, Numbers(
        90, 64, 0.5, sgd(0.1, 5e-4, nesterov=True), cosine(0.1), adam(0.01, 0.0, (0.0, 0.999)),
        warm_up=10 / 90, every=2, arch_first=False,
    )),
]  # fmt: skip


def numbers(factory: OptimizerFactory, like: Built) -> Built:
    """What an optimizer is built with, as far as it is expected."""
    optimizer = factory([nn.Parameter(torch.zeros(1))])
    return type(optimizer), {name: optimizer.defaults[name] for name in like[1]}


@pytest.mark.parametrize(("name", "arguments", "expected"), TABLE, ids=[" ".join([n, *a]) for n, a, _ in TABLE])
def test_numbers(name: str, arguments: dict[str, Any], expected: Numbers) -> None:
    last = create_recipe(name, **arguments)
    for recipe in (*(stage.recipe for stage in last.stages), last):
        found = Numbers(
            recipe.num_epochs,  # type: ignore[arg-type]
            recipe.batch_size,
            recipe.weight_share,
            numbers(recipe.weight_optimizer, expected.weights),
            tuple(value_at(recipe.weight_lr, share) for share in DONE),
            numbers(recipe.arch_optimizer, expected.logits),
            recipe.logit_std,
            recipe.grad_clip,
            recipe.label_smoothing,
            getattr(recipe.scheme, "warm_up", 0.0),
            getattr(recipe.scheme, "every", 1),
            getattr(recipe.scheme, "arch_first", False),
        )
        assert found._replace(weight_lr=()) == expected._replace(weight_lr=())
        assert found.weight_lr == pytest.approx(expected.weight_lr)
        assert recipe.arch_lr is None, "the rate of the optimizer stands"


def test_no_recipe_is_missing() -> None:
    assert {name for name, _, _ in TABLE} == set(recipe_names())
