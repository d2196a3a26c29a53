"""Small latency models whose networks can all be listed: a chain, layers of several choices, and a depth."""

from __future__ import annotations

import itertools

import numpy as np

from hwnas.latency.model import LatencyModel
from hwnas.space import Choice, LayerSpec, OpSignature, SearchSpace, macs
from hwnas.testing.toys import analytic_ms, toy_space


def analytic_model(space: SearchSpace) -> LatencyModel:
    """Sums the formula of the toy table over the layers of any space."""
    return LatencyModel(space, tuple(np.array([analytic_ms(s) for s in layer.signatures]) for layer in space.layers))


def chain_model(*, num_layers: int = 5, seed: int = 0) -> LatencyModel:
    """A chain of three options a layer with random latencies from 0.1 to 2 ms."""
    space, rng = toy_space(num_layers=num_layers), np.random.default_rng(seed)
    return LatencyModel(space, tuple(rng.uniform(0.1, 2.0, len(layer.signatures)) for layer in space.layers))


def coupled_model() -> LatencyModel:
    """Three widths and two kernels; layers depend on up to three choices together; 6 ** 3 networks."""
    widths, kernels = (8, 16, 24), (1, 3)
    choices, layers = [], []
    for i in range(3):
        choices += [Choice(f"width{i}", tuple(map(str, widths))), Choice(f"kernel{i}", tuple(map(str, kernels)))]
        sources = widths if i else (3,)
        operators = itertools.product(sources, widths, kernels)
        signatures = tuple(OpSignature.create("conv", (c, 8, 8), d, k=k) for c, d, k in operators)
        depends = (f"width{i}", f"kernel{i}")
        layers.append(LayerSpec(f"layer{i}", signatures, (f"width{i - 1}", *depends) if i else depends))
    space = SearchSpace("coupled", (3, 8, 8), 10, tuple(choices), tuple(layers))
    return LatencyModel(space, tuple(np.array([0.1 + macs(s) / 1e5 for s in each.signatures]) for each in layers))


def depth_model() -> LatencyModel:
    """A depth of one or two layers, and a kernel of the second that means nothing where there is none: 3 networks."""
    shape = (8, 8, 8)
    stem = OpSignature.create("conv", (3, 8, 8), 8, k=3)
    second = [OpSignature.create("conv", shape, 8, k=k) for k in (3, 5)]
    skip = OpSignature.create("skip", shape, 8)
    layers = (LayerSpec("stem", (stem,)), LayerSpec("second", (skip, skip, *second), ("depth", "kernel")))
    space = SearchSpace("depth", (3, 8, 8), 10, (Choice("depth", ("1", "2")), Choice("kernel", ("3", "5"))), layers)
    return analytic_model(space)
