"""A price of networks that rises for as long as they shrink too slowly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hwnas.errors import UsageError
from hwnas.search.nodes import among_networks
from hwnas.search.protocols import Context, Regularizer
from hwnas.search.surviving import surviving
from hwnas.space import NONE

PRICE, FIRST_MS, FIRST, SEEN = "price", "price_first_ms", "price_first", "price_seen"
"""Names of its state among the search's scalars."""


@dataclass(frozen=True)
class GrowingCost(Regularizer):
    """``loss + price * (E[latency] / max_ms + per_op * mean over choices of (1 - p(none)))``.

    The latency is that of every option by its probability; for logistic gates of one operator each,
    ``d/da = price * s (1 - s) (ms / max_ms + per_op / num_choices)``, which is above 0 even where an operator is free.
    The price starts at ``start``. After every architecture step it rises, by ``growth`` for a whole search, if the
    network that is left, see ``surviving``, is slower than the line from what it was at the first such step to the
    limit at the end of the search.

    Args:
        start: Price at the start.
        growth: What the price rises by in a search that is always too slow.
        per_op: What all operators cost together beside their latency, in shares of the limit.

    Raises:
        UsageError: A number is negative, or there is no cost at all.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3: a cost of multiply-adds and a constant, and a factor that grows.
        Differs: latency instead of multiply-adds; the shape of the cost, the pace and every number are ours, as the
        published ones are not confirmed.
    """

    start: float = 0.0
    growth: float = 1.0
    per_op: float = 0.1

    def __post_init__(self) -> None:
        if min(self.start, self.growth, self.per_op) < 0 or self.start == self.growth == 0:
            raise UsageError(
                f"a growing cost starts at {self.start:g}, grows by {self.growth:g} and has {self.per_op:g} for "
                "operators; expected numbers of at least 0, the first two not both 0. Leave the term out for no cost."
            )

    def __call__(self, loss: Tensor, context: Context) -> Tensor:
        """See ``Regularizer``."""
        cost = context.drawn_ms / context.budget.max_ms + self.per_op * self._present(context)
        return loss + context.scalars.get(PRICE, self.start) * cost.to(loss)

    def update(self, context: Context) -> None:
        """Raises the price."""
        scalars, now, ms = context.scalars, context.progress, _left_ms(context)
        first_ms, first = scalars.setdefault(FIRST_MS, ms), scalars.setdefault(FIRST, now)
        due = first_ms + (context.budget.max_ms - first_ms) * (now - first) / (1 - first or 1)
        since = now - scalars.get(SEEN, now)
        scalars[SEEN] = now
        scalars[PRICE] = scalars.get(PRICE, self.start) + (self.growth * since if ms > due else 0.0)

    def _present(self, context: Context) -> Tensor:
        """Share of the choices that have an operator."""
        choices = context.budget.model.space.choices
        lost = [context.probabilities[c.name][c.options.index(NONE)] for c in choices if NONE in c.options]
        return 1 - torch.stack(lost).sum() / len(choices) if lost else torch.ones(())


def _left_ms(context: Context) -> float:
    """Latency of the network that is left; where nodes keep some of its edges, the mean over those they may keep."""
    model = context.budget.model
    left = zip(model.space.choices, surviving(context.probabilities, model.space), strict=True)
    weights = {c.name: one_hot(torch.tensor(k), len(c.options)).double() for c, k in left}
    return float(model.expected_ms(among_networks(model.space, weights)))
