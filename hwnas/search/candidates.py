"""Choices of which only some options are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hwnas.search.protocols import Logits, Relaxation
from hwnas.supernet.gates import Gate, Gates


@dataclass(frozen=True)
class Narrowed:
    """A relaxation that sees the candidates of every choice; other options never run and have probability zero.

    Args:
        relaxation: Sees logits of shape ``(num_candidates,)``.
        candidates: Choice name -> numbers of the options that are searched; of choices without a name here all are.
    """

    relaxation: Relaxation
    candidates: Mapping[str, tuple[int, ...]]

    def gates(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """Gates over all options, of logits over all options."""
        found = self.relaxation(self._narrow(logits), progress=progress, generator=generator)
        return {name: self._widened(name, gate, logits[name]) for name, gate in found.items()}

    def probabilities(self, logits: Mapping[str, Tensor], *, progress: float) -> dict[str, Tensor]:
        """Probability of every option, shape ``(num_options,)``, differentiable."""
        return {
            name: self._spread(name, self.relaxation.probabilities(logit, progress=progress), logits[name])
            for name, logit in self._narrow(logits).items()
        }

    @torch.no_grad()
    def settle(self, logits: Logits, gates: Gates, before: dict[str, Tensor]) -> None:
        """See ``Relaxation``."""
        narrow = self._narrow(logits)
        self.relaxation.settle(narrow, {n: self._local(n, g) for n, g in gates.items()}, self._narrow(before))
        for name, logit in narrow.items():
            if name in self.candidates:
                logits[name][list(self.candidates[name])] = logit

    def _narrow(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: x[list(self.candidates[n])] if n in self.candidates else x for n, x in logits.items()}

    def _spread(self, name: str, values: Tensor, like: Tensor) -> Tensor:
        if name not in self.candidates:
            return values
        return values.new_zeros(len(like)).index_copy(0, torch.tensor(self.candidates[name]), values)

    def _widened(self, name: str, gate: Gate, like: Tensor) -> Gate:
        if name not in self.candidates:
            return gate
        among, p = self.candidates[name], gate.probabilities
        return replace(
            gate,
            weights=self._spread(name, gate.weights, like),
            active=tuple(among[k] for k in gate.active),
            probed=tuple(among[k] for k in gate.probed),
            probabilities=None if p is None else self._spread(name, p, like),
        )

    def _local(self, name: str, gate: Gate) -> Gate:
        if name not in self.candidates:
            return gate
        among = self.candidates[name]
        return replace(gate, active=tuple(map(among.index, gate.active)), probed=tuple(map(among.index, gate.probed)))
