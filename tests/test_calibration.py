"""Whole networks from few measured ones, with or without a table: the regression, its error and odd input."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from hwnas.errors import ArchitectureError, UsageError
from hwnas.latency.calibration import LEAVE_ONE_OUT, Affine, Array, PredictionError, held_out
from hwnas.latency.kernels import Entries
from hwnas.latency.model import LatencyModel
from hwnas.latency.posterior import FREEDOM, _Evidence, regress
from hwnas.space import OpSignature, SearchSpace, create_space
from hwnas.testing.toys import analytic_ms, toy_latency_model, toy_space

FOREIGN = Path(__file__).parents[2] / "shared" / "data" / "latency-tables" / "fbnet_cifar100_networks.csv.gz"


def random_networks(space: SearchSpace, count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return np.stack([rng.integers(0, options, count) for options in space.num_options], axis=1)


def tabled(space: SearchSpace, ms: dict[OpSignature, float], overhead: float = 0.0) -> LatencyModel:
    return LatencyModel(space, tuple(np.array([ms[s] for s in layer.signatures]) for layer in space.layers), overhead)


def kind(signature: OpSignature) -> tuple[str, int, int]:
    return signature.op, signature.attribute("k"), signature.attribute("e")


def biased(space: SearchSpace, rng: np.random.Generator) -> tuple[LatencyModel, LatencyModel]:
    """What is true, and a table that is wrong by a factor for every kind of operator and a bit for every one."""
    factors = {k: np.exp(0.3 * rng.normal()) for k in dict.fromkeys(map(kind, space.signatures()))}
    ms = {s: analytic_ms(s) for s in space.signatures()}
    truth = {s: ms[s] * factors[kind(s)] * np.exp(0.02 * rng.normal()) for s in ms}
    return tabled(space, truth, 0.5), tabled(space, ms)


def mape(predicted: Array, measured: Array) -> float:
    return PredictionError.between(predicted, measured).mape


# --- the regression


def test_evidence_is_the_normal_density_and_its_gradient() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=(5, 3)) for _ in range(3)]
    known, *grams = (c @ c.T for c in columns)
    target, logs, rate = rng.normal(size=5), np.log([0.3, 0.2, 0.5]), 2.0
    # Three more networks that the columns say nothing about: normal with the noise alone, squares adding up to 0.7.
    evidence = _Evidence(known, np.array([g.ravel() for g in grams]), target, 0.7, 8, rate)
    sds = np.exp(logs)
    covariance = known + sds[0] ** 2 * grams[0] + sds[1] ** 2 * grams[1] + sds[2] ** 2 * np.eye(5)
    density = multivariate_normal(np.zeros(5), covariance).logpdf(target) - 0.5 * 0.7 / sds[2] ** 2 - 3 * logs[2]
    loss, gradient = evidence.loss(logs)
    assert loss == pytest.approx(-density - 2.5 * np.log(2 * np.pi) + rate * (sds[0] + sds[1]))
    assert gradient == pytest.approx(approx_fprime(logs, lambda x: evidence.loss(x)[0]), rel=1e-5)


@pytest.mark.parametrize("num_networks", [6, 40])
def test_posterior_is_the_closed_form(num_networks: int) -> None:
    # Given noise and scales, the posterior mean solves the ridge equations in the space of coefficients. Rebuilt here
    # with one coefficient for each operator and weights iterated to their fixed point, for fewer and for more
    # networks than operators.
    rng = np.random.default_rng(1)
    design = rng.integers(0, 4, (num_networks, 8)).astype(float)
    measured = (5 + design @ rng.uniform(0, 1, 8)) * (1 + 0.02 * rng.normal(size=num_networks))
    kernels = [np.eye(8), np.ones((8, 8)) + np.eye(8)]
    found = regress(design, np.zeros(num_networks), measured, kernels)
    typical, centred = np.median(measured), design - design.mean(axis=0)
    share = [(centred.T @ centred / num_networks * k).sum() for k in kernels]
    prior = sum(s**2 * typical**2 / v * k for s, v, k in zip(found.shares, share, kernels, strict=True))
    columns = np.column_stack([np.ones(num_networks), centred])
    precision = np.zeros((9, 9))
    precision[0, 0], precision[1:, 1:] = typical**-2, np.linalg.inv(prior)
    predicted, trust = np.full(num_networks, typical), np.ones(num_networks)
    for _ in range(200):
        sd = found.noise * predicted / np.sqrt(trust)
        spread = np.linalg.inv(columns.T @ (columns / sd[:, None] ** 2) + precision)
        mean = spread @ (columns.T @ (measured / sd**2))
        predicted = columns @ mean
        squared = (measured - predicted) ** 2 + ((columns @ spread) * columns).sum(axis=1)
        trust = (FREEDOM + 1) / (FREEDOM + squared / (predicted * found.noise) ** 2)
    # The regression ends when predictions move by less than a tenth of the noise.
    assert found.overhead_ms + design @ found.weights_ms == pytest.approx(predicted, rel=0.1 * found.noise)


def test_few_networks_fit_the_line_of_least_squares() -> None:
    # An affine device with 2 % noise: a dozen networks tell nothing about single operators, and say so.
    space, rng = create_space("tiny-mbconv"), np.random.default_rng(0)
    table = tabled(space, {s: analytic_ms(s) for s in space.signatures()})
    networks, others = random_networks(space, 12, rng), random_networks(space, 500, rng)
    sums = table.exact_ms_many(networks)
    measured = (0.7 * sums + 0.2) * (1 + 0.02 * rng.normal(size=12))
    line = Affine.fit(sums, measured)(table.exact_ms_many(others))
    # The line itself is off by about 2 % / sqrt(12) = 0.6 %.
    assert mape(table.calibrate(networks, measured).exact_ms_many(others), line) < 0.6


def test_more_networks_correct_the_table() -> None:
    space, rng = create_space("tiny-mbconv"), np.random.default_rng(0)
    truth, table = biased(space, rng)
    networks, others = random_networks(space, 60, rng), random_networks(space, 500, rng)
    measured = truth.exact_ms_many(networks) * (1 + 0.01 * rng.normal(size=60))
    calibrated = table.calibrate(networks, measured)
    line = Affine.fit(table.exact_ms_many(networks), measured)
    expected = truth.exact_ms_many(others)
    assert calibrated.error is not None
    assert calibrated.baselines is not None
    assert set(calibrated.baselines) == {"plain sum", "fit to MACs"}
    assert mape(calibrated.exact_ms_many(others), expected) < mape(line(table.exact_ms_many(others)), expected) / 3
    assert calibrated.error.mape < min(e.mape for e in calibrated.baselines.values())


def test_without_a_table_an_additive_truth_is_found() -> None:
    # Least squares with p free differences and noise s is off by s sqrt(p / n): 0.5 % sqrt(22 / 300) = 0.14 %.
    space, rng = create_space("tiny-mbconv"), np.random.default_rng(0)
    truth = LatencyModel(space, tuple(rng.uniform(0.1, 1.0, len(layer.signatures)) for layer in space.layers), 2.0)
    networks, others = random_networks(space, 300, rng), random_networks(space, 500, rng)
    measured = truth.exact_ms_many(networks) * (1 + 0.005 * rng.normal(size=300))
    model = LatencyModel.without_table(space)
    assert np.isnan(model.exact_ms_many(others)).all()
    model = model.calibrate(networks, measured)
    assert mape(model.exact_ms_many(others), truth.exact_ms_many(others)) < 0.2
    assert model.baselines is not None
    assert set(model.baselines) == {"fit to MACs"}
    assert all(layer.min() == 0 for layer in model.layer_ms)


@pytest.mark.parametrize("with_table", [True, False])
def test_one_gross_outlier_hardly_matters(with_table: bool) -> None:
    space, rng = create_space("tiny-mbconv"), np.random.default_rng(0)
    truth, table = biased(space, rng)
    model = table if with_table else LatencyModel.without_table(space)
    networks, others = random_networks(space, 40, rng), random_networks(space, 500, rng)
    measured = truth.exact_ms_many(networks) * (1 + 0.01 * rng.normal(size=40))
    clean = model.calibrate(networks, measured).exact_ms_many(others)
    measured[7] *= 20
    assert mape(model.calibrate(networks, measured).exact_ms_many(others), clean) < 1  # the noise


@pytest.mark.parametrize("with_table", [True, False])
def test_reported_error_is_the_error_on_other_networks(with_table: bool) -> None:
    # 30 absolute errors have a mean that is uncertain by 0.75 / sqrt(30) = 14 %; over six devices, 6 %, so that a
    # fifth is three times what chance does.
    space, reported, true = create_space("tiny-mbconv"), [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        truth, table = biased(space, rng)
        model = table if with_table else LatencyModel.without_table(space)
        networks = random_networks(space, 530, rng)
        measured = truth.exact_ms_many(networks) * (1 + 0.02 * rng.normal(size=530))
        calibrated = model.calibrate(networks[:30], measured[:30])
        assert calibrated.error is not None
        reported.append(calibrated.error.mape)
        true.append(mape(calibrated.exact_ms_many(networks[30:]), measured[30:]))
    assert 0.8 < np.mean(reported) / np.mean(true) < 1.25


@pytest.mark.skipif(not FOREIGN.exists(), reason=f"needs measured networks in {FOREIGN}")
def test_foreign_networks_without_a_table() -> None:
    # benchmarks/foreign_networks.py prints all devices and sizes; the bars are the project's own.
    with gzip.open(FOREIGN, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    networks = np.array([[int(digit) for digit in row["arch"]] for row in rows])
    measured = np.array([float(row["gold_6240_ms"]) for row in rows])
    order = np.random.default_rng(0).permutation(5000)
    test, train = order[:1500], order[1500:1600]
    model = LatencyModel.without_table(create_space("fbnet-cifar")).calibrate(networks[train], measured[train])
    assert model.error is not None
    error = mape(model.exact_ms_many(networks[test]), measured[test])
    assert error < 2.8
    assert 0.8 < model.error.mape / error < 1.2


def test_columns_are_the_operators_of_the_layers() -> None:
    space, model = toy_latency_model()
    entries = Entries(space, model.layer_ms)
    # Stem; k3, k5 or skip in each of three layers; classifier.
    assert entries.counts(np.array([[0, 2, 1]])).tolist() == [[1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1]]
    for kernel in entries.kernels:
        assert kernel.shape == (11, 11)
        assert np.linalg.eigvalsh(kernel / np.trace(kernel)).min() > -1e-12


# --- cross-validation


def test_repeated_measurements_are_held_out_together() -> None:
    # A fit that remembers what it has seen is right about repeated networks only if they were not all held out.
    def remember(inputs: Array, measured: Array) -> Any:
        known = dict(zip(inputs.tolist(), measured.tolist(), strict=True))
        return lambda others: np.array([known.get(x, 2.0) for x in others.tolist()])

    repeated = np.repeat(np.arange(4.0), 3)
    assert held_out(repeated, np.ones(12), remember).mape == pytest.approx(100)  # 2 predicted, 1 measured
    assert held_out(np.zeros(3), np.ones(3), remember).mape == 0  # nothing else to fit to


@pytest.mark.parametrize(("num_networks", "num_fits"), [(LEAVE_ONE_OUT, LEAVE_ONE_OUT), (LEAVE_ONE_OUT + 1, 10)])
def test_every_network_is_predicted_once_by_a_fit_to_others(num_networks: int, num_fits: int) -> None:
    seen = []

    def fit(inputs: Array, measured: Array) -> Any:
        seen.append(len(inputs))
        return lambda others: np.where(np.isin(others, inputs), np.nan, others)

    inputs = np.arange(1.0, num_networks + 1)
    error = held_out(inputs, inputs, fit)
    assert (error.mape, error.num_networks) == (0, num_networks)
    assert len(seen) == num_fits
    assert sum(num_networks - count for count in seen) == num_networks


# --- odd input


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize(
    ("networks", "measured"),
    [
        ([[0, 0, 0], [1, 1, 1], [2, 2, 2]], [3, 1, 2]),
        ([[0, 1, 2]] * 4, [1.0, 1.1, 0.9, 1.0]),
        ([[0, 1, 2]] * 4, [1.0] * 4),
        ([[0, 1, 2], [2, 1, 0], [1, 1, 1], [0, 0, 0]], [2.0] * 4),
        ([[0, 0, 0], [1, 1, 1]] * 4, [1.0, 2.0] * 4),
        ([[0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 1]], [1e-9, 1e-9, 2e-9, 1e-9, 1e3]),
    ],
    ids=["three", "identical", "identical and constant", "constant", "collinear", "absurd"],
)
def test_odd_measurements_give_finite_predictions(networks: Any, measured: Any, with_table: bool) -> None:
    space, model = toy_latency_model()
    model = (model if with_table else LatencyModel.without_table(space)).calibrate(networks, measured)
    predicted = model.exact_ms_many([space.indices(a) for a in space])
    assert np.isfinite(predicted).all()
    assert min(layer.min() for layer in model.layer_ms) >= 0
    assert model.error is not None
    assert np.isfinite(list(model.error.to_dict().values())).all()


def test_rounded_latencies_still_tell() -> None:
    # Most latencies are the same after rounding; the rest are no outliers.
    space, rng = toy_space(num_layers=6), np.random.default_rng(0)
    model = tabled(space, {s: analytic_ms(s) for s in space.signatures()}, 1.0)
    networks = random_networks(space, 100, rng)
    ms = model.exact_ms_many(networks)
    step = np.ptp(ms) / 1.5
    rounded = np.round(ms / step) * step
    assert np.unique(rounded, return_counts=True)[1].max() > 50
    found = LatencyModel.without_table(space).calibrate(networks, rounded).exact_ms_many(networks)
    assert mape(found, ms) < mape(rounded, ms) / 2


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([1.0, 2.0], r"latencies of shape \(2,\) .* given for 3 networks; expected numbers of shape \(3,\)"),
        ([[1.0], [2.0], [3.0]], r"latencies of shape \(3, 1\)"),
        (["a", "b", "c"], "type <U1"),
        ([[1.0], [2.0, 3.0]], "rows of equal length"),
        ([1.0, 0.0, 2.0], "network number 1 was measured at 0 ms; expected a positive number. Leave out"),
        ([1.0, 2.0, -1.0], "network number 2 was measured at -1 ms"),
        ([float("nan"), 1.0, 2.0], "network number 0 was measured at nan ms"),
        ([1.0, float("inf"), 2.0], "network number 1 was measured at inf ms"),
    ],
)
def test_latencies_that_cannot_be_used(measured: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        toy_latency_model()[1].calibrate([[0, 0, 0], [1, 1, 1], [2, 2, 2]], measured)


def test_two_networks_are_too_few() -> None:
    with pytest.raises(UsageError, match=r"at least 3 measured networks; got 2\. Measure more"):
        toy_latency_model()[1].calibrate([[0, 0, 0], [1, 1, 1]], [1.0, 2.0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_every_integer_type_predicts_alike(dtype: str) -> None:
    space, model = toy_latency_model()
    every = [space.indices(a) for a in space]
    assert model.exact_ms_many(np.array(every, dtype=dtype)).tolist() == [model.exact_ms(a) for a in space]
    # More rows than are looked up at a time.
    many = np.tile(np.array(every, dtype=dtype), (400, 1))
    assert model.exact_ms_many(many).tolist() == [model.exact_ms(a) for a in space] * 400
    assert model.exact_ms_many(np.empty((0, 3), dtype=dtype)).shape == (0,)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 0, 0], [0, 3, 0]], r"choice 'layer2' has no option number 3; expected 0 to 2 \(k3_e2, k5_e2, skip\)"),
        ([[0, 0, -1]], "choice 'layer3' has no option number -1"),
        (np.array([[2**64 - 1, 0, 0]], dtype=np.uint64), "choice 'layer1' has no option number 18446744073709551615"),
        ([[0.0, 1.0, 2.0]], "type float64 given; expected integers"),
        ([0, 1, 2], r"shape \(3,\)"),
        ([[0, 1]], r"expected integers of shape \(networks, 3\) for space 'toy'"),
    ],
)
def test_indices_that_are_no_options(indices: Any, message: str) -> None:
    _, model = toy_latency_model()
    with pytest.raises(ArchitectureError, match=message):
        model.exact_ms_many(indices)
    with pytest.raises(ArchitectureError, match=message):
        model.calibrate(indices, [1.0])
