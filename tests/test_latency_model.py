"""Predicted latency: exact, expected and enumerated figures agree; calibration and the exact programme."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwnas.errors import InfeasibleBudgetError, MissingChoiceError, MissingSignatureError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms, rounded_up, solve
from hwnas.latency.calibration import Affine, PredictionError, calibration_record, held_out
from hwnas.latency.kernels import Entries
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import Choice, LayerSpec, OpSignature, SearchSpace, create_space, macs
from hwnas.supernet.gates import one_hot_gates
from hwnas.testing.toys import analytic_ms, toy_latency_model, toy_space, toy_table


def coupled_model() -> LatencyModel:
    """Two widths that a layer between them depends on together, with made-up latencies."""
    choices = (Choice("a", ("8", "16")), Choice("b", ("8", "16", "24")))
    one = tuple(OpSignature.create("conv", (3, 8, 8), c, k=3) for c in (8, 16))
    two = tuple(OpSignature.create("conv", (c, 8, 8), d, k=1) for c in (8, 16) for d in (8, 16, 24))
    space = SearchSpace(
        "coupled", (3, 8, 8), 10, choices, (LayerSpec("one", one, ("a",)), LayerSpec("two", two, ("a", "b")))
    )
    return LatencyModel(space, (np.array([1.0, 3.0]), np.array([5.0, 1.0, 2.0, 0.5, 4.0, 7.0])), overhead_ms=0.25)


def random_model(rng: np.random.Generator) -> LatencyModel:
    space = toy_space(num_layers=5)
    layers = tuple(rng.uniform(0.1, 2.0, len(layer.signatures)) for layer in space.layers)
    return LatencyModel(space, layers, overhead_ms=float(rng.uniform(-0.1, 0.5)))


def test_exact_ms_is_the_sum_of_the_table() -> None:
    space, model = toy_latency_model()
    for architecture in space:
        assert model.exact_ms(architecture) == pytest.approx(sum(map(analytic_ms, space.operators(architecture))))
        shares = model.layers_ms(architecture)
        assert [name for name, _ in shares] == [layer.name for layer in space.layers] + ["overhead"]
        assert sum(ms for _, ms in shares) == pytest.approx(model.exact_ms(architecture))


@pytest.mark.parametrize("model", [toy_latency_model()[1], coupled_model()], ids=["chain", "coupled"])
def test_expected_of_one_hot_is_exact(model: LatencyModel) -> None:
    for architecture in model.space:
        gates = one_hot_gates(model.space, architecture)
        found = model.expected_ms({name: gate.weights for name, gate in gates.items()})
        assert found.item() == pytest.approx(model.exact_ms(architecture), rel=1e-6)


@pytest.mark.parametrize("model", [toy_latency_model()[1], coupled_model()], ids=["chain", "coupled"])
def test_expectation_equals_enumeration_and_gradient_equals_finite_differences(model: LatencyModel) -> None:
    torch.manual_seed(0)
    logits = {c.name: torch.randn(len(c.options), dtype=torch.float64, requires_grad=True) for c in model.space.choices}

    def expected(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.expected_ms({name: torch.softmax(v, 0) for name, v in values.items()})

    p = {name: torch.softmax(v, 0).detach().numpy() for name, v in logits.items()}
    enumerated = 0.0
    for indices in itertools.product(*(range(n) for n in model.space.num_options)):
        weight = np.prod([p[name][i] for name, i in zip(model.space.choice_names, indices, strict=True)])
        enumerated += weight * model.exact_ms_many([indices])[0]
    total = expected(logits)
    assert total.item() == pytest.approx(enumerated, rel=1e-12)
    total.backward()
    step = 1e-6
    for name, logit in logits.items():
        for i in range(len(logit)):
            shifted = {k: v.detach().clone() for k, v in logits.items()}
            shifted[name][i] += step
            up = expected(shifted)
            shifted[name][i] -= 2 * step
            numeric = (up - expected(shifted)).item() / (2 * step)
            assert logit.grad is not None
            assert logit.grad[i].item() == pytest.approx(numeric, abs=1e-7)


def test_expected_latency_test_vector() -> None:
    # methods: p = [[.5,.3,.2],[.1,.1,.8]], F = [[1,2,4],[3,.5,2]]: E = 3.85 - here with 0 for the fixed part.
    space = toy_space(num_layers=2)
    layers = (np.zeros(1), np.array([1.0, 2.0, 4.0]), np.array([3.0, 0.5, 2.0]), np.zeros(1))
    model = LatencyModel(space, layers)
    p = {"layer1": torch.tensor([0.5, 0.3, 0.2]), "layer2": torch.tensor([0.1, 0.1, 0.8])}
    assert model.expected_ms(p).item() == pytest.approx(3.85)
    logits = torch.log(p["layer1"]).double().requires_grad_()
    model.expected_ms({"layer1": torch.softmax(logits, 0), "layer2": p["layer2"]}).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([-0.45, 0.03, 0.42], abs=1e-6)


def test_missing_gates_are_an_error() -> None:
    _, model = toy_latency_model()
    with pytest.raises(MissingChoiceError, match="choice 'layer2' has no weights; given: layer1"):
        model.expected_ms({"layer1": torch.ones(3)})


def test_missing_signature_is_an_error_and_never_a_default() -> None:
    space = toy_space()
    entries = dict(toy_table(space).entries)
    lost = next(s for s in entries if s.op == "skip")
    del entries[lost]
    with pytest.raises(MissingSignatureError, match=r"lacks 1 of 5 signatures of space 'toy' \(first: skip"):
        LatencyModel.from_table(space, LatencyTable(toy_table(space).environment, entries))


def test_calibration_recovers_an_affine_device_and_reports_no_error() -> None:
    space = create_space("tiny-mbconv")
    table = toy_table(space)
    architectures = space.distinct(12, seed=0)
    plain = LatencyModel.from_table(space, table)
    measured = [0.8 * plain.exact_ms(a) + 0.3 for a in architectures]
    record = calibration_record(space, list(zip(architectures, measured, strict=True)))
    model = LatencyModel.from_table(space, LatencyTable(table.environment, table.entries, {space.fingerprint: record}))
    assert model.error is not None
    assert model.error.mape < 1e-6  # priors on slope and overhead weigh 1e-5 squared (the least noise) against 1
    assert model.baselines is not None
    assert model.baselines["plain sum"].mape > 1
    unseen = space.random(random.Random(99))
    assert model.exact_ms(unseen) == pytest.approx(0.8 * plain.exact_ms(unseen) + 0.3)
    assert not model.poor


def test_held_out_error_is_not_the_error_on_the_fitted_networks() -> None:
    # Seven networks on a line and one half as slow again: the others' fit misses it by its whole deviation.
    sums = np.arange(1.0, 9.0)
    measured = np.where(sums == 8, 1.5 * sums, sums)
    fitted = PredictionError.between(Affine.fit(sums, measured)(sums), measured)
    figures = held_out(sums, measured, Affine.fit)
    assert figures.mape > fitted.mape
    assert figures.mape >= 100 / 3 / 8
    assert figures.num_networks == 8
    with pytest.raises(UsageError, match="at least 3"):
        held_out(sums[:2], measured[:2], Affine.fit)


def test_error_figures() -> None:
    error = PredictionError.between(np.array([1.04, 1.8, 3.0]), np.array([1.0, 2.0, 3.0]))
    # Relative errors +4 %, -10 %, 0: mean absolute 14/3, mean signed -2.
    assert error.mape == pytest.approx(14 / 3)
    assert error.bias == pytest.approx(-2)
    assert (error.within_5, error.spearman) == (pytest.approx(2 / 3), pytest.approx(1.0))


def test_a_slope_that_is_not_positive_falls_back_to_a_scale() -> None:
    fit = Affine.fit(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    assert fit.slope > 0
    assert fit.intercept == 0


@pytest.mark.parametrize("seed", range(5))
def test_programme_agrees_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = random_model(rng)
    scores = [rng.normal(size=n) for n in model.space.num_options]
    everything = np.array(list(itertools.product(*(range(n) for n in model.space.num_options))))
    latency = model.exact_ms_many(everything)
    score = sum(s[everything[:, i]] for i, s in enumerate(scores))
    low, high = feasible_range_ms(model)
    assert (low, high) == (pytest.approx(latency.min()), pytest.approx(latency.max()))
    for limit in np.quantile(latency, [0.02, 0.3, 0.8]):
        legal = np.flatnonzero(latency <= limit)
        best = legal[np.argsort(-score[legal])][:3]
        found = list(itertools.islice(solve(model, scores, max_ms=float(limit)), 3))
        assert found == [tuple(everything[i]) for i in best]
        floor = 0.95 * float(limit)
        band = legal[latency[legal] >= floor]
        top = next(solve(model, scores, max_ms=float(limit), min_ms=floor), None)
        assert top == (tuple(everything[band[np.argmax(score[band])]]) if len(band) else None)


def test_programme_handles_coupled_layers_and_ends() -> None:
    model = coupled_model()
    everything = list(itertools.product(range(2), range(3)))
    scores = [np.zeros(2), np.zeros(3)]
    assert sorted(solve(model, scores)) == everything
    latency = model.exact_ms_many(everything)
    assert feasible_range_ms(model) == (pytest.approx(latency.min()), pytest.approx(latency.max()))
    within = sorted(everything[i] for i in np.flatnonzero(latency <= 3.75))
    assert sorted(solve(model, scores, max_ms=3.75)) == within


def test_lana_example() -> None:
    # methods section 8.4, check 1: damage and latency of three layers with three options.
    damage = np.array([[0, 0.4, 1], [0, 0.3, 0.9], [0, 0.6, 0.7]])
    ms = np.array([[5.0, 3, 1], [4, 2.5, 1], [6, 3, 2]])
    model = LatencyModel(toy_space(), (np.zeros(1), *ms, np.zeros(1)))
    expected = {15: 0, 12: 0.6, 10: 1.0, 8: 1.4, 7: 1.7, 6: 2.0, 5: 2.5, 4: 2.6}
    for budget, optimum in expected.items():
        best = next(solve(model, -damage, max_ms=budget))
        assert sum(damage[i, k] for i, k in enumerate(best)) == pytest.approx(optimum)
    assert next(solve(model, -damage, max_ms=3.99), None) is None


def test_infeasible_budget_names_the_smallest_reachable() -> None:
    _, model = toy_latency_model()
    low, high = feasible_range_ms(model)
    with pytest.raises(InfeasibleBudgetError, match=f"smallest reachable latency is {rounded_up(low):.4g} ms"):
        Budget(model, low * 0.99)
    with pytest.raises(InfeasibleBudgetError, match=r"Is the target in seconds\?"):
        Budget(model, (low + high) / 2 / 1000)
    with pytest.raises(InfeasibleBudgetError):
        Budget(model, float("nan"))
    assert Budget(model, low).allows(low)


def test_a_limit_as_it_is_printed_is_not_below_the_latency() -> None:
    for ms in [0.0653408, 0.25, 1.0, 9999.5, *10 ** np.random.default_rng(0).uniform(-6, 6, 300)]:
        assert ms <= float(f"{rounded_up(ms):.4g}") <= ms * 1.0011


def test_a_table_as_a_data_frame() -> None:
    table = toy_table(toy_space())
    frame = table.frame().set_index("signature")
    assert len(frame) == len(table.entries)
    for signature, entry in table.entries.items():
        row = frame.loc[str(signature)]
        assert (row["ms"], row["op"], row["macs"]) == (entry.ms, signature.op, macs(signature))
    assert frame.groupby("op")["ms"].mean()["skip"] == pytest.approx(
        analytic_ms(OpSignature.parse("skip s1 8x4x4 -> 8x4x4"))
    )


def test_layers_that_never_differ_are_one_column_and_nothing_changes() -> None:
    space = create_space("nas-bench-201", resolution=16, num_cells=3, width=0.25)
    rng = np.random.default_rng(0)
    networks = [space.indices(a) for a in space.distinct(30, seed=0)]
    model = LatencyModel.from_table(space, toy_table(space))
    measured = model.exact_ms_many(networks) * rng.normal(1.5, 0.03, 30)
    # Entries that differ in the last bit keep their layers apart.
    apart = replace(model, layer_ms=tuple(ms * (1 + 1e-15 * k) for k, ms in enumerate(model.layer_ms, start=1)))
    one, other = Entries(space, model.layer_ms), Entries(space, apart.layer_ms)
    assert one.counts(np.array(networks)).shape[1] < other.counts(np.array(networks)).shape[1] / 2.5
    # The covariance of the networks is the same, kernel by kernel: a sum of layers has the covariance of its terms.
    for merged, single in zip(one.kernels, other.kernels, strict=True):
        few, many = (entries.counts(np.array(networks)) for entries in (one, other))
        np.testing.assert_allclose(few @ merged @ few.T, many @ single @ many.T, rtol=1e-9)
    found, expected = (each.calibrate(networks, measured) for each in (model, apart))
    unseen = [space.indices(a) for a in space.distinct(20, seed=1)]
    np.testing.assert_allclose(found.exact_ms_many(unseen), expected.exact_ms_many(unseen), rtol=1e-3)
    assert np.array_equal(found.layer_ms[1], found.layer_ms[7])  # edge 0 to 1 of the first two cells
