"""Dropping options at random, in groups: those with weights apart from those without."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Candidates, Logits, Relaxation
from hwnas.space import SearchSpace, parameters
from hwnas.supernet.gates import Gate, Gates

Groups = dict[str, tuple[tuple[int, ...], ...]]
"""Choice name -> numbers of the candidates in every group."""


@dataclass(frozen=True)
class OpDropout(Relaxation):
    """Options are dropped at random, and the others weighted by a softmax among themselves.

    Each with probability ``p = rate ** (1 / n)`` in a group of ``n``, independently, given that not all of a group are
    dropped. Operators with weights and those without are two groups. Only logits of kept options move: those of dropped
    ones are shifted together, so that ``sum exp(a)`` of dropped ones keeps its ratio to that of kept ones.

    Args:
        rate: Chance that all of a group would be dropped, from 0 to below 1; 0 drops nothing.

    Attributes:
        groups: Of the candidates, which ``fit`` finds; all of a choice without any are one.

    Raises:
        UsageError: The rate is out of range.

    Source:
        DropNAS, IJCAI 2020, section 3: groups, softmax, shift; 3e-5, so that 0.074 of a group of four.
        Differs: an operator counts as one with weights if it has some wherever it is an option, so that a skip that
        strides, which is a convolution, remains in the group of skips; moments of the optimizer go on for all.
    """

    rate: float = 3e-5
    groups: Groups = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UsageError(f"OpDropout got rate={self.rate:g}; expected from 0 to below 1. Leave it out for 3e-5.")

    def fit(self, space: SearchSpace, candidates: Candidates) -> OpDropout:
        """With the groups of that space.

        Raises:
            UsageError: No edge of the space has a group of which one could be dropped.
        """
        groups, fitted = _groups(space, candidates), replace(self)
        if self.rate and not _drops(groups) and not _drops(_groups(space, space.candidates)):
            raise UsageError(
                f"nothing can be dropped in space '{space.name}': no choice has two candidates with weights, or two "
                "without, and one of a group always stays. Search it with the recipe snas or darts, or drop with a "
                "rate of 0."
            )
        fitted.groups.update(groups)
        return fitted

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """See ``Relaxation``."""
        gates = {}
        for name, logit in logits.items():
            groups = self.groups.get(name, (tuple(range(len(logit))),))
            kept = sorted(k for group in groups for k in self._kept(group, generator))
            weights = torch.zeros_like(logit).index_copy(0, torch.tensor(kept), torch.softmax(logit[kept], 0))
            gates[name] = Gate(weights, tuple(kept))
        return gates

    @torch.no_grad()
    def settle(self, logits: Logits, gates: Gates, before: dict[str, Tensor]) -> None:
        """Puts dropped logits where their share is what it was."""
        for name, gate in gates.items():
            kept = list(gate.active)
            dropped = [k for k in range(len(logits[name])) if k not in gate.active]
            if dropped:
                moved = logits[name][kept].logsumexp(0) - before[name][kept].logsumexp(0)
                logits[name][dropped] = before[name][dropped] + moved

    def _kept(self, group: tuple[int, ...], generator: torch.Generator) -> list[int]:
        if len(group) == 1:
            return list(group)
        dropped = self.rate ** (1 / len(group))
        while True:
            draws = torch.rand(len(group), dtype=torch.float64, generator=generator).tolist()
            if kept := [k for k, draw in zip(group, draws, strict=True) if draw >= dropped]:
                return kept


def _groups(space: SearchSpace, candidates: Candidates) -> Groups:
    free, groups = without_weights(space), {}
    for choice in space.choices:
        among = candidates.get(choice.name, tuple(range(len(choice.options))))
        rows = [[i for i, k in enumerate(among) if (choice.options[k] in free) == side] for side in (False, True)]
        groups[choice.name] = tuple(tuple(row) for row in rows if row)
    return groups


def _drops(groups: Groups) -> bool:
    return any(len(group) > 1 for some in groups.values() for group in some)


def without_weights(space: SearchSpace) -> set[str]:
    """Options that have no weights somewhere, whatever the choice: with the plain skip also that which strides.

    Args:
        space: Layers of several choices have no operator of one option, and do not count.
    """
    return {
        option
        for layer in space.layers
        if len(layer.choices) == 1
        for option, signature in zip(space.choice(layer.choices[0]).options, layer.signatures, strict=True)
        if not parameters(signature)
    }
