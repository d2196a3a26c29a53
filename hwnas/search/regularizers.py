"""Terms of the architecture loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hwnas.search.protocols import Context

MULTIPLIER = "latency_multiplier"


@dataclass(frozen=True)
class AdaptiveLatency:
    """``loss + multiplier * (E[latency] / max_ms - 1)`` with a multiplier that finds itself.

    The multiplier is that of the constraint ``E[latency] = max_ms``: after each architecture step
    ``multiplier <- multiplier + rate * (E[latency] / max_ms - 1)``. Above the limit it grows and makes
    latency dear; below it falls, and turns into a reward where the task loss alone would leave time
    unused. No weight has to be tuned.

    Args:
        rate: Step of the multiplier.

    Source:
        Expected latency: FBNet, arXiv 1812.03443, section 3.2. Both sides of the target count, as in the
        absolute reward of TuNAS, arXiv 2008.06120, section 3.2; the multiplier's step is dual ascent
        (Boyd and Vandenberghe, Convex Optimization, section 5.5) instead of a fixed weight.
    """

    rate: float

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        return loss + context.scalars.get(MULTIPLIER, 0.0) * self._excess(context).to(loss)

    def update(self, context: Context) -> None:
        """One step of the multiplier."""
        excess = float(self._excess(context).detach())
        context.scalars[MULTIPLIER] = context.scalars.get(MULTIPLIER, 0.0) + self.rate * excess

    def _excess(self, context: Context) -> Tensor:
        return context.expected_ms / context.budget.max_ms - 1
