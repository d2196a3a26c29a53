"""Terms of the architecture loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hwnas.search.protocols import Context

MULTIPLIER = "latency_multiplier"


@dataclass(frozen=True)
class AdaptiveLatency:
    """``loss + multiplier * g + penalty / 2 * g^2`` with ``g = E[latency] / max_ms - 1``.

    The augmented Lagrangian of the constraint ``E[latency] = max_ms``: after each architecture step
    ``multiplier <- multiplier + rate * g``. Above the limit it grows and makes latency dear; below it falls,
    and turns into a reward where the task loss alone would leave time unused. The quadratic term damps the
    swing around the target that the multiplier alone would keep up. No weight has to be tuned: ``g`` is
    relative, so neither the device nor the limit changes the scale.

    Args:
        rate: Step of the multiplier.
        penalty: Weight of the quadratic term.

    Source:
        Expected latency: FBNet, arXiv 1812.03443, section 3.2. Both sides of the target count, as in the
        absolute reward of TuNAS, arXiv 2008.06120, section 3.2. Augmented Lagrangian: Nocedal and Wright,
        Numerical Optimization, chapter 17.3.
        Differs: the published methods fix a weight; here it is found.
    """

    rate: float
    penalty: float

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        excess = self._excess(context).to(loss)
        return loss + context.scalars.get(MULTIPLIER, 0.0) * excess + self.penalty / 2 * excess.square()

    def update(self, context: Context) -> None:
        """One step of the multiplier."""
        excess = float(self._excess(context).detach())
        context.scalars[MULTIPLIER] = context.scalars.get(MULTIPLIER, 0.0) + self.rate * excess

    def _excess(self, context: Context) -> Tensor:
        return context.expected_ms / context.budget.max_ms - 1
