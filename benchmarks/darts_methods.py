"""The methods of the family, each in its own space and at a common length; what ``darts_family.py`` compares."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from rows import parsed

import hwnas
from hwnas.cli_options import built_space
from hwnas.errors import UnknownNameError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.recipes import create_recipe
from hwnas.search.recipe import Recipe
from hwnas.space import SearchSpace, macs

METHODS = (
    "darts",
    "darts:order=2",
    "darts_plus",
    "robust_darts:mode=stop",
    "robust_darts:mode=l2",
    "robust_darts:mode=drop_path",
    "robust_darts:mode=adaptive",
    "sdarts:mode=random",
    "sdarts:mode=adversarial",
    "amended_darts",
    "milenas",
    "pc_darts",
    "p_darts",
    "snas",
    "gdas",
    "gdas:added=true",
    "fair_darts",
    "gold_nas",
    "asap",
    "cp_nas",
    "beta_darts",
    "drop_nas",
    "random",
    "drawn",
)
"""Recipe, with arguments after a colon; ``drawn`` is one random network, which no search has chosen."""

ANY, NO_NONE = {"inputs": 0}, {"with_none": 0}
OWN_SPACES = {"asap": ANY, "beta_darts": NO_NONE, "cp_nas": ANY, "fair_darts": ANY | NO_NONE, "snas": ANY}
"""Recipe -> options of the space that it derives from, where the space has them."""

SKELETON = "channels", "num_cells", "resolution", "num_classes", "stem_stride"
"""Options that ``gold-nas`` shares with the other spaces of cells."""

WEIGHT_SHARE = 0.5
"""Of the training images, the share that trains weights where logits have images of their own."""
FARTHEST = 5.0
"""Learning rate of the logits times steps: with Adam, about as far as a logit can move; that of DARTS' 50 epochs."""
GROWTH = 5 / 17, 11 / 17
"""Depths of P-DARTS' first searches, as shares of the last one's."""
FEWEST_CELLS = 3


def methods(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Those that fit the space, and a line about every other one."""
    fit, refused = [], []
    for name in arguments.methods.split(","):
        try:
            if name != "drawn":
                recipe_of(name, arguments, 1.0).check(budget_of(name, arguments))
            fit.append(name)
        except UnknownNameError as error:
            raise SystemExit(f"error: {error}") from error
        except UsageError as error:
            refused.append(f"{name} is left out: {error}")
    return fit, refused


def recipe_of(name: str, arguments: argparse.Namespace, steps: float) -> Recipe:
    """A method at the common length; its logits may move as far as those of all others."""
    recipe, given = parsed(name)
    lengths: dict[str, Any] = {"num_epochs": arguments.epochs, "batch_size": arguments.batch_size}
    if recipe == "random":
        return replace(create_recipe(recipe, **lengths, **given), weight_share=WEIGHT_SHARE)
    rate = {} if recipe == "cp_nas" else {"arch_lr": FARTHEST / max(1.0, steps)}  # its logits are sums of accuracies
    if recipe == "p_darts":
        return growing(arguments, rate["arch_lr"], given)
    return create_recipe(recipe, **lengths, **rate, **given)


def growing(arguments: argparse.Namespace, rate: float, given: dict[str, Any]) -> Recipe:
    """P-DARTS up to the depth of the common skeleton, its three searches as long together as those of the others."""
    searches = 1 + len(GROWTH)
    last = create_recipe(
        "p_darts", num_epochs=max(1, arguments.epochs // searches), batch_size=arguments.batch_size,
        arch_lr=searches * rate, **given,
    )  # fmt: skip
    cells = int(built_space(arguments.space, None, None, None).options["num_cells"])
    depths = [max(FEWEST_CELLS, round(share * cells)) for share in GROWTH]
    stages = tuple(
        replace(stage, recipe=replace(stage.recipe, proxy={"num_cells": depth}))
        for stage, depth in zip(last.stages, depths, strict=True)
    )
    return replace(last, proxy={}, stages=stages)


def space_of(name: str, arguments: argparse.Namespace) -> SearchSpace:
    """The space with the options that a method derives from."""
    method, space = parsed(name)[0], built_space(arguments.space, None, None, None)
    if method == "gold_nas":
        if "channels" not in space.options:
            raise UsageError(f"its space is gold-nas, whose skeleton is not that of '{space.name}'.")
        return hwnas.create_space("gold-nas", **{key: space.options[key] for key in SKELETON})
    more = {key: value for key, value in OWN_SPACES.get(method, {}).items() if key in space.options}
    return hwnas.create_space(space.name, **{**space.options, **more})


def budget_of(name: str, arguments: argparse.Namespace) -> Budget:
    """Millions of multiply-adds in the place of milliseconds: as many for all methods, or no limit at all.

    GOLD-NAS prunes until it keeps a limit: without one, it keeps that of the largest network of the common space.
    """
    model, unlimited = _counting(space_of(name, arguments)), arguments.limit == 1 and parsed(name)[0] != "gold_nas"
    common = model if unlimited else _counting(space_of("darts", arguments))
    return Budget(model, arguments.limit * feasible_range_ms(common)[1])


def _counting(space: SearchSpace) -> LatencyModel:
    return LatencyModel.counting(space, lambda s: macs(s) / 1e6)
