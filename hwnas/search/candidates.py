"""What a relaxation does in a space: only some options are searched, and edges into a node may have weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hwnas.search.protocols import Candidates, Logits, Relaxation
from hwnas.space import SearchSpace
from hwnas.supernet.gates import Gate, Gates


@dataclass(frozen=True)
class Narrowed:
    """A relaxation that sees the candidates of every choice; other options never run and have probability zero.

    Logits named like a node are those of its edges, weighed against one another by a softmax. Such a weight multiplies
    what comes along its edge, and the probability of all options but ``none``, which has the rest. Where options do not
    compete, a choice whose ``none`` is not searched has any of its options with the probability ``kept`` of the
    relaxation, and ``none`` has the rest; so probabilities always add up to one.

    Args:
        relaxation: Sees logits of shape ``(num_candidates,)``.
        candidates: What is searched.
        nodes: Node name -> choice name of every edge -> number of its option ``none``.
        idle: Choice name -> number of its option ``none``, where the space does not search it.

    Source:
        Weights of edges: PC-DARTS, arXiv 1907.05737, section 3.3, which derives by the same products.
    """

    relaxation: Relaxation
    candidates: Candidates
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    idle: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def to(cls, space: SearchSpace, relaxation: Relaxation, candidates: Candidates) -> Narrowed:
        """What a relaxation does in that space."""
        return cls(relaxation.fit(space, candidates), candidates, space.edges, space.idle)

    def gates(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """Gates over all options, of logits over all options; and of every node whose edges have weights."""
        found = self.relaxation(self.narrow(logits), progress=progress, generator=generator)
        gates = {name: self._widened(name, gate, logits[name]) for name, gate in found.items()}
        for node, weights in self._edges(logits).items():
            gates[node] = Gate(weights, tuple(range(len(weights))))
        return gates

    def probabilities(self, logits: Mapping[str, Tensor], *, progress: float) -> dict[str, Tensor]:
        """Probability of every option, shape ``(num_options,)``, differentiable."""
        return self.along_edges(self.within(logits, progress=progress), self._edges(logits))

    def within(self, logits: Mapping[str, Tensor], *, progress: float) -> dict[str, Tensor]:
        """The same without weights of edges: how options of one choice compare."""
        found = {}
        for name, logit in self.narrow(logits).items():
            p = self._spread(name, self.relaxation.probabilities(logit, progress=progress), logits[name])
            kept = self.relaxation.kept(logit, progress=progress)
            if kept is not None and name in self.idle and self.idle[name] not in self.candidates.get(name, ()):
                p = _thinned(p, kept, self.idle[name])
            found[name] = p
        return found

    def along_edges(self, found: Mapping[str, Tensor], edges: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Probabilities times the weights of their edges; what is lost goes to ``none``.

        Args:
            found: Choice name -> probabilities of its options; choices may be missing.
            edges: Node name -> weights of its edges; nodes may be missing.
        """
        weighted = dict(found)
        for node, weights in edges.items():
            for (choice, idle), weight in zip(self.nodes[node].items(), weights, strict=True):
                if choice in found:
                    weighted[choice] = _thinned(found[choice], weight, idle)
        return weighted

    @torch.no_grad()
    def settle(self, logits: Logits, gates: Gates, before: dict[str, Tensor]) -> None:
        """See ``Relaxation``."""
        narrow = self.narrow(logits)
        local = {name: self._local(name, gates[name]) for name in narrow}
        self.relaxation.settle(narrow, local, self.narrow(before))
        for name, logit in narrow.items():
            if name in self.candidates:
                logits[name][list(self.candidates[name])] = logit

    def narrow(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of every choice what belongs to its candidates; of nodes nothing."""
        return {
            name: x[list(self.candidates[name])] if name in self.candidates else x
            for name, x in values.items()
            if name not in self.nodes
        }

    def _edges(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {node: torch.softmax(logits[node], 0) for node in self.nodes if node in logits}

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


def _thinned(probabilities: Tensor, kept: Tensor, idle: int) -> Tensor:
    """So much of the probabilities, and the rest to ``none``."""
    lost = torch.zeros_like(probabilities).index_fill(0, torch.tensor(idle), 1.0)
    return kept * probabilities + (1 - kept) * lost
