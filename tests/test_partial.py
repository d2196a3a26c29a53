"""Partial channels, and PC-DARTS: sizes, what passes by, memory, and networks taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.accuracy import PathAccuracy
from hwnas.compute import Compute
from hwnas.data import load_data
from hwnas.errors import RunError, UsageError
from hwnas.recipes import create_recipe
from hwnas.search.derivations import SampleAndScore
from hwnas.search.logit_terms import BetaDecay
from hwnas.search.protocols import Finished
from hwnas.search.recipe import Recipe
from hwnas.search.rehearsal import predicted_peak
from hwnas.search.relaxations import BinaryGates, Softmax, StraightThroughGumbel
from hwnas.search.state import initial_state
from hwnas.space import NONE, create_space
from hwnas.supernet.gates import Gate, one_hot, one_hot_gates
from hwnas.supernet.mixed_op import MixedOp
from hwnas.supernet.partial import Bypass, PartialOp
from hwnas.supernet.supernet import Supernet, extract
from hwnas.testing.parts import RELAXATIONS, toy_step

SMALL = {"channels": 4, "num_cells": 3, "resolution": 16}
CELLS = create_space("robust-darts", subspace=2, **SMALL)
THREE = create_space("robust-darts", subspace=3, **SMALL)  # candidates an edge


def recipe(**changes: object) -> Recipe:
    return replace(create_recipe("pc_darts", batch_size=4), **changes)  # type: ignore[arg-type]


def test_published_size() -> None:
    with torch.device("meta"):
        supernet = Supernet(create_space("darts-cell"), partial_channels=4)
    assert sum(p.numel() for p in supernet.parameters()) == 299_578  # of the released search network


def test_other_channels_pass_by_and_then_both_kinds_take_turns() -> None:
    x = torch.arange(8.0).view(1, 8, 1, 1)
    found = Bypass(4, 1)(x, lambda first: first + 100)
    # Groups of C/K = 2: (100, 101), (2, 3), (4, 5), (6, 7); the shuffle takes the first of each, then the second.
    assert found.flatten().tolist() == [100, 2, 4, 6, 101, 3, 5, 7]


def test_without_the_shuffle_what_passes_by_is_the_input_bit_for_bit() -> None:
    bypass, x = Bypass(4, 1), torch.randn(2, 8, 5, 5)
    bypass.shuffle.forward = lambda x: x  # type: ignore[method-assign]
    assert torch.equal(bypass(x, torch.zeros_like)[:, 2:], x[:, 2:])


@pytest.mark.parametrize(("size", "expected"), [(4, [[5.0, 7], [13, 15]]), (3, [[4.0, 5], [7, 8]])])
def test_on_a_strided_edge_the_others_are_pooled(size: int, expected: list[list[float]]) -> None:
    x = torch.arange(float(size * size)).view(1, 1, size, size).expand(1, 2, size, size)
    found = Bypass(2, 2)(x, lambda first: first[:, :, ::2, ::2])
    assert found[0, 1].tolist() == expected


def options(channels: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Conv2d(channels, channels, k, padding=k // 2).double() for k in (1, 3, 5)]


def test_one_part_is_the_plain_edge() -> None:
    x, gate = torch.randn(2, 4, 5, 5).double(), Gate(torch.tensor([0.2, 0.3, 0.5]).double(), (0, 1, 2))
    assert torch.equal(PartialOp(options(4), 1, 1)(x, gate), MixedOp(options(4))(x, gate))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gates_get_the_same_gradient_whether_options_run_or_are_probed(checkpointed: bool) -> None:
    mixed, x, slope = PartialOp(options(2), 4, 1), torch.randn(3, 8, 5, 5).double(), torch.randn(3, 8, 5, 5).double()
    found = []
    for hard, active, probed in ((False, (0, 1, 2), ()), (True, (1,), (0, 2))):
        weights = one_hot(1, 3).double().requires_grad_()
        leaf = x.clone().requires_grad_()
        y = mixed(leaf, Gate(weights, active, probed, hard=hard), checkpointed)
        found.append((y.detach(), *torch.autograd.grad((y * slope).sum(), [leaf, weights])))
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse)  # float64; sums in another order
    assert found[0][2].abs().min() > 0


@pytest.mark.parametrize("name", RELAXATIONS)
def test_every_relaxation_runs_and_repeats(name: str) -> None:
    losses = []
    for checkpointed in (False, True):
        step = toy_step(recipe(relaxation=RELAXATIONS[name], scheme=create_recipe("darts").scheme)
                        if RELAXATIONS[name].differentiable else recipe(), space=THREE)  # fmt: skip
        step = replace(step, compute=Compute(device="cpu", checkpoint_activations=checkpointed))
        task = step.run(step.weight_batch, step.draw(RELAXATIONS[name]), weights=True, arch=True)
        losses.append((task.loss, *(g for g in task.gate_gradients.values() if g is not None)))
    assert len(losses[0]) > 1
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


def test_with_even_edges_a_node_is_the_mean_of_what_it_was_the_sum_of() -> None:
    steps = {edges: toy_step(recipe(partial_channels=1, edge_weights=edges), space=CELLS) for edges in (True, False)}
    seen: dict[bool, Tensor] = {}
    for edges, step in steps.items():
        step.state.supernet.double()
        for name, logit in step.state.logits.items():
            logit.data = torch.zeros_like(logit) if name in CELLS.edges else torch.linspace(-1, 1, len(logit)).double()

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor, edges: bool = edges) -> None:
            seen[edges] = output

        step.state.supernet.layers["cell0_node2"].register_forward_hook(hook)
        step.state.supernet(steps[True].weight_batch[0].double(), step.draw(Softmax()))
    torch.testing.assert_close(seen[True], seen[False] / 2)  # of two edges


def kept_bytes(recipe: Recipe) -> int:
    step, sizes = toy_step(recipe, space=create_space("darts-cell", **SMALL)), {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert step.state.supernet(step.weight_batch[0], step.draw(Softmax())).requires_grad
    return sum(sizes.values())


def test_memory_falls_with_the_parts() -> None:
    darts = kept_bytes(create_recipe("darts"))
    quarter, half = (kept_bytes(recipe(partial_channels=k)) for k in (4, 2))
    assert quarter < 0.40 * darts
    assert quarter < half < 0.75 * darts


def test_predicted_memory_falls_too() -> None:
    budget = toy_step(recipe(), space=CELLS).budget
    full, part = (
        predicted_peak(budget, each, compute=Compute(device="cpu"))
        for each in (create_recipe("darts", batch_size=4), recipe())
    )
    assert part.step_bytes < 0.5 * full.step_bytes
    assert part.weights_bytes < 0.5 * full.weights_bytes


@pytest.mark.parametrize(("progress", "moves"), [(0.29, False), (0.3, True)])
def test_logits_of_options_and_edges_rest_for_15_of_50_epochs(progress: float, moves: bool) -> None:
    step = toy_step(recipe(), space=CELLS, progress=progress)
    before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    weights = [parameter.detach().clone() for parameter in step.state.supernet.parameters()]
    step.recipe.scheme(step)
    assert all(torch.equal(before[name], x) != moves for name, x in step.state.logits.items())
    assert set(CELLS.edges) < set(before)
    moved = [not torch.equal(a, b) for a, b in zip(weights, step.state.supernet.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("relaxation", [StraightThroughGumbel(1.0), BinaryGates("two")], ids=["gumbel", "two-path"])
def test_it_combines_with_sampling_and_beta_decay(relaxation: StraightThroughGumbel | BinaryGates) -> None:
    terms = (*recipe().regularizers, BetaDecay(0.5))  # beside the latency term
    step = toy_step(recipe(relaxation=relaxation, regularizers=terms), space=CELLS)
    before = {name: logit.detach().clone() for name, logit in step.state.logits.items()}
    assert step.recipe.scheme(step)["weight_loss"] > 0
    assert not any(torch.equal(before[name], logit) for name, logit in step.state.logits.items())


def test_networks_that_are_taken_out_pass_the_same_channels_by() -> None:
    torch.manual_seed(0)
    supernet, images = Supernet(CELLS, partial_channels=4), torch.randn(2, *CELLS.input_shape)
    for architecture in CELLS.distinct(3, seed=0):
        chosen, gates = dict(architecture.options), one_hot_gates(CELLS, architecture)
        for node in CELLS.nodes:  # an edge of none passes nothing by
            kept = torch.tensor([float(chosen[name] != NONE) for name in node.choices])
            gates[node.name] = Gate(kept, tuple(range(len(kept))))
        assert torch.equal(extract(supernet, architecture)(images), supernet(images, gates))


def test_derivations_by_accuracy_score_them() -> None:
    data, derivation = load_data("digits", resolution=16), SampleAndScore(num_samples=2, floor=0.0)
    few = data.train.subset(np.arange(64))
    accuracy = PathAccuracy(Supernet(CELLS, partial_channels=4), few, few, Compute(device="cpu"), num_batches=1)
    step = toy_step(recipe(), space=CELLS)
    found = [*derivation(Finished(step.probabilities(), accuracy), step.budget)]
    assert len(found) == 2
    assert 0 <= accuracy(found[1]) <= accuracy(found[0]) <= 1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Supernet(create_space("darts-cell", channels=6, num_cells=3), partial_channels=4), "6 channels"),
        (lambda: Supernet(create_space("tiny-mbconv"), partial_channels=2), "has no edges .* such as darts-cell"),
        (lambda: Supernet(create_space("gold-nas", **SMALL), partial_channels=2), "several layers from cell0_pre0"),
        (lambda: Supernet(CELLS, partial_channels=0), "expected 1 for all"),
    ],
)
def test_what_cannot_be_cut_is_refused(build: Callable[[], Supernet], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build()


def test_weights_of_another_number_of_parts_are_refused() -> None:
    weights = dict(Supernet(CELLS).state_dict())
    with pytest.raises(RunError, match="partial_channels=4"):
        initial_state(CELLS, recipe(), 0, Compute(device="cpu"), weights=weights)


def test_edges_of_the_benchmark_may_be_cut() -> None:
    space = create_space("nas-bench-201", resolution=16, num_cells=1, width=0.25)
    supernet, images = Supernet(space, partial_channels=2), torch.randn(2, 3, 16, 16)
    full, part = (sum(p.numel() for p in each.parameters()) for each in (Supernet(space), supernet))
    assert part < full
    assert extract(supernet, space.architecture([3] * 6))(images).shape == (2, 10)
