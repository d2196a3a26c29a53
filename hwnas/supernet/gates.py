"""What a supernet is told about one forward pass: which options run, with which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
        added: The weights of options that do not run, which are zero, count as added to the output, so that each
            gets the sum of ``grad_y`` as its gradient. Only of a hard gate.
        probabilities: What expected latency weighs, shape ``(num_options,)``, differentiable; None for the
            relaxation's probabilities of the choice.
        log_prob: Log-probability of this draw, differentiable; None where the gate was not drawn.
    """

    weights: Tensor
    active: tuple[int, ...]
    probed: tuple[int, ...] = ()
    hard: bool = False
    added: bool = False
    probabilities: Tensor | None = None
    log_prob: Tensor | None = None


Gates = Mapping[str, Gate]
"""Choice name -> its gate."""


def one_hot_gates(space: SearchSpace, architecture: Architecture) -> dict[str, Gate]:
    """Gates that run exactly one architecture, without gradients for the gates.

    Raises:
        ArchitectureError: It belongs to another space.
    """
    chosen = zip(space.choices, space.indices(architecture), strict=True)
    return {choice.name: Gate(one_hot(index, len(choice.options)), (index,), hard=True) for choice, index in chosen}


def one_hot(index: int, num_options: int) -> Tensor:
    """Weights of a gate that runs one option."""
    weights = torch.zeros(num_options)
    weights[index] = 1.0
    return weights


def detached(gates: Gates, device: torch.device, *, requires_grad: bool = False) -> dict[str, Gate]:
    """The same gates on a device, their weights cut off from the logits.

    Args:
        gates: As a relaxation made them.
        device: Where the supernet is.
        requires_grad: Make leaves of the weights, so that a backward pass ends at them.
    """
    return {
        name: replace(gate, weights=gate.weights.detach().to(device).requires_grad_(requires_grad))
        for name, gate in gates.items()
    }
