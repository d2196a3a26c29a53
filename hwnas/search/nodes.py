"""What probabilities of options mean where nodes keep only some of their edges."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from hwnas.space import NONE, SearchSpace

LEAST = 1e-6
"""Where ``none`` is certain or impossible, edges are weighed by this probability: equal ones are kept equally often."""


def among_networks(space: SearchSpace, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How often networks of the space have every option, if options are drawn from the weights.

    Drawn independently, and given that every node keeps as many edges as it must:
    ``P(S) ~ prod_{e in S} (1 - p_e(none)) / p_e(none)`` for a set ``S`` of edges. Without nodes the weights themselves.

    Args:
        space: With nodes or without.
        weights: Choice name -> weights of its options, ``(num_options,)``, not negative; those of an edge add up to any
            number above 0.

    Returns:
        Choice name -> probabilities for choices in nodes, weights for others; differentiable.

    Source:
        Ours: sums over all edges, as other tools have them, count the edges that a derived cell lacks.
    """
    found = dict(weights)
    for node in space.nodes:
        idle = [space.choice(name).options.index(NONE) for name in node.choices]
        edges = [weights[name] / weights[name].sum() for name in node.choices]
        lost = torch.stack([edge[none] for edge, none in zip(edges, idle, strict=True)]).clamp(LEAST, 1 - LEAST)
        subsets = [
            [i in kept for i in range(len(edges))] for kept in itertools.combinations(range(len(edges)), node.kept)
        ]
        kept = torch.tensor(subsets).to(lost)
        shares = torch.softmax(kept @ ((1 - lost) / lost).log(), 0) @ kept
        for name, edge, none, share in zip(node.choices, edges, idle, shares, strict=True):
            rest = edge.index_fill(0, torch.tensor(none, device=edge.device), 0.0)
            only = torch.zeros_like(edge).index_fill(0, torch.tensor(none, device=edge.device), 1.0)
            found[name] = share * rest / rest.sum().clamp_min(LEAST) + (1 - share) * only
    return found
