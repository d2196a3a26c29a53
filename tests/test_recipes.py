"""Recipes: the published numbers they hold, recipes of one's own, and arguments that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.accuracy import PathAccuracy
from hwnas.checkpoint import load_checkpoint
from hwnas.compute import Compute
from hwnas.data import load_data
from hwnas.errors import DataError, RunError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import read_log
from hwnas.recipes import create_recipe, recipe_names
from hwnas.run import RunFolder
from hwnas.search.derivations import StrongestEdges
from hwnas.search.gradients import FirstOrder, Unrolled
from hwnas.search.loop import search
from hwnas.search.protocols import Finished
from hwnas.search.relaxations import BinaryGates, Categorical, Concrete, StraightThroughGumbel
from hwnas.search.schedules import Linear, Phases, value_at
from hwnas.search.schemes import Alternating, Reinforce
from hwnas.space import create_space, macs
from hwnas.steps import supernet_weights
from hwnas.testing.toys import toy_latency_model, toy_table

Run = Callable[..., Any]

MINE = """
from dataclasses import replace
import hwnas
from hwnas.search.relaxations import BinaryGates

def mine(*, num_epochs=1, batch_size=64, paths="two"):
    recipe = hwnas.create_recipe("gates", num_epochs=num_epochs, batch_size=batch_size)
    return replace(recipe, name="mine", relaxation=BinaryGates(paths))

def broken():
    return 3
"""

DIVERGES = """
from dataclasses import replace
import hwnas
from hwnas.search.schedules import Phases

def mine(*, num_epochs=1, batch_size=64, rate=0.01):
    recipe = hwnas.create_recipe("gates", num_epochs=num_epochs, batch_size=batch_size)
    return replace(recipe, name="mine", weight_lr=Phases(0.5, 0.01, rate))
"""
"""Its second half has another rate."""

OF_CELLS: dict[str, tuple[str, dict[str, int]]] = {
    "darts_plus": ("robust-darts", {"subspace": 2}),
    "fair_darts": ("robust-darts", {"subspace": 2, "inputs": 0}),
    "p_darts": ("robust-darts", {"subspace": 2}),
    "pc_darts": ("robust-darts", {"subspace": 2}),
}
"""Recipes that refuse other spaces, and what they search here."""


def tau_at(recipe_name: str, progress: float) -> float:
    relaxation = create_recipe(recipe_name).relaxation
    assert isinstance(relaxation, Concrete | StraightThroughGumbel)
    return value_at(relaxation.tau, progress)


def test_temperatures_are_the_published_ones() -> None:
    for epoch in (0, 30, 89):  # FBNet: 5 * exp(-0.045) an epoch; 0.0911 in the last of 90
        assert tau_at("fbnet", epoch / 90) == pytest.approx(5 * math.exp(-0.045 * epoch))
    assert tau_at("fbnet", 89 / 90) == pytest.approx(0.0911, abs=1e-4)
    assert [tau_at("gdas", p) for p in (0, 1)] == pytest.approx([10.0, 0.1])
    assert [tau_at("snas", p) for p in (0, 1)] == pytest.approx([1.0, 0.03])


def test_proxylessnas_warms_up_for_a_quarter_and_then_starts_another_cosine() -> None:
    recipe = create_recipe("proxylessnas")
    rates = [value_at(recipe.weight_lr, epoch / 160) for epoch in (0, 20, 40, 100, 160)]
    assert rates == pytest.approx([0.05, 0.025, 0.025, 0.0125, 0.0])
    assert isinstance(recipe.weight_lr, Phases)
    assert isinstance(recipe.scheme, Alternating)
    assert recipe.scheme.warm_up == 41 / 160
    assert recipe.scheme.every == 5
    assert recipe.relaxation == BinaryGates("two")
    assert recipe.of_weights == Categorical()
    assert create_recipe("proxylessnas", mode="all").relaxation == BinaryGates("all")
    assert isinstance(create_recipe("proxylessnas", mode="reinforce").scheme, Reinforce)
    optimizer = recipe.arch_optimizer([nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["betas"] == (0.0, 0.999)  # a logit without gradient must not move


def test_darts_has_two_orders() -> None:
    schemes = [create_recipe("darts", order=order).scheme for order in (1, 2)]
    assert all(isinstance(scheme, Alternating) and scheme.arch_first for scheme in schemes)
    assert [type(scheme.gradient) for scheme in schemes] == [FirstOrder, Unrolled]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["darts", "p_darts", "pc_darts", "gdas", "robust_darts", "milenas", "snas"])
def test_the_published_rule_stands_however_little_of_the_limit_its_cell_uses(name: str) -> None:
    derivation = create_recipe(name).derivation
    assert isinstance(derivation, StrongestEdges)
    assert derivation.floor == 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("darts", {"order": 3}, "no order 3; it takes 1 or 2"),
        ("proxylessnas", {"mode": "three"}, "takes mode as 'two' or 'all' or 'reinforce'; got 'three'"),
        ("fbnet", {"published": "false"}, "takes published as bool; got 'false'"),
        ("gates", {"num_epochs": 0.3}, "takes num_epochs as int; got 0.3"),
        ("gdas", {"arch_lr": "fast"}, "takes arch_lr as float; got 'fast'"),
        ("gdas", {"arch_lr": math.nan}, "recipe 'gdas' got arch_lr=nan; expected a finite number"),
        ("robust_darts", {"mode": "l2", "factor": math.inf}, "got factor=inf; expected a finite number"),
        ("fbnet", {"units_per_ms": 1000}, "units_per_ms=1000 has no effect.*--set published=True"),
        ("proxylessnas", {"units_per_ms": 1000, "published": True, "mode": "reinforce"}, "has no effect"),
        ("fbnet", {"units_per_ms": -1, "published": True}, "units_per_ms is -1; expected more than 0"),
        ("cp_nas", {"num_epochs": 2}, "drops nothing in 2 epochs.*epochs_per_round=2 or less"),
        ("snas", {"order": 2}, "recipe 'snas' has no argument 'order'; it takes num_epochs"),
    ],
)
def test_unknown_arguments_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_recipe(name, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": math.nan}, "at least 0 epochs"),
        ({"num_epochs": math.inf}, "at least 0 epochs"),
        ({"grad_clip": -1.0}, "grad_clip of -1; expected more than 0"),
        ({"grad_clip": math.nan}, "grad_clip of nan; expected more than 0"),
        ({"label_smoothing": 1.0}, "label_smoothing of 1; expected from 0 to below 1"),
        ({"logit_std": -0.1}, "logit_std of -0.1; expected a finite number of at least 0"),
        ({"weight_share": math.nan}, "weight_share of nan; expected more than 0"),
        ({"weight_lr": Linear(0.1, -0.1)}, "weight_lr of -0.1; expected a finite number of at least 0"),
        ({"arch_lr": math.inf}, "arch_lr of inf; expected a finite number of at least 0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"recipe 'gates'.*{message}"):
        replace(create_recipe("gates"), **changes)


@pytest.mark.parametrize("setting", ["arch_lr=-1", "arch_lr=1e400", "arch_lr=0"])
def test_a_rate_that_no_search_can_use_is_refused(
    setting: str, hwnas: Run, small: list[str], table: Path, noise: str, tmp_path: Path
) -> None:
    command = ["search", *small, "--table", table, "--data", noise, "--batch-size", 4, "--output", tmp_path / "run"]
    message = {
        "arch_lr=-1": "optimizer of recipe 'gates' cannot be built: Invalid learning rate: -1",
        "arch_lr=1e400": "got arch_lr=inf; expected a finite number",
        "arch_lr=0": "has a learning rate of 0 for the logits, which would never move",
    }[setting]
    hwnas(*command, "--set", setting).failed(2, message)
    assert not (tmp_path / "run" / "search.jsonl").exists(), "so another rate may have the same output"


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_recipe_searches_on_real_images_and_keeps_the_limit(name: str, tmp_path: Path) -> None:
    short = {"robust_darts": {"mode": "l2"}, "cp_nas": {"epochs_per_round": 1}}  # others need more epochs
    mode: dict[str, Any] = short.get(name, {})
    batch_size = 20 if name in OF_CELLS else 56
    recipe, model = create_recipe(name, num_epochs=1, batch_size=batch_size, **mode), toy_latency_model()[1]
    data = load_data("digits", resolution=8)
    if name in OF_CELLS:
        with pytest.raises(UsageError, match="cell"):
            search(Budget(model, feasible_range_ms(model)[1]), data, recipe, RunFolder(tmp_path))
        space_name, options = OF_CELLS[name]
        space = create_space(space_name, resolution=16, channels=4, num_cells=3, **options)
        model, data = LatencyModel.from_table(space, toy_table(space)), load_data("digits", resolution=16)
        data = replace(data, train=data.train.subset(np.arange(80)))
        recipe = recipe.in_proxy({"num_cells": 3}) if recipe.proxy else recipe
    low, high = feasible_range_ms(model)
    budget = Budget(model, (low + high) / 2)
    result = search(
        budget, data, replace(recipe, weight_share=0.9) if recipe.weight_share == 0.96 else recipe, RunFolder(tmp_path)
    )
    assert set(result.probabilities) == set(model.space.choice_names)
    assert all(float(p.sum()) == pytest.approx(1.0, abs=1e-5) for p in result.probabilities.values())
    if result.arch_images is not None:
        together = len(result.weight_images) + len(result.arch_images)
        assert together == len(data.train)
    judge = PathAccuracy(result.supernet, result.weight_images, data.val.spread(16), Compute("cpu"), 0)
    best = next(recipe.derivation(Finished(result.probabilities, judge, 0), budget))
    assert budget.allows(model.exact_ms(best))


@pytest.mark.parametrize("name", ["fbnet", "proxylessnas"])
def test_the_published_term_takes_a_table_below_a_millisecond(
    name: str, hwnas: Run, small: list[str], table: Path, noise: str, tmp_path: Path
) -> None:
    entries = LatencyTable.load(table)
    model = LatencyModel.from_table(create_space("tiny-mbconv", resolution=16, width=0.25), entries)
    assert feasible_range_ms(model)[0] < 1
    share = [] if name == "fbnet" else ["--set", "weight_share=0.8"]
    command = ["search", *small, "--table", table, "--recipe", name, "--set", "published=True", *share, "--data", noise]
    command += ["--epochs", 2, "--batch-size", 4, "--output", tmp_path / "run"]
    refused = hwnas(*command)
    refused.failed(2, "whose logarithm is not positive", "--set units_per_ms=1000")
    assert "predicted peak" not in refused.out, "refused before the first step"
    hwnas(*command[:-1], tmp_path / "us", "--set", "units_per_ms=1000")
    log = [entry for entry in read_log(tmp_path / "us" / "search.jsonl") if "arch_loss" in entry]
    assert log
    assert all(math.isfinite(entry["arch_loss"]) and entry["arch_loss"] > 0 for entry in log)


def test_a_recipe_of_ones_own(hwnas: Run, small: list[str], table: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.py"
    file.write_text(MINE)
    run = tmp_path / "own"
    command = ["search", *small, "--table", table, "--recipe", f"{file}:mine", "--set", "paths=all", "--output", run]
    out = hwnas(*command, "--epochs", 1).done()
    assert "predicted peak" in out
    assert "measured in the first weight step" in out
    assert RunFolder.open(run).config["recipe"]["arguments"] == {"num_epochs": 1, "paths": "all"}
    file.write_text(MINE + "\n# changed\n")
    hwnas(*command, "--epochs", 1, "--resume").failed(1, "another recipe", "Choose another output")


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("absent.py:mine", ["absent.py does not exist", "FILE.py:FUNCTION"]),
        ("my.py:nothing", ["no function 'nothing'", "mine, broken"]),
        ("my.py:broken", ["returned a int", "expected a hwnas.Recipe"]),
    ],
)
def test_files_without_a_recipe_are_refused(
    hwnas: Run, small: list[str], table: Path, tmp_path: Path, recipe: str, parts: list[str]
) -> None:
    (tmp_path / "my.py").write_text(MINE)
    command = ["search", *small, "--table", table, "--output", tmp_path / "run"]
    hwnas(*command, "--recipe", tmp_path / recipe).failed(2, *parts)
    hwnas(*command, "--set", "epochs").failed(2, "--set epochs: expected NAME=VALUE")
    hwnas(*command, "--set", "lambda_=0.1").failed(2, "recipe 'gates' has no argument 'lambda_'")


def test_a_search_may_start_from_another_ones_weights(
    hwnas: Run, small: list[str], table: Path, searched: Path, tmp_path: Path
) -> None:
    command = ["search", *small, "--table", table, "--weights-from", searched]
    hwnas(*command, "--recipe", "random", "--epochs", 0, "--set", "num_samples=2", "--batch-size", 32,
          "--output", tmp_path / "derived").done()  # fmt: skip
    given, kept = (load_checkpoint(run / "search.pt")["supernet"] for run in (searched, tmp_path / "derived"))
    assert all(torch.equal(value, kept[name]) for name, value in given.items())
    with pytest.raises(RunError, match="is of another space"):
        supernet_weights(create_space("tiny-mbconv"), searched)


def test_what_is_said_after_a_loss_is_not_finite_works(
    hwnas: Run, small: list[str], table: Path, tmp_path: Path
) -> None:
    file, run, other = tmp_path / "my.py", tmp_path / "run", tmp_path / "other"
    file.write_text(DIVERGES)
    command = ["search", *small, "--table", table, "--recipe", f"{file}:mine", "--epochs", 2, "--batch-size", 128]
    ended = hwnas(*command, "--set", "rate=1e38", "--checkpoint-seconds", 0, "--output", run)
    advice = f"into another output with a lower learning rate, from these weights with --weights-from {run}: "
    ended.failed(1, f"the checkpoint {run}/search.pt from before it is kept", advice)
    assert all(torch.isfinite(value).all() for value in load_checkpoint(run / "search.pt")["supernet"].values())
    hwnas(*command, "--set", "rate=0.01", "--output", run, "--resume").failed(1, "another recipe", "another output")
    assert "target met" in hwnas(*command, "--set", "rate=0.01", "--output", other, "--weights-from", run).done()


@pytest.mark.parametrize("name", ["darts", "snas", "gdas", "cp_nas", "beta_darts", "gates"])
def test_a_search_with_nothing_to_choose_is_refused(name: str) -> None:
    gold = create_space("gold-nas", channels=4, num_cells=3, resolution=16)
    model = LatencyModel.counting(gold, macs)
    budget = Budget(model, feasible_range_ms(model)[1] / 2)
    create_recipe("gold_nas").check(budget)
    with pytest.raises(UsageError, match=rf"recipe '{name}' has nothing to choose in space 'gold-nas'.* gold_nas"):
        create_recipe(name).check(budget)


def test_too_few_images_for_the_architecture(tmp_path: Path) -> None:
    _, model = toy_latency_model()
    budget, data = Budget(model, feasible_range_ms(model)[1]), load_data("digits", resolution=8)
    with pytest.raises(DataError, match=r"leaves 60 images .*\(0.96 of all train weights\).*--set weight_share=0.8"):
        search(budget, data, create_recipe("proxylessnas", num_epochs=1, batch_size=64), RunFolder(tmp_path))


def test_a_recipe_resolves_to_the_same_text_wherever_its_functions_lie_in_memory() -> None:
    one, other = (replace(create_recipe("gates"), arch_optimizer=lambda p: torch.optim.SGD(p, lr=1.0)) for _ in "ab")
    assert repr(one) != repr(other)
    assert one.resolved == other.resolved != create_recipe("gates").resolved
