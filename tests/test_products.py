"""Products with second derivatives where operators draw at random, and the lengths of their differences."""

from __future__ import annotations

from dataclasses import replace

import torch

from hwnas.recipes import create_recipe
from hwnas.search.gradients import Amended, Unrolled
from hwnas.search.products import mixed_product
from hwnas.space import create_space
from hwnas.testing.parts import toy_step

S4 = create_space("robust-darts", subspace=4, channels=4, num_cells=3, resolution=16)


def test_both_passes_of_a_difference_see_the_same_noise() -> None:
    step = toy_step(create_recipe("darts"), space=S4)
    step.state.supernet.double()
    step = replace(step, weight_batch=(step.weight_batch[0].double(), step.weight_batch[1]))
    gates = step.draw(step.recipe.relaxation)
    direction = [torch.ones_like(parameter) for parameter in step.state.supernet.parameters()]
    near, nearer = (mixed_product(step, gates, direction, length=length, exact=False) for length in (1e-4, 5e-5))
    for name, value in near.items():
        assert value is not None
        torch.testing.assert_close(nearer[name], value, rtol=1e-2, atol=1e-2 * float(value.norm()))


def test_differences_are_as_long_as_published() -> None:
    assert Amended().eps == Unrolled().eps == 0.01
