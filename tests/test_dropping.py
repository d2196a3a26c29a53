"""Dropout after skips and dropped edges: what is dropped, when, and that it repeats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from hwnas.compute import Compute
from hwnas.errors import UsageError
from hwnas.recipes import create_recipe
from hwnas.search.recipe import Recipe
from hwnas.search.rehearsal import predicted_peak
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Linear
from hwnas.search.step import SearchStep
from hwnas.space import create_space
from hwnas.supernet.dropping import SkipDropout, drop_path
from hwnas.supernet.supernet import Supernet, extract
from hwnas.testing.parts import toy_step

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
CELLS = create_space("robust-darts", subspace=2, **SMALL)
NOISY = create_space("robust-darts", subspace=4, **SMALL)


def recipe(**changes: Any) -> Recipe:
    return replace(create_recipe("darts", batch_size=4), **changes)


def test_skips_are_followed_by_dropout_in_training_only() -> None:
    skip, x = SkipDropout(), torch.ones(50, 40)
    skip.rate = 0.4
    with Compute(device="cpu").seeded(1):
        found = skip(x)
    assert torch.unique(found).tolist() == pytest.approx([0, 1 / 0.6])
    assert (found == 0).double().mean() == pytest.approx(0.4, abs=0.05)  # 4.5 deviations of 2,000 draws
    assert torch.equal(skip.eval()(x), x)
    skip.train().rate = 0.0
    assert torch.equal(skip(x), x)


def test_edges_are_dropped_image_by_image() -> None:
    x = torch.ones(2000, 2, 2, 2, requires_grad=True)
    with Compute(device="cpu").seeded(1):
        found = drop_path(x, 0.25)
    per_image = found.detach().flatten(1)
    assert torch.equal(per_image, per_image[:, :1].expand(-1, 8))
    assert torch.unique(per_image).tolist() == pytest.approx([0, 1 / 0.75])
    assert (per_image[:, 0] == 0).double().mean() == pytest.approx(0.25, abs=0.045)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(slope, found.detach())
    assert drop_path(x, 0.0) is x


@pytest.mark.parametrize("name", ["darts", "pc_darts"])
def test_a_node_adds_up_what_edges_weigh_and_images_keep(name: str) -> None:
    step, seen = toy_step(replace(create_recipe(name), drop_path=0.75), space=CELLS), dict[str, torch.Tensor]()
    layers = step.state.supernet.double().layers
    for edge in ("cell0_edge02", "cell0_edge12", "cell0_node2"):  # a node passes on what it gets
        layers[edge].register_forward_hook(lambda module, inputs, output, edge=edge: seen.update({edge: output}))  # type: ignore[misc]
    gates = step.draw(Softmax())
    step.state.supernet.drop(skips=0.0, paths=0.75)
    with torch.no_grad(), step.compute.seeded(1):
        step.state.supernet(step.weight_batch[0].double(), gates)
    beta = gates[CELLS.nodes[0].name].weights if name == "pc_darts" else torch.ones(2)
    first, second = 4 * beta[0] * seen["cell0_edge02"], 4 * beta[1] * seen["cell0_edge12"]
    sums = torch.stack([torch.zeros_like(first), first, second, first + second])  # all that can be left of an image
    fits = [[torch.allclose(each, found) for each in sums[:, i]] for i, found in enumerate(seen["cell0_node2"])]
    assert all(sum(fit) == 1 for fit in fits)
    assert len({fit.index(True) for fit in fits}) > 1, "every image lost the same"


def test_skips_that_stride_have_no_dropout() -> None:
    supernet = Supernet(CELLS, drops_skips=True)
    for layer in CELLS.layers:
        dropped = [isinstance(m, SkipDropout) for m in supernet.layers[layer.name].modules()]
        assert any(dropped) == (bool(layer.choices) and layer.signatures[0].stride == 1)


def outputs(step: SearchStep, seed: int) -> torch.Tensor:
    """Gradients of the gates of one pass."""
    with step.compute.seeded(seed):
        task = step.run(step.weight_batch, step.draw(Softmax()), arch=True)
    return torch.cat([g for g in task.gate_gradients.values() if g is not None])


@pytest.mark.parametrize("drops", [{"skip_dropout": 0.5}, {"drop_path": 0.5}], ids=["skips", "paths"])
def test_a_step_drops_at_its_rate_and_repeats_under_its_seed(drops: dict[str, float]) -> None:
    plain, step = (toy_step(recipe(**each), space=CELLS) for each in ({}, drops))
    found = outputs(step, 1)
    assert torch.equal(found, outputs(step, 1))
    assert not torch.equal(found, outputs(step, 2))
    checkpointed = replace(step, compute=Compute(device="cpu", checkpoint_activations=True))
    assert torch.equal(found, outputs(checkpointed, 1))
    step.state.supernet.eval()
    plain.state.supernet.eval()
    assert torch.equal(outputs(step, 1), outputs(plain, 2))


@pytest.mark.parametrize("name", ["skip_dropout", "drop_path"])
def test_the_rate_is_that_of_the_moment(name: str) -> None:
    schedule: dict[str, Any] = {name: Linear(0.0, 0.5)}
    plain = outputs(toy_step(recipe(), space=CELLS, progress=0.0), 1)
    assert torch.equal(outputs(toy_step(recipe(**schedule), space=CELLS, progress=0.0), 1), plain)
    late = outputs(toy_step(recipe(**schedule), space=CELLS, progress=0.8), 1)
    assert torch.equal(late, outputs(toy_step(recipe(**{name: 0.4}), space=CELLS, progress=0.8), 1))
    assert not torch.equal(late, plain)


@pytest.mark.parametrize("partial_channels", [1, 4])
def test_networks_that_are_taken_out_drop_nothing(partial_channels: int) -> None:
    supernet = Supernet(CELLS, partial_channels=partial_channels, drops_skips=True, drops_paths=True)
    supernet.drop(skips=0.5, paths=0.5)
    network = extract(
        supernet, CELLS.architecture([1 if i % 14 in (0, 1, 2, 3, 5, 6, 9, 10) else 0 for i in range(28)])
    )
    images = torch.randn(2, *CELLS.input_shape)
    assert network.training
    assert torch.equal(network(images), network(images))
    gates = toy_step(recipe(), space=CELLS).draw(Softmax())
    with Compute(device="cpu").seeded(1):
        assert not torch.equal(supernet(images, gates), supernet(images, gates))


def test_memory_is_predicted_with_what_is_dropped() -> None:
    state, budget = torch.get_rng_state(), toy_step(recipe(), space=CELLS).budget
    plain, dropping = (
        predicted_peak(budget, each, compute=Compute(device="cpu"))
        for each in (recipe(), recipe(skip_dropout=0.5, drop_path=0.5))
    )
    assert dropping.step_bytes > plain.step_bytes
    assert torch.equal(state, torch.get_rng_state())


def test_rates_without_effect_are_refused() -> None:
    for rate in (-0.1, 1.0, Linear(0.0, 1.0)):
        for name in ("skip_dropout", "drop_path"):
            with pytest.raises(UsageError, match=f"has a {name} of"):
                recipe(**{name: rate})
    with pytest.raises(UsageError, match="has no skips that skip_dropout would act on"):
        recipe(skip_dropout=0.1).supernet(NOISY)
    with pytest.raises(UsageError, match=r"has no edges .* which drop_path would drop"):
        recipe(drop_path=0.1).supernet(create_space("tiny-mbconv"))
    assert not any(isinstance(m, SkipDropout | nn.Dropout) for m in recipe().supernet(CELLS).modules())
