"""Which operators deviate alike: covariances between operators, computed from their signatures."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hwnas.latency.calibration import Array
from hwnas.space import OpSignature, SearchSpace, macs, parameters
from hwnas.space.cost import expanded_channels

OCTAVES = 3.0
"""Distance, in factors of two, over which operators of like cost resemble each other.

2 and 4 changed the error of networks measured elsewhere (``benchmarks/foreign_networks.py``) by at most a tenth.
"""


@dataclass(frozen=True)
class Entries:
    """Every operator of every layer, as columns of a regression; of layers that never differ one stands for all.

    Args:
        space: Their space.
        layer_ms: What a table says, layer by layer; zeros without a table.
    """

    space: SearchSpace
    layer_ms: Sequence[Array]

    @cached_property
    def alike(self) -> dict[Hashable, list[int]]:
        """Positions of layers that depend on the same choices, with the same operators and entries."""
        found: dict[Hashable, list[int]] = {}
        for position, (layer, ms) in enumerate(zip(self.space.layers, self.layer_ms, strict=True)):
            found.setdefault((layer.choices, layer.signatures, ms.tobytes()), []).append(position)
        return found

    def each_layer(self, columns: Array) -> list[Array]:
        """A value a column, given to the layers that it stands for in equal parts: one array a layer."""
        layers: list[Array] = [columns[:0]] * len(self.space.layers)
        start = 0
        for positions in self.alike.values():
            size = len(self.layer_ms[positions[0]])
            for position in positions:
                layers[position] = columns[start : start + size] / len(positions)
            start += size
        return layers

    def counts(self, indices: np.ndarray[Any, Any]) -> Array:
        """Which operators each network, given by its option indices, runs: ones and zeros, networks first.

        A column of several layers counts one, too: it is their sum that the regression finds.
        """
        chosen = dict(zip(self.space.choice_names, indices.T, strict=True))
        parts = []
        for positions in self.alike.values():
            layer = self.space.layers[positions[0]]
            rows = np.zeros(len(indices), dtype=np.intp)
            for name in layer.choices:
                rows = rows * len(self.space.choice(name).options) + chosen[name]
            parts.append(np.eye(len(layer.signatures))[rows])
        return np.concatenate(parts, axis=1)

    @cached_property
    def kernels(self) -> list[Array]:
        """Four ways to deviate from nothing, or from a table, and two more to be a multiple of a table.

        All operators of a kind by the same amount; those of similar cost, whatever their kind; those of a
        signature, in whatever layer; each in its layer. With a table, as multiples of its entries: those of a
        kind; those of a signature. A kind is the operator with its attributes, except whether it adds a residual.
        """
        first = [(positions[0], len(positions)) for positions in self.alike.values()]
        signatures = [s for position, _ in first for s in self.space.layers[position].signatures]
        times = np.concatenate([np.full(len(self.layer_ms[position]), float(count)) for position, count in first])
        cost = np.log2(1 + np.array([_costs(s) for s in signatures], dtype=np.float64))
        kind = _equal([(s.op, tuple(a for a in s.attributes if a[0] != "r")) for s in signatures])
        same = _equal(signatures)
        pairs = np.outer(times, times)  # covariance of two sums of so many
        kernels = [pairs * kind, pairs * _close(cost, OCTAVES), pairs * same, np.diag(times)]
        ms = np.concatenate([self.layer_ms[position] for position, _ in first])
        table = pairs * np.outer(ms, ms)
        return [*kernels, table * kind, table * same] if ms.any() else kernels


def _costs(signature: OpSignature) -> tuple[int, int, int, int]:
    """Multiply-adds, parameters, and values read and written: outside and, in an inverted residual, inside."""
    (channels, *size), (out_channels, *out_size) = signature.in_shape, signature.out_shape
    pixels, out_pixels = int(np.prod(size)), int(np.prod(out_size))
    outside = channels * pixels + out_channels * out_pixels
    return macs(signature), parameters(signature), outside, expanded_channels(signature) * (pixels + out_pixels)


def _equal(keys: Sequence[Hashable]) -> Array:
    position = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    numbers = np.array([position[key] for key in keys])
    return np.asarray(numbers[:, None] == numbers, dtype=np.float64)


def _close(points: Array, width: float) -> Array:
    """Squared-exponential covariance. Source: Rasmussen and Williams (2006), equation 4.9."""
    squared = ((points[:, None] - points) ** 2).sum(axis=-1)
    return np.asarray(np.exp(-squared / (2 * width**2)), dtype=np.float64)
