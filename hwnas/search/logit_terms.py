"""Terms of the architecture loss that see the logits themselves and no latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Context, Regularizer
from hwnas.search.schedules import Scalar, check_weight, value_at


@dataclass(frozen=True)
class ZeroOne(Regularizer):
    """``loss - weight * mean (sigma(a) - 1/2)^2``, or of ``|sigma(a) - 1/2|``, over all searched logits.

    Drives every logistic weight to 0 or 1, so that little is lost where a threshold decides. With the square,
    ``d/da = -weight (2/N) (s - 1/2) s (1 - s)``: nothing at ``a = 0``, where the task alone decides the side.

    Args:
        weight: Of the mean; too large, and the first tendency, however random, is frozen.
        kind: ``square`` or ``absolute``.

    Raises:
        UsageError: There is no such kind.

    Source:
        FairDARTS, arXiv 1911.12126, section 3 (square) and a variant; weight 10.
    """

    weight: Scalar = 10.0
    kind: Literal["square", "absolute"] = "square"

    def __post_init__(self) -> None:
        check_weight(self.weight, "the zero-one term")
        if self.kind not in ("square", "absolute"):
            raise UsageError(f"the zero-one term has no kind {self.kind!r}; expected 'square' or 'absolute'.")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        away = torch.sigmoid(torch.cat([*context.logits.values()])) - 0.5
        sizes = away.square() if self.kind == "square" else away.abs()
        return loss - value_at(self.weight, context.progress) * sizes.mean().to(loss)


@dataclass(frozen=True)
class BetaDecay(Regularizer):
    """``loss + weight * mean over choices of logsumexp(a)``, over the searched logits of every choice.

    A smooth maximum: ``d/da_k = weight softmax(a)_k / num_choices``, so that what is large is pushed down most. It is
    not invariant to a shift and pulls the mean of the logits down without limit; look at probabilities.

    Args:
        weight: Usually a schedule that grows from 0.

    Source:
        beta-DARTS, arXiv 2203.01665, section 3 and released code. That the mean runs over the choices of all kinds
        of cell alike is not confirmed.
    """

    weight: Scalar

    def __post_init__(self) -> None:
        check_weight(self.weight, "beta-decay")

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        largest = torch.stack([logit.logsumexp(0) for logit in context.logits.values()])
        return loss + value_at(self.weight, context.progress) * largest.mean().to(loss)
