"""Which parameters move on which batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hwnas.search.objective import Objective
from hwnas.search.protocols import Batch, SearchState


@dataclass(frozen=True)
class Alternating:
    """One weight step on a training batch, then one architecture step on a batch of the other half.

    Args:
        warm_up: Share of the search, from its start, in which only weights move.
        every: Weight steps per architecture step.

    Source:
        First-order DARTS, arXiv 1806.09055, algorithm 1 with xi = 0; the order, weights first, is GDAS's;
        several weight steps per architecture step as in ProxylessNAS, arXiv 1812.00332, released code.
    """

    warm_up: float = 0.0
    every: int = 1

    def step(
        self, state: SearchState, weight_batch: Batch, arch_batch: Batch, objective: Objective
    ) -> dict[str, float]:
        """See ``UpdateScheme``."""
        figures = self._weight_step(state, weight_batch, objective)
        if objective.progress >= self.warm_up and state.step % self.every == 0:
            figures |= self._arch_step(state, arch_batch, objective)
        return figures

    def _weight_step(self, state: SearchState, batch: Batch, objective: Objective) -> dict[str, float]:
        state.weight_optimizer.zero_grad(set_to_none=True)
        loss, accuracy = objective.weight_loss(state, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(state.supernet.parameters(), objective.recipe.grad_clip)
        state.weight_optimizer.step()
        return {"weight_loss": float(loss.detach()), "weight_accuracy": accuracy}

    def _arch_step(self, state: SearchState, batch: Batch, objective: Objective) -> dict[str, float]:
        names = list(state.logits)
        loss, accuracy, context = objective.arch_loss(state, batch)
        gradients = torch.autograd.grad(loss, [state.logits[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            state.logits[name].grad = gradient
        state.arch_optimizer.step()
        for regularizer in objective.recipe.regularizers:
            regularizer.update(context)
        expected_ms = float(context.expected_ms.detach())
        return {"arch_loss": float(loss.detach()), "arch_accuracy": accuracy, "expected_ms": expected_ms}
