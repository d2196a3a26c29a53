"""On cells every relaxation, gradient and scheme goes with everything that changes the supernet."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from hwnas.recipes import create_recipe
from hwnas.search.gradients import Amended, MixedLevel, Unrolled
from hwnas.search.logit_terms import BetaDecay, ZeroOne
from hwnas.search.perturbations import Adversarial
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Softmax
from hwnas.search.schemes import Alternating, OneLevel, Reinforce
from hwnas.space import create_space
from hwnas.testing.parts import RELAXATIONS, toy_step
from hwnas.testing.search_contracts import check_scheme

CELLS = create_space("robust-darts", subspace=3, channels=4, num_cells=3, resolution=16)
DARTS = create_recipe("darts")

SUPERNETS: dict[str, dict[str, Any]] = {
    "part of the channels": {"partial_channels": 2},
    "edges weighed": {"edge_weights": True},
    "both": {"partial_channels": 2, "edge_weights": True},
    "all dropped": {"skip_dropout": 0.3, "drop_path": 0.2, "cutout": 0.5},
}
SCHEMES: dict[str, dict[str, Any]] = {
    "unrolled": {"scheme": Alternating(gradient=Unrolled())},
    "amended": {"scheme": Alternating(gradient=Amended(0.1))},
    "mixed level": {"scheme": Alternating(gradient=MixedLevel())},
    "attacked": {"scheme": Alternating(attack=Adversarial(0.1, steps=2))},
    "one level": {"scheme": OneLevel(), "weight_share": 1.0},
    "terms of logits": {"regularizers": (*DARTS.regularizers, BetaDecay(5.0), ZeroOne(1.0))},
}
MOVING = [name for name, relaxation in RELAXATIONS.items() if relaxation.differentiable or relaxation.draws]
PAIRS = [
    *itertools.product(MOVING, ["plain", "one level"], ["both"]),
    *itertools.product(MOVING, ["plain"], ["all dropped"]),
    *itertools.product(["softmax"], SCHEMES, SUPERNETS),
]


def composed(relaxation: str, scheme: str, supernet: str) -> Recipe | None:
    """DARTS with other parts; None where they do not fit together."""
    part = RELAXATIONS[relaxation]
    if (part.draws and scheme != "plain") or (scheme == "attacked" and not isinstance(part, Softmax)):
        return None
    moved = {"scheme": Reinforce(num_samples=2)} if part.draws else SCHEMES.get(scheme, {"scheme": Alternating()})
    return replace(DARTS, relaxation=part, **moved, **SUPERNETS[supernet])


@pytest.mark.parametrize(("relaxation", "scheme", "supernet"), dict.fromkeys(PAIRS))
def test_a_step_moves_logits_and_stays_finite(relaxation: str, scheme: str, supernet: str) -> None:
    recipe = composed(relaxation, scheme, supernet)
    if recipe is None:
        pytest.skip("drawn paths move logits by rewards alone, and attacks need probabilities for weights")
    step = toy_step(recipe, space=CELLS)
    before = {name: value.detach().clone() for name, value in step.state.logits.items()}
    recipe.scheme(step)
    assert any(not torch.equal(before[name], logit) for name, logit in step.state.logits.items())
    assert all(bool(torch.isfinite(value).all()) for value in step.state.supernet.state_dict().values())


@pytest.mark.parametrize(
    ("scheme", "supernet"), [*zip(SCHEMES, itertools.cycle(["both", "all dropped"]), strict=False)]
)
def test_contract(scheme: str, supernet: str) -> None:
    recipe = composed("softmax", scheme, supernet)
    assert recipe is not None
    check_scheme(recipe, space=CELLS)
