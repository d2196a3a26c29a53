"""What a supernet is told about one forward pass: which options run, with which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Gate:
    """The gate of one choice.

    Args:
        weights: Shape ``(num_options,)``; the graph through which architecture parameters get gradients.
        active: Options that are executed with a graph.
        probed: Options that run only inside the backward pass, without a graph, to obtain
            ``dL/d weight_k = <grad_y, option_k(x)>``. Their forward weight must be zero.
        hard: Exactly one option is active and its forward weight is exactly one, so that the product
            with it need not be computed.
    """

    weights: Tensor
    active: tuple[int, ...]
    probed: tuple[int, ...] = ()
    hard: bool = False


Gates = Mapping[str, Gate]
"""Choice name -> its gate."""


def one_hot_gates(space: SearchSpace, architecture: Architecture) -> dict[str, Gate]:
    """Gates that run exactly one architecture, without gradients for the gates.

    Raises:
        ArchitectureError: It belongs to another space.
    """
    gates = {}
    for choice, index in zip(space.choices, space.indices(architecture), strict=True):
        weights = torch.zeros(len(choice.options))
        weights[index] = 1.0
        gates[choice.name] = Gate(weights, (index,), hard=True)
    return gates


def weights_of(gates: Gates) -> dict[str, Tensor]:
    """The weights alone, as ``LatencyModel.expected_ms`` takes them."""
    return {name: gate.weights for name, gate in gates.items()}
