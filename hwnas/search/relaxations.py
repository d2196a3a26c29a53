"""Logits -> gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hwnas.search.protocols import Logits
from hwnas.search.schedules import Scalar, value_at
from hwnas.supernet.gates import Gate


@dataclass(frozen=True)
class StraightThroughGumbel:
    """One option runs; the gradient is that of the Gumbel-softmax sample it was the largest of.

    ``w = softmax((log p + G) / tau)``, ``i = argmax w``, gate ``= onehot(i) + w - stopgrad(w)``: forward
    exactly one-hot, one path in memory; ``dL/d logit_j = <g, o_i(x)> w_i (1[i=j] - w_j) / tau``.

    Args:
        tau: Temperature; may be a schedule.

    Source:
        GDAS, arXiv 1910.04465, equations 3 to 6, first code variant (gradient through the selected weight).
    """

    tau: Scalar

    def __call__(self, logits: Logits, *, progress: float, generator: torch.Generator) -> dict[str, Gate]:
        """See ``Relaxation``."""
        tau = value_at(self.tau, progress)
        gates = {}
        for name, logit in logits.items():
            soft = torch.softmax((torch.log_softmax(logit, 0) + gumbel(logit, generator)) / tau, 0)
            index = int(soft.argmax())
            hard = torch.zeros_like(soft)
            hard[index] = 1.0
            gates[name] = Gate(hard + (soft - soft.detach()), (index,), hard=True)
        return gates


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the same shape, always finite.

    ``-log(E)`` with ``E`` exponential, kept away from zero.
    """
    exponential = torch.empty(like.shape, dtype=torch.float64).exponential_(generator=generator)
    return -exponential.clamp_min(1e-12).log().to(like)
