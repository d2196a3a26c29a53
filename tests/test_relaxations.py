"""Every relaxation keeps the contract, and has the gradient that its paper gives it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from hwnas.recipes import create_recipe
from hwnas.search.protocols import Relaxation
from hwnas.search.relaxations import (
    BinaryGates,
    Categorical,
    Concrete,
    Sigmoid,
    Softmax,
    StraightThroughGumbel,
    UniformPath,
    gumbel,
)
from hwnas.search.schedules import Linear
from hwnas.supernet.gates import Gate
from hwnas.supernet.mixed_op import MixedOp
from hwnas.testing.parts import RELAXATIONS, toy_step
from hwnas.testing.search_contracts import check_relaxation

SHARP = {"a": nn.Parameter(torch.log(torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)))}
SLOPES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
"""What ``dL/dg_k = <dL/dy, o_k(x)>`` is for each option, in a loss that is linear in the output."""


def drawn(relaxation: Relaxation, logits: dict[str, nn.Parameter], seed: int = 0, progress: float = 0.0) -> Gate:
    return relaxation(logits, progress=progress, generator=torch.Generator().manual_seed(seed))["a"]


def gradient(relaxation: Relaxation, logits: dict[str, nn.Parameter], seed: int) -> Tensor:
    """Of a linear loss, as a supernet forms it: options that do not run are probed or silent."""
    gate = drawn(relaxation, logits, seed)
    seen = torch.zeros_like(SLOPES)
    seen[[*gate.active, *gate.probed]] = SLOPES[[*gate.active, *gate.probed]]
    (found,) = torch.autograd.grad(gate.weights, [logits["a"]], seen)
    return found


@pytest.mark.parametrize("name", RELAXATIONS)
def test_contract(name: str) -> None:
    check_relaxation(RELAXATIONS[name])


@pytest.mark.parametrize(
    "relaxation", [Categorical(), BinaryGates("all"), *map(StraightThroughGumbel, (0.1, 1.0, 10.0))]
)
def test_options_are_drawn_with_their_probabilities(relaxation: Relaxation) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(int(relaxation(SHARP, progress=0, generator=generator)["a"].weights.argmax()) for _ in range(4000))
    # A right sampler is rejected at this level once in a thousand seeds; the seed is fixed.
    assert chisquare([counts[i] for i in range(3)], [2800, 800, 400]).pvalue > 1e-3


@pytest.mark.parametrize("tau", [0.03, 0.3, 1.0, 5.0])
def test_the_largest_of_a_concrete_sample_has_its_probability_at_any_temperature(tau: float) -> None:
    columns = {"a": nn.Parameter(SHARP["a"].detach()[:, None].expand(3, 100_000))}  # as many draws at once
    counts = torch.bincount(drawn(Concrete(tau), columns).weights.argmax(0), minlength=3)
    assert chisquare(counts.tolist(), [70_000, 20_000, 10_000]).pvalue > 1e-3  # as above


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.search.relaxations.gumbel", lambda like, generator: torch.zeros_like(like))


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_without_noise_a_concrete_sample_is_the_tempered_softmax(tau: float) -> None:
    weights = drawn(Concrete(tau), SHARP).weights
    torch.testing.assert_close(weights, torch.softmax(SHARP["a"] / tau, 0), rtol=1e-14, atol=0)  # some roundings


@pytest.mark.usefixtures("without_noise")
def test_without_noise_snas_begins_with_the_forward_pass_of_darts() -> None:
    found = []
    for name in ("snas", "darts"):
        step = toy_step(create_recipe(name), num_layers=2, progress=0.0)
        for logit in step.state.logits.values():
            logit.data = logit.data.double()
        gates = step.draw(step.recipe.relaxation)
        found.append(step.state.supernet.double()(step.weight_batch[0].double(), gates))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)  # float64: roundings through a few layers


def test_uniform_paths_ignore_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = Counter(UniformPath()(SHARP, progress=0, generator=generator)["a"].active[0] for _ in range(3000))
    assert chisquare([counts[i] for i in range(3)], [1000] * 3).pvalue > 1e-3
    assert UniformPath().probabilities(SHARP["a"], progress=0.0).tolist() == pytest.approx([1 / 3] * 3)


def test_softmax_gradient_and_temperature() -> None:
    logits = {"a": nn.Parameter(torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))}
    w = torch.softmax(logits["a"].detach(), 0)
    torch.testing.assert_close(gradient(Softmax(), logits, 0), w * (SLOPES - (w * SLOPES).sum()))
    assert torch.equal(drawn(Softmax(tau=1.0), logits).weights, drawn(Softmax(), logits).weights)
    assert float(drawn(Softmax(tau=1e-3), logits).weights.detach().max()) == pytest.approx(1.0)
    assert drawn(Softmax(tau=1e6), logits).weights.detach().tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_expected_latency_is_that_of_the_tempered_mixture() -> None:
    relaxation, found = Softmax(tau=Linear(2.0, 0.5)), []
    for progress in (0.0, 1.0):
        step = toy_step(replace(create_recipe("darts"), relaxation=relaxation), progress=progress)
        context = step.context(step.draw(relaxation))
        found.append(float(context.expected_ms.detach()))
        assert found[-1] == pytest.approx(float(context.sampled_ms.detach()))
    assert found[0] != pytest.approx(found[1])


def test_sigmoid_options_do_not_compete() -> None:
    logits = {"a": nn.Parameter(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))}
    w = torch.sigmoid(logits["a"].detach())
    torch.testing.assert_close(gradient(Sigmoid(), logits, 0), w * (1 - w) * SLOPES)
    moved = {"a": nn.Parameter(torch.tensor([0.5, 3.0, 2.0], dtype=torch.float64))}
    assert torch.equal(drawn(Sigmoid(), moved).weights[[0, 2]], drawn(Sigmoid(), logits).weights[[0, 2]])
    assert float(Sigmoid().probabilities(logits["a"].detach(), progress=0.0).sum()) == pytest.approx(1.0)


def test_concrete_equals_finite_differences_with_the_noise_held() -> None:
    tau, eps, relaxation = 0.7, 1e-6, Concrete(0.7)
    logits = {"a": nn.Parameter(torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))}
    slopes = torch.arange(4, dtype=torch.float64)
    (found,) = torch.autograd.grad((drawn(relaxation, logits, 5).weights * slopes).sum(), [logits["a"]])
    for i in range(4):
        values = []
        for sign in (1, -1):
            shift = torch.zeros(4, dtype=torch.float64)
            shift[i] = sign * eps
            values.append(
                (drawn(relaxation, {"a": nn.Parameter(logits["a"] + shift)}, 5).weights.detach() * slopes).sum()
            )
        assert float(found[i]) == pytest.approx(float((values[0] - values[1]) / (2 * eps)), rel=1e-6)
    noise = gumbel(logits["a"], torch.Generator().manual_seed(5))
    expected = torch.softmax((torch.log_softmax(logits["a"], 0) + noise) / tau, 0)
    torch.testing.assert_close(drawn(relaxation, logits, 5).weights, expected)


def test_a_cold_concrete_sample_is_nearly_one_hot() -> None:
    # SNAS ends at 0.03, where the gap between the two largest log-weights is seldom below 0.03 * log(99).
    largest = [float(drawn(Concrete(0.03), SHARP, seed).weights.detach().max()) for seed in range(300)]
    assert sum(value > 0.99 for value in largest) > 0.8 * 300


def test_binary_gates_with_all_probed_have_the_full_gradient_without_noise() -> None:
    p = torch.softmax(SHARP["a"].detach(), 0)
    expected = p * (SLOPES - (p * SLOPES).sum())
    torch.testing.assert_close(expected, torch.tensor([-0.35, 0.1, 0.25], dtype=torch.float64))
    for seed in range(5):
        torch.testing.assert_close(gradient(BinaryGates("all"), SHARP, seed), expected)


def test_binary_gates_with_two_paths_have_the_published_expectation() -> None:
    # The pair {a, b} is drawn without replacement: P = p_a p_b / (1 - p_a) + p_a p_b / (1 - p_b); its gradient is
    # q_a q_b (d_a - d_b) with opposite signs. Summed over the three pairs this is the vector below.
    p = torch.softmax(SHARP["a"].detach(), 0).tolist()
    expected = torch.zeros(3, dtype=torch.float64)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        chance = p[a] * p[b] / (1 - p[a]) + p[a] * p[b] / (1 - p[b])
        moved = p[a] * p[b] / (p[a] + p[b]) ** 2 * float(SLOPES[a] - SLOPES[b])
        expected[a] += chance * moved
        expected[b] -= chance * moved
    assert expected.tolist() == pytest.approx([-0.21298868, 0.08991770, 0.12307099])
    draws = torch.stack([gradient(BinaryGates("two"), SHARP, seed) for seed in range(4000)])
    error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()


def test_two_paths_of_two_options_are_exact() -> None:
    logits = {"a": nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))}
    gate = drawn(BinaryGates("two"), logits)
    (found,) = torch.autograd.grad(gate.weights, [logits["a"]], SLOPES[:2])
    p = torch.softmax(logits["a"].detach(), 0)
    torch.testing.assert_close(found, p * (SLOPES[:2] - (p * SLOPES[:2]).sum()))


def test_two_paths_leave_every_other_probability_alone() -> None:
    logits = {"a": nn.Parameter(torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))}
    relaxation = BinaryGates("two")
    gates = relaxation(logits, progress=0, generator=torch.Generator().manual_seed(0))
    before = {"a": logits["a"].detach().clone()}
    with torch.no_grad():
        logits["a"] += torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    relaxation.settle(logits, gates, before)
    old, new = (torch.softmax(values, 0) for values in (before["a"], logits["a"].detach()))
    pair = [*gates["a"].active, *gates["a"].probed]
    others = [k for k in range(7) if k not in pair]
    torch.testing.assert_close(new[others], old[others], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new[pair].sum(), old[pair].sum(), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(new[pair], old[pair])


def test_the_pair_shares_expected_latency() -> None:
    gate = drawn(BinaryGates("two"), SHARP, 1)
    pair = [*gate.active, *gate.probed]
    p = torch.softmax(SHARP["a"].detach(), 0)
    assert gate.probabilities is not None
    torch.testing.assert_close(gate.probabilities[pair].detach(), p[pair] / p[pair].sum())
    assert float(gate.probabilities.detach().sum()) == pytest.approx(1.0)


def test_batch_norm_silences_a_gradient_through_the_one_option_that_runs() -> None:
    """Its scale is taken away again; what another option would do instead is still heard."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixed = MixedOp([nn.Conv2d(3, 4, 1) for _ in range(3)]).double()
        after = nn.Sequential(nn.BatchNorm2d(4, eps=1e-20), nn.Flatten(), nn.Linear(4 * 25, 1)).double()
        images = torch.randn(8, 3, 5, 5, dtype=torch.float64)

    def slopes(relaxation: Relaxation) -> Tensor:
        gate = drawn(relaxation, SHARP)
        weights = gate.weights.detach().requires_grad_()
        loss = after(mixed(images, replace(gate, weights=weights))).square().mean()
        (of_gate,) = torch.autograd.grad(loss, [weights])
        (found,) = torch.autograd.grad(gate.weights, [SHARP["a"]], of_gate)
        return found.abs().max()

    assert slopes(StraightThroughGumbel(1.0)) < 1e-12
    assert slopes(BinaryGates("two")) > 1e-3


def test_categorical_knows_the_log_probability_of_its_draw() -> None:
    gate = drawn(Categorical(), SHARP, 0)
    assert gate.log_prob is not None
    expected = torch.log_softmax(SHARP["a"].detach(), 0)[gate.active[0]]
    assert float(gate.log_prob.detach()) == pytest.approx(float(expected))
    assert gate.log_prob.requires_grad
    assert not gate.weights.requires_grad
