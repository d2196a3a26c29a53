"""Noise on the probabilities of weight steps, random and adversarial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.recipes import create_recipe
from hwnas.search.perturbations import Adversarial, Perturbed, ascended, projected
from hwnas.search.protocols import Batch
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Sigmoid, Softmax
from hwnas.search.schedules import Linear
from hwnas.search.schemes import Alternating, weight_step
from hwnas.search.step import SearchStep, Task
from hwnas.space import create_space
from hwnas.supernet.gates import Gates
from hwnas.testing.parts import toy_step

S2 = create_space("robust-darts", subspace=2, channels=4, num_cells=3, resolution=16)
DARTS = create_recipe("darts")


def recipe(mode: str, eps: float) -> Recipe:
    if mode == "random":
        return replace(DARTS, weight_relaxation=Perturbed(eps=eps))
    return replace(DARTS, scheme=Alternating(arch_first=True, attack=Adversarial(eps, steps=2)))


def everything(step: SearchStep) -> dict[str, Tensor]:
    return {**step.state.supernet.state_dict(), **{n: x.detach() for n, x in step.state.logits.items()}}


@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_without_noise_it_is_darts_bit_for_bit(mode: str) -> None:
    steps = [toy_step(each, num_layers=2) for each in (DARTS, recipe(mode, 0.0), recipe(mode, 0.3))]
    for step in steps:
        for _ in range(2):
            step.recipe.scheme(step)
    plain, none, some = (everything(step) for step in steps)
    assert all(torch.equal(value, none[name]) for name, value in plain.items())
    assert any(not torch.equal(value, some[name]) for name, value in plain.items())


@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_hardly_any_noise_is_hardly_not_darts(mode: str) -> None:
    steps = [in_double(toy_step(each, num_layers=2)) for each in (DARTS, recipe(mode, 1e-12))]
    for step in steps:
        for _ in range(2):
            step.recipe.scheme(step)
    plain, noisy = (everything(step) for step in steps)
    assert any(not torch.equal(value, noisy[name]) for name, value in plain.items())
    for name, value in plain.items():  # what goes through the projection comes out as it was, but for rounding
        torch.testing.assert_close(value, noisy[name], rtol=1e-8, atol=1e-8)


def in_double(step: SearchStep) -> SearchStep:
    step.state.supernet.double()
    for logit in step.state.logits.values():
        logit.data = logit.data.double()
    train, val = ((images.double(), labels) for images, labels in (step.weight_batch, step.next_arch_batch()))
    return replace(step, weight_batch=train, next_arch_batch=lambda: val)


def test_noise_is_that_of_the_schedule_of_the_moment() -> None:
    growing = Linear(0.0, 0.5)
    step = replace(toy_step(recipe("adversarial", 0.3), num_layers=2), progress=0.5)
    found = []
    for eps in (growing, 0.25, 0.5):
        step.state.generator.manual_seed(1)
        random = step.draw(Perturbed(eps=eps))
        attacked = Adversarial(eps, steps=2)(step, step.draw(Softmax()))
        found.append([gate.weights.detach() for gates in (random, attacked) for gate in gates.values()])
    assert all(map(torch.equal, found[0], found[1]))
    assert not any(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("mode", ["random", "adversarial"])
def test_a_weight_step_leaves_logits_and_edge_weights_and_moves_statistics_once(mode: str) -> None:
    made = replace(recipe(mode, 0.3), edge_weights=True)
    step, seen = toy_step(made, space=S2), []

    class Watched(SearchStep):
        def run(self, batch: Batch, gates: Gates, **options: Any) -> Any:
            seen.append((gates, self.state.supernet.training))
            return super().run(batch, gates, **options)

    watched = Watched(**vars(step))
    before = {name: x.detach().clone() for name, x in step.state.logits.items()}
    weight_step(watched, made.scheme.attack)  # type: ignore[attr-defined]
    assert all(torch.equal(x, before[name]) and x.grad is None for name, x in step.state.logits.items())
    (gates, training), clean = seen[-1], step.draw(Softmax())
    assert [mode for _, mode in seen] == [False] * (len(seen) - 1) + [True]
    assert training
    for name, gate in gates.items():
        if name in S2.edges:
            assert torch.equal(gate.weights, clean[name].weights)
            continue
        assert gate.weights[0] == 0  # none, which is no candidate in S2
        assert (gate.weights >= 0).all()
        assert float(gate.weights.sum()) == pytest.approx(1)
    assert any(not torch.equal(gate.weights, clean[name].weights) for name, gate in gates.items())
    counts = {int(x) for name, x in step.state.supernet.state_dict().items() if name.endswith("num_batches_tracked")}
    assert max(counts) == 1  # in spite of the attack's passes


def test_noise_is_bounded_before_the_projection() -> None:
    logit = torch.zeros(1000)  # of equal weights 0.001, which noise of 0.0005 leaves positive
    noisy = Perturbed(eps=0.0005)({"a": logit}, progress=0.0, generator=torch.Generator().manual_seed(0))["a"].weights
    ratio = noisy * 1000  # the sum of the noise is about 0
    assert 0.45 < float(ratio.min()) < 0.55
    assert 1.45 < float(ratio.max()) < 1.55
    assert torch.equal(projected(torch.tensor([-0.5, 0.5, 2.0])), torch.tensor([0.0, 0.5, 1.0]) / 1.5)


def test_noise_leaves_no_row_empty() -> None:
    assert torch.equal(projected(torch.tensor([-0.3, -0.1, -0.2])), torch.tensor([0.0, 1.0, 0.0]))
    eight = Perturbed(eps=0.3)  # of equal weights 1/8, all eight of which may fall below 0
    logits = {str(number): torch.zeros(8) for number in range(20_000)}
    gates = eight(logits, progress=0.0, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([gate.weights for gate in gates.values()])
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)))


def test_an_attack_climbs_by_two_eps_over_its_steps() -> None:
    seen = []

    def slopes(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(rows["a"])
        return {"a": torch.ones(1000)}

    ascended({"a": torch.zeros(1000)}, slopes, 0.3, 20, torch.Generator().manual_seed(0), project=lambda row: row)
    below = seen[1] < 0.3  # others have reached the end of the neighbourhood
    torch.testing.assert_close((seen[1] - seen[0])[below], torch.full((int(below.sum()),), 2 * 0.3 / 20))


def test_an_attack_on_a_linear_loss_reaches_the_corner() -> None:
    slope = torch.tensor([3.0, -1.0, 0.5, -2.0], dtype=torch.float64)
    start = torch.full((4,), 0.25, dtype=torch.float64)
    found = ascended(
        {"a": start}, lambda rows: {"a": slope}, 0.1, 7, torch.Generator().manual_seed(0), project=lambda row: row
    )
    torch.testing.assert_close(found["a"] - start, 0.1 * slope.sign())


def test_an_attack_starts_anywhere_in_the_neighbourhood() -> None:
    start, generator = torch.full((3000,), 0.5, dtype=torch.float64), torch.Generator().manual_seed(0)
    found = ascended(
        {"a": start}, lambda rows: {"a": torch.zeros_like(start)}, 0.1, 7, generator, project=lambda row: row
    )
    moved = (found["a"] - start) / 0.1
    assert 0.99 < float(moved.abs().max()) <= 1
    assert float(moved.square().mean()) == pytest.approx(1 / 3, abs=0.03)  # five deviations of an even distribution


@pytest.mark.parametrize("seed", range(8))
def test_the_attacked_loss_is_never_below_the_clean_one(seed: int) -> None:
    step = toy_step(recipe("adversarial", 0.3), num_layers=2)
    step.state.generator.manual_seed(seed)
    with torch.no_grad():
        clean = step.draw(Softmax())
    attacked = Adversarial(0.3, steps=1 + seed % 3)(step, clean)
    step.state.supernet.eval()
    losses = [float(step.run(step.weight_batch, gates).loss) for gates in (clean, attacked)]
    assert losses[1] >= losses[0]


@pytest.mark.parametrize("sense", [1.0, -1.0])
def test_an_attack_that_lowers_the_loss_is_taken_back(sense: float) -> None:
    step, slope = toy_step(recipe("adversarial", 0.3)), torch.tensor([1.0, -1.0, 0.0])

    class Linear(SearchStep):
        """A loss linear in the weights, whose gradients may have the wrong sense."""

        def run(self, batch: Batch, gates: Gates, **options: Any) -> Task:
            loss = sum(((gate.weights * slope).sum() for gate in gates.values()), torch.zeros(()))
            return Task(loss, 0.0, dict.fromkeys(gates, sense * slope))

    with torch.no_grad():
        clean = step.draw(Softmax())
    attacked = Adversarial(0.1)(Linear(**vars(step)), clean)
    assert (attacked is clean) == (sense < 0)


def test_attacks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="0 steps does nothing"):
        Adversarial(0.1, steps=0)
    with pytest.raises(UsageError, match=r"not on those of Sigmoid. Leave it out"):
        replace(recipe("adversarial", 0.1), relaxation=Sigmoid())


def test_sdarts_has_two_modes_and_two_orders() -> None:
    random, adversarial = (create_recipe("sdarts", mode=mode, order=2) for mode in ("random", "adversarial"))
    assert isinstance(random.of_weights, Perturbed)
    assert [random.of_weights.eps(p) for p in (0, 1)] == pytest.approx([0.03, 0.3])  # type: ignore[operator]
    assert random.scheme == create_recipe("darts", order=2).scheme
    assert adversarial.scheme.attack.steps == 7  # type: ignore[attr-defined]
    assert adversarial.weight_relaxation is None
    assert replace(adversarial.scheme, attack=None) == random.scheme  # type: ignore[type-var]
