"""DARTS+: DARTS that stops before skips take over."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hwnas.recipes.darts import darts
from hwnas.search.recipe import Recipe
from hwnas.search.stoppers import SkipCount, StableRanking


def darts_plus(
    *,
    num_epochs: int = 50,
    batch_size: int = 64,
    arch_lr: float = 3e-4,
    order: int = 1,
    criterion: Literal["skips", "ranking"] = "skips",
    back: int = 0,
) -> Recipe:
    """DARTS+, with either of its criteria.

    Args:
        num_epochs: Passes over the weights' images, at most; at least 11 for the criterion ``ranking``.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        order: As of DARTS.
        criterion: Two skips in the derived normal cell, or ten epochs without a change in the order of convolutions.
        back: How many epochs before the last one the result lies; the paper does not say, so 0 is unconfirmed.

    Source:
        DARTS+, arXiv 1909.06035, section 3.2; all else as in DARTS, which is unconfirmed.
        Differs: as in DARTS; skips are counted in the cell of the rule of DARTS, whatever the limit.
    """
    plain = darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr, order=order)
    stopper = SkipCount(back=back) if criterion == "skips" else StableRanking(back=back)
    return replace(plain, name="darts_plus", stopper=stopper)
