"""One of every relaxation, for the suites that run over all of them, and a step to run schemes in."""

from __future__ import annotations

from dataclasses import replace

import torch

from hwnas.compute import Compute
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.search.op_dropout import OpDropout
from hwnas.search.perturbations import Perturbed
from hwnas.search.protocols import Relaxation, SearchState
from hwnas.search.rating import WithoutReplacement
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import (
    BinaryGates,
    Categorical,
    Concrete,
    Sigmoid,
    Softmax,
    StraightThroughGumbel,
    UniformPath,
)
from hwnas.search.schedules import Linear
from hwnas.search.state import initial_logits
from hwnas.search.step import SearchStep
from hwnas.space import SearchSpace
from hwnas.testing.toys import toy_space, toy_table

RELAXATIONS: dict[str, Relaxation] = {
    "softmax": Softmax(),
    "tempered": Softmax(tau=Linear(2.0, 0.5)),
    "perturbed": Perturbed(eps=0.1),
    "sigmoid": Sigmoid(),
    "concrete": Concrete(tau=Linear(5.0, 0.1)),
    "gumbel": StraightThroughGumbel(tau=Linear(10.0, 0.1)),
    "gumbel-added": StraightThroughGumbel(tau=1.0, added=True),
    "two-path": BinaryGates("two"),
    "all-probed": BinaryGates("all"),
    "categorical": Categorical(),
    "uniform": UniformPath(),
    "op-dropout": OpDropout(rate=0.2),
    "turns": WithoutReplacement(),
}


def toy_step(
    recipe: Recipe, *, num_layers: int = 1, progress: float = 0.5, space: SearchSpace | None = None
) -> SearchStep:
    """A step of a recipe on the toy space, or another: always the same weights, logits, images and seed.

    Weights are moved by SGD with momentum and decay, logits by Adam, whatever the recipe says; the limit is half way
    between the fastest and the slowest network.

    Args:
        recipe: Its parts are used, its optimizers and epochs are not.
        num_layers: Of the toy space.
        progress: Of the search, from 0 to 1.
        space: In place of the toy space.
    """
    space, generator = space or toy_space(num_layers=num_layers), torch.Generator().manual_seed(0)
    model = LatencyModel.from_table(space, toy_table(space))
    low, high = feasible_range_ms(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        supernet = recipe.supernet(space).train()
    logits = initial_logits(space, replace(recipe, logit_std=0.1), generator)
    weight_batch, arch_batch = (
        (torch.randn(4, *space.input_shape, generator=generator), torch.randint(0, 10, (4,), generator=generator))
        for _ in range(2)
    )
    state = SearchState(
        supernet,
        logits,
        torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2),
        torch.optim.Adam(logits.values(), lr=0.01, betas=(0.5, 0.999)),
        torch.Generator().manual_seed(0),
        candidates=space.candidates,
    )
    budget = Budget(model, (low + high) / 2)
    return SearchStep(state, recipe, budget, Compute(device="cpu"), progress, weight_batch, lambda: arch_batch)
