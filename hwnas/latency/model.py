"""Latency of whole networks, predicted from a table and whole networks measured with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import ArchitectureError, MissingChoiceError, UsageError
from hwnas.latency.calibration import POOR_MAPE, Affine, Array, PredictionError, held_out, measured_networks
from hwnas.latency.kernels import Entries
from hwnas.latency.posterior import regress
from hwnas.latency.table import LatencyTable
from hwnas.space import NONE, Architecture, OpSignature, SearchSpace, macs

if TYPE_CHECKING:
    from torch import Tensor


Indices = np.ndarray[Any, Any]
"""Option indices of shape ``(networks, choices)``, any integer type."""


@dataclass(frozen=True)
class Factor:
    """All layers that depend on the same choices, added up.

    Args:
        choices: Positions of the choices in the space.
        ms: Latency for every combination, one axis a choice.
    """

    choices: tuple[int, ...]
    ms: Array


@dataclass(frozen=True)
class LatencyModel:
    """``ms = overhead + sum over layers``, linear in the gates of every choice.

    Build one with ``from_table``, or with ``without_table`` and ``calibrate``. Predictions are in milliseconds for
    the batch size that was measured.

    Args:
        space: The space it predicts.
        layer_ms: Per layer, latency of every operator in the layer's order.
        overhead_ms: What a network costs beyond its layers; may be negative.
        error: Held-out error on measured networks; None without calibration.
        baselines: The same for a plain sum of entries, if there was a table, and for a fit to multiply-adds.
    """

    space: SearchSpace
    layer_ms: tuple[Array, ...]
    overhead_ms: float = 0.0
    error: PredictionError | None = None
    baselines: Mapping[str, PredictionError] | None = None

    @classmethod
    def from_table(cls, space: SearchSpace, table: LatencyTable) -> LatencyModel:
        """The model of a space from a table, calibrated if whole networks were measured with it.

        Raises:
            MissingSignatureError: The table lacks operators of the space.
        """
        table.require(space)
        layers = tuple(np.asarray([_entry_ms(s, table) for s in layer.signatures]) for layer in space.layers)
        record = table.calibrations.get(space.fingerprint)
        plain = cls(space, layers)
        return plain.calibrate(*measured_networks(record)) if record else plain

    @classmethod
    def counting(cls, space: SearchSpace, cost: Callable[[OpSignature], float]) -> LatencyModel:
        """Another cost in the place of milliseconds, which then limits and regularizes a search like latency.

        Args:
            space: With its operators.
            cost: Of one operator, such as ``hwnas.space.macs`` or ``hwnas.space.parameters``.

        Example:
            >>> from hwnas.space import parameters
            >>> from hwnas.testing.toys import toy_space
            >>> space = toy_space()
            >>> model = LatencyModel.counting(space, parameters)
            >>> smallest = space.architecture([2, 2, 2])
            >>> model.exact_ms(smallest) == sum(map(parameters, space.operators(smallest)))
            True
        """
        return cls(space, tuple(np.asarray([float(cost(s)) for s in layer.signatures]) for layer in space.layers))

    @classmethod
    def without_table(cls, space: SearchSpace) -> LatencyModel:
        """A model that knows nothing: it predicts NaN until it is calibrated.

        Example:
            >>> from hwnas.testing.toys import toy_space
            >>> space = toy_space()
            >>> networks = [space.indices(a) for a in space.distinct(12, seed=0)]
            >>> measured_ms = [5.0 - row.count(2) for row in networks]  # every skip saves 1 ms
            >>> model = LatencyModel.without_table(space).calibrate(networks, measured_ms)
            >>> round(model.exact_ms(space.architecture([2, 2, 2])), 2)
            2.0
        """
        return cls(space, tuple(np.zeros(len(layer.signatures)) for layer in space.layers), math.nan)

    def calibrate(self, architectures: Any, measured_ms: Any) -> LatencyModel:
        """Corrects the model by measured networks and states its held-out error.

        Few networks fit an overhead and a slope; where more tell, also how kinds of operators, similar operators
        and single operators deviate. Outliers lose weight. See ``hwnas.latency.posterior``.

        Without a table only differences between a layer's options can be known: its fastest counts 0 ms, the
        rest is overhead. With one, what a correction would push below 0 ms is overhead.

        Args:
            architectures: Option indices of shape ``(networks, choices)``, at least 3 networks.
            measured_ms: Their latencies, of shape ``(networks,)``.

        Returns:
            A calibrated model; this one is unchanged. Its ``error`` comes from cross-validation, in which every
            fit also chooses its own hyper-parameters; ``baselines`` are held out in the same way.

        Raises:
            ArchitectureError: An index is none of its choice's options.
            UsageError: Too few networks, or latencies that are not one positive number a network.
        """
        indices = self._checked(architectures)
        measured = _latencies(measured_ms, len(indices))
        entries = Entries(self.space, self.layer_ms)
        error = held_out(indices, measured, lambda some, ms: self._fitted(entries, some, ms).exact_ms_many)
        multiply_adds = LatencyModel.counting(self.space, macs).exact_ms_many(indices)
        baselines = {"fit to MACs": held_out(multiply_adds, measured, Affine.fit)}
        if self._knows:
            baselines = {"plain sum": PredictionError.between(self.exact_ms_many(indices), measured), **baselines}
        return replace(self._fitted(entries, indices, measured), error=error, baselines=baselines)

    @property
    def _knows(self) -> bool:
        """Whether it predicts at all, from a table or from earlier networks."""
        return not math.isnan(self.overhead_ms)

    def _fitted(self, entries: Entries, indices: Indices, measured: Array) -> LatencyModel:
        known = self.overhead_ms if self._knows else 0.0
        base = self.exact_ms_many(indices) if self._knows else np.zeros(len(measured))
        found = regress(entries.counts(indices), base, measured, entries.kernels)
        corrections = entries.each_layer(found.weights_ms)
        layers = [found.slope * ms + more for ms, more in zip(self.layer_ms, corrections, strict=True)]
        moved = [float(min(layer.min(), 0.0) if self._knows else layer.min()) for layer in layers]
        overhead = found.overhead_ms + found.slope * known + math.fsum(moved)
        return LatencyModel(self.space, tuple(layer - m for layer, m in zip(layers, moved, strict=True)), overhead)

    @property
    def poor(self) -> bool:
        """Whether predictions are too far off to search with, or their error is unknown."""
        return self.error is None or self.error.mape > POOR_MAPE

    @cached_property
    def fixed_ms(self) -> float:
        """Overhead plus the layers that depend on no choice."""
        fixed = [ms[0] for layer, ms in zip(self.space.layers, self.layer_ms, strict=True) if not layer.choices]
        return self.overhead_ms + math.fsum(fixed)

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The searched layers, grouped by the choices they depend on."""
        names, grouped = self.space.choice_names, dict[tuple[int, ...], Array]()
        for layer, ms in zip(self.space.layers, self.layer_ms, strict=True):
            if layer.choices:
                key = tuple(names.index(name) for name in layer.choices)
                shaped = ms.reshape([self.space.num_options[i] for i in key])
                grouped[key] = grouped[key] + shaped if key in grouped else shaped
        return tuple(Factor(key, ms) for key, ms in grouped.items())

    def exact_ms(self, architecture: Architecture) -> float:
        """Predicted latency of one network.

        What a cell does to an input of which it keeps no edge is counted, although the network does without it.

        Raises:
            ArchitectureError: It belongs to another space.
        """
        return float(self.exact_ms_many([self.space.indices(architecture)])[0])

    def exact_ms_many(self, indices: Any) -> Array:
        """Predicted latency of many networks.

        Args:
            indices: Option indices, integers of shape ``(networks, choices)``.

        Returns:
            Milliseconds of shape ``(networks,)``.

        Raises:
            ArchitectureError: The shape is another, or an index is none of its choice's options.
        """
        rows = self._checked(indices)
        total = np.full(len(rows), self.fixed_ms)
        for start in range(0, len(rows), 8192):  # so many rows stay in the cache
            columns = np.ascontiguousarray(rows[start : start + 8192].T, dtype=np.intp)
            part = total[start : start + 8192]
            for factor in self.factors:
                first, *others = factor.choices
                flat = columns[first]
                for choice in others:
                    flat = flat * self.space.num_options[choice] + columns[choice]
                part += factor.ms.take(flat, mode="clip")  # checked above; clipping is the fastest mode
        return total

    def _checked(self, indices: Any) -> Indices:
        rows, width = _array(indices), len(self.space.choices)
        if rows.ndim != 2 or rows.shape[1] != width or (rows.size and rows.dtype.kind not in "iu"):
            raise ArchitectureError(
                f"option indices of shape {rows.shape} and type {rows.dtype} given; expected integers of shape "
                f"(networks, {width}) for space '{self.space.name}'. Give one row a network, one column a choice."
            )
        if rows.size:
            limits = np.asarray(self.space.num_options)
            beyond = np.flatnonzero((rows.min(axis=0) < 0) | (rows.max(axis=0) >= limits))
            if len(beyond):
                column, choice = rows[:, beyond[0]], self.space.choices[beyond[0]]
                wrong = column[(column < 0) | (column >= limits[beyond[0]])][0]
                raise ArchitectureError(
                    f"choice '{choice.name}' has no option number {wrong}; expected 0 to {len(choice.options) - 1} "
                    f"({', '.join(choice.options)}). Check that columns follow the choices of '{self.space.name}'."
                )
        return rows

    def expected_ms(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Latency of the network, averaged over the options that each choice's weights favour.

        Linear in each choice's weights; equals ``exact_ms`` when all are one-hot, and the mean over all
        architectures when they are independent probabilities.

        Args:
            weights: Choice name -> weights of shape ``(num_options,)``; need not sum to one.

        Returns:
            Scalar in milliseconds, on the weights' device, differentiable in them.

        Raises:
            MissingChoiceError: A choice has no weights.

        Source:
            FBNet, arXiv 1812.03443, section 3.2; ProxylessNAS, arXiv 1812.00332, section 3.3.1.
            Differs: a skipped layer counts its measured cost, not zero.
        """
        import torch

        missing = [name for name in self.space.choice_names if name not in weights]
        if missing:
            raise MissingChoiceError(
                f"choice '{missing[0]}' has no weights; given: {', '.join(weights) or 'none'}. "
                "Pass weights for every choice of the space."
            )
        ordered = [weights[name] for name in self.space.choice_names]
        total = torch.tensor(self.fixed_ms, dtype=torch.float64)
        for factor in self.factors:
            cost = torch.as_tensor(factor.ms)
            for position in factor.choices:
                each = ordered[position]
                cost = torch.tensordot(each, cost.to(each), dims=([0], [0]))
            total = total.to(cost.device) + cost
        return total

    def layers_ms(self, architecture: Architecture) -> list[tuple[str, float]]:
        """Name and predicted share of every layer, the overhead last; they add up to ``exact_ms``."""
        chosen = dict(zip(self.space.choice_names, self.space.indices(architecture), strict=True))
        shares = [
            (layer.name, float(ms[self.space.row(layer, chosen)]))
            for layer, ms in zip(self.space.layers, self.layer_ms, strict=True)
        ]
        return [*shares, ("overhead", self.overhead_ms)]


def _entry_ms(signature: OpSignature, table: LatencyTable) -> float:
    """What a layer adds to a network, from which edges of ``none`` are left out."""
    return 0.0 if signature.op == NONE else table.entries[signature].ms


def _array(values: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise UsageError(f"not an array: {error}. Expected rows of equal length; give numbers only.") from error


def _latencies(values: Any, num_networks: int) -> Array:
    measured = _array(values)
    if measured.shape != (num_networks,) or measured.dtype.kind not in "iuf":
        raise UsageError(
            f"latencies of shape {measured.shape} and type {measured.dtype} given for {num_networks} networks; "
            f"expected numbers of shape ({num_networks},). Give one latency in milliseconds for every network."
        )
    bad = np.flatnonzero(~(np.isfinite(measured) & (measured > 0)))
    if len(bad):
        raise UsageError(
            f"network number {bad[0]} was measured at {measured[bad[0]]:g} ms; expected a positive number. "
            "Leave out measurements that failed."
        )
    return measured.astype(np.float64)
