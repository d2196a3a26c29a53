"""Whole-network latencies as a sum over operators: a Bayesian linear regression that learns its own shrinkage.

The model, with networks n, operators i, counts ``X[n, i]`` and ``base[n]`` what a table predicts (0 without one)::

    measured[n] = f[n] * (1 + noise * t[n])               t: Student t, 4 degrees of freedom
    f = overhead + slope * base + X w
    w ~ N(0, sum_j s[j]^2 K[j])                           K[j]: which operators deviate alike

Overhead and slope have wide priors, so few networks fit a line. Beyond it, every kernel ``K[j]`` says in what way
operators may deviate together, and its scale ``s[j]`` is the share it has in the differences between networks. Noise
and scales maximise the marginal likelihood, times an exponential prior on every ``s[j]`` that removes a kernel
unless the data pay for it. Networks with large residuals lose weight, as under Student-t noise.

Source:
    Marginal likelihood and its gradient: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006),
    equations 2.27, 5.8 and 5.9. Student-t noise by expectation-maximisation, and its 4 degrees of freedom: Lange,
    Little and Taylor, JASA 84 (1989), section 2. Exponential prior: Simpson et al., arXiv 1403.4630, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.latency.calibration import Array

FREEDOM = 4.0
"""Degrees of freedom of the noise; 2 to 8 changed errors in ``benchmarks/foreign_networks.py`` by less than a tenth."""

SHRINKAGE = 4.0
"""A kernel is expected to explain a quarter of the spread that a line leaves; 1 to 8 changed those errors by 2 %."""

LEAST_SD, MOST_SD = 1e-5, 1.0
"""Bounds of noise and scales, relative to the latency. The lower one keeps noise-free data solvable."""

ROUNDS = 10
"""Most alternations of scales and weights; they end when no prediction moves by a tenth of the noise."""


@dataclass(frozen=True)
class Posterior:
    """Posterior means of the model in this file's first lines.

    Args:
        overhead_ms: Of every network.
        slope: Of ``base``.
        weights_ms: One an operator, in addition to ``slope`` times what the table says.
        noise: Scale of the relative noise.
        shares: Scale of every kernel, relative to a typical latency.
    """

    overhead_ms: float
    slope: float
    weights_ms: Array
    noise: float
    shares: Array


@dataclass(frozen=True)
class _Data:
    """Networks as rows. ``fixed`` holds the overhead's and the slope's columns, their coefficients being N(0, 1)."""

    fixed: Array
    design: Array
    offset: Array
    measured: Array
    kernels: Sequence[Array] = ()
    rate: float = 0.0


@dataclass(frozen=True)
class _State:
    """Where the alternation stands.

    Args:
        predicted: Milliseconds, of every network.
        trust: The weight of every network.
        sds: Scales of the kernels, then the noise.
        fixed: Coefficients of overhead and slope.
        pull: Of the residuals on every column; the prior's covariance turns it into weights.
    """

    predicted: Array
    trust: Array
    sds: Array
    fixed: Array
    pull: Array


def regress(design: Array, base: Array, measured: Array, kernels: Sequence[Array]) -> Posterior:
    """Fits the model: first a robust line, which tells the spread left to explain, then everything.

    Args:
        design: Counts of every operator in every network, of shape ``(networks, operators)``.
        base: What a table predicts for the networks, in milliseconds; zeros if there is none.
        measured: Milliseconds, positive.
        kernels: Covariances of the operators, positive semi-definite, of any scale.
    """
    typical = float(np.median(measured))
    ratio = float(np.median(measured / base)) if np.all(base > 0) else 0.0
    offset = ratio * base
    # Only differences between networks tell about operators; what all share goes to the overhead. There are at most
    # as many as networks: the operators are replaced by the combinations that occur.
    centre = design.mean(axis=0)
    left, sizes, combinations = np.linalg.svd(design - centre, full_matrices=False)
    occur = sizes > 1e-9 * len(measured)
    combined, combinations = left[:, occur] * sizes[occur], combinations[occur]
    fixed = np.stack([np.full_like(measured, typical), offset], axis=1)
    line = _line(_Data(fixed, combined[:, :0], offset, measured))

    spread = float(line.sds[-1])
    crossed = [kernel @ combinations.T for kernel in kernels]
    projected = [combinations @ cross for cross in crossed]
    variances = [float((combined * (combined @ kernel)).sum()) / len(measured) for kernel in projected]
    scales = [typical**2 / variance if variance > 0 else 0.0 for variance in variances]
    scaled = [kernel * scale for kernel, scale in zip(projected, scales, strict=True)]
    start = replace(line, sds=np.full(len(kernels) + 1, spread / 2))
    found = _converge(_Data(fixed, combined, offset, measured, scaled, SHRINKAGE / spread), start)

    weights = np.zeros(design.shape[1])
    for sd, scale, cross in zip(found.sds, scales, crossed, strict=False):
        weights += sd**2 * scale * (cross @ found.pull)
    return Posterior(
        typical * float(found.fixed[0]) - float(centre @ weights),
        ratio * (1 + float(found.fixed[1])),
        weights,
        float(found.sds[-1]),
        found.sds[:-1],
    )


def _line(data: _Data) -> _State:
    """The fit without kernels; networks that are far off at the start hardly pull it."""
    start = data.offset if data.offset.any() else data.fixed[:, 0]
    residual = data.measured / start - 1
    # Not the median deviation: where most latencies are the same after rounding, it is zero.
    noise = np.maximum(np.minimum(np.abs(residual), MOST_SD).mean(), LEAST_SD)
    return _converge(data, _State(start, _trust(residual**2, noise), np.array([noise]), np.zeros(2), np.zeros(0)))


def _trust(squared: Array, noise: float) -> Array:
    """Expected precision of each network's noise, given its squared relative residual."""
    return (FREEDOM + 1) / (FREEDOM + squared / noise**2)


def _converge(data: _Data, state: _State) -> _State:
    for _ in range(ROUNDS):
        before = state.predicted
        state = _round(data, state)
        if np.abs(state.predicted / before - 1).max() < state.sds[-1] / 10:
            break
    return state


def _round(data: _Data, state: _State) -> _State:
    """Scales, then weights, then the trust in every network.

    Rows are divided by their noise, so that it has one scale, and rotated by QR, which leaves no more rows than
    columns: what many networks say beyond that is one sum of squares, ``rest``.
    """
    unit = state.predicted / np.sqrt(state.trust)
    num_fixed = data.fixed.shape[1]
    rotation, rows = np.linalg.qr(np.concatenate([data.fixed, data.design], axis=1) / unit[:, None])
    fixed, design = rows[:, :num_fixed], rows[:, num_fixed:]
    whitened = (data.measured - data.offset) / unit
    target = rotation.T @ whitened
    evidence = _Evidence(
        fixed @ fixed.T,
        np.array([(design @ kernel @ design.T).ravel() for kernel in data.kernels]).reshape(-1, len(target) ** 2),
        target,
        rest=max(float(whitened @ whitened - target @ target), 0.0),
        num_networks=len(data.measured),
        rate=data.rate,
    )
    sds = evidence.most_probable(state.sds)
    inverse, _ = evidence.solve(sds)
    dual = inverse @ target
    coefficients, pull = fixed.T @ dual, design.T @ dual
    predicted = data.offset + data.fixed @ coefficients
    for sd, kernel in zip(sds, data.kernels, strict=False):
        predicted += sd**2 * (data.design @ (kernel @ pull))
    predicted = np.maximum(predicted, 0.2 * np.median(data.measured))  # the noise is relative to it
    # Posterior covariance of the rotated rows: noise^2 (1 - noise^2 inverse); rotated back, its diagonal.
    shrunk = (rotation * (rotation - sds[-1] ** 2 * (rotation @ inverse))).sum(axis=1)
    variance = (sds[-1] * unit) ** 2 * shrunk
    trust = _trust(((data.measured - predicted) ** 2 + variance) / predicted**2, float(sds[-1]))
    return _State(predicted, trust, sds, coefficients, pull)


@dataclass(frozen=True)
class _Evidence:
    """Marginal likelihood of the scales: ``target ~ N(0, known + sum_j sds[j]^2 grams[j] + sds[-1]^2)``.

    Each of ``grams`` is a matrix, flattened.
    """

    known: Array
    grams: Array
    target: Array
    rest: float
    num_networks: int
    rate: float

    def solve(self, sds: Array) -> tuple[Array, float]:
        """Inverse and log-determinant of the covariance."""
        covariance = self.known + (sds[:-1] ** 2 @ self.grams).reshape(self.known.shape)
        covariance.flat[:: len(covariance) + 1] += sds[-1] ** 2
        return np.asarray(np.linalg.inv(covariance)), float(np.linalg.slogdet(covariance)[1])

    def loss(self, logs: Array) -> tuple[float, Array]:
        """Negative log posterior density of the scales' logarithms, and its gradient."""
        sds = np.exp(logs)
        noise = sds[-1]
        inverse, logdet = self.solve(sds)
        dual = inverse @ self.target
        spare = self.num_networks - len(self.target)
        rest = self.rest / noise**2
        prior = self.rate * sds[:-1]
        loss = 0.5 * (self.target @ dual + logdet + rest) + spare * logs[-1] + prior.sum()
        slack = inverse - np.outer(dual, dual)
        slopes = sds[:-1] ** 2 * (self.grams @ slack.ravel()) + prior
        return float(loss), np.append(slopes, noise**2 * np.trace(slack) + spare - rest)

    def most_probable(self, start: Array) -> Array:
        """The scales of least loss near ``start``."""
        from scipy.optimize import minimize  # half a second to import, so only where it is used

        bounds = [(np.log(LEAST_SD), np.log(MOST_SD))] * len(start)
        logs = np.clip(np.log(start), *bounds[0])
        found = minimize(self.loss, logs, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
        return np.asarray(np.exp(found.x), dtype=np.float64)
