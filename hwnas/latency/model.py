"""Latency of whole networks, predicted from a table and whole networks measured with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.errors import MissingChoiceError
from hwnas.latency.calibration import POOR_MAPE, Affine, Array, PredictionError, held_out, measured_networks
from hwnas.latency.table import LatencyTable
from hwnas.space import Architecture, SearchSpace, macs

if TYPE_CHECKING:
    from torch import Tensor


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

    Build one with ``from_table``. Predictions are in milliseconds for the table's batch size.

    Args:
        space: The space it predicts.
        layer_ms: Per layer, latency of every operator in the layer's order.
        overhead_ms: What a network costs beyond its layers; may be negative.
        error: Held-out error on measured networks; None without calibration.
        baselines: The same for a plain sum of entries and for a fit to multiply-adds.
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
        layers = tuple(np.asarray([table.entries[s].ms for s in layer.signatures]) for layer in space.layers)
        record = table.calibrations.get(space.fingerprint)
        plain = cls(space, layers)
        return plain.calibrate(*measured_networks(record)) if record else plain

    def calibrate(self, architectures: Any, measured_ms: Any) -> LatencyModel:
        """Fits slope and overhead to measured networks and states the leave-one-out error.

        Args:
            architectures: Option indices of shape ``(networks, choices)``, at least 3 networks.
            measured_ms: Their latencies.

        Returns:
            A calibrated model; this one is unchanged.
        """
        measured = np.asarray(measured_ms, dtype=np.float64)
        indices = np.asarray(architectures, dtype=np.int64)
        sums = self.exact_ms_many(indices)
        flops = self._macs().exact_ms_many(indices)
        affine = Affine.fit(sums, measured)
        return replace(
            self,
            layer_ms=tuple(affine.slope * ms for ms in self.layer_ms),
            overhead_ms=affine.slope * self.overhead_ms + affine.intercept,
            error=held_out(sums, measured, Affine.fit),
            baselines={
                "plain sum": PredictionError.between(sums, measured),
                "fit to MACs": held_out(flops, measured, Affine.fit),
            },
        )

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
        """
        columns = np.asarray(indices, dtype=np.int64).T
        total = np.full(columns.shape[1], self.fixed_ms)
        for factor in self.factors:
            total += factor.ms[tuple(columns[i] for i in factor.choices)]
        return total

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

    def _macs(self) -> LatencyModel:
        layers = [np.asarray([macs(s) for s in layer.signatures], dtype=np.float64) for layer in self.space.layers]
        return LatencyModel(self.space, tuple(layers))
