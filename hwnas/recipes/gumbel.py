"""Straight-through Gumbel with one path in memory, under an adaptive latency limit."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import MostProbableWithinBudget
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import AdaptiveLatency
from hwnas.search.relaxations import StraightThroughGumbel
from hwnas.search.schedules import Cosine, Linear
from hwnas.search.schemes import Alternating


def gumbel(*, num_epochs: int = 30, batch_size: int = 64) -> Recipe:
    """The sampling of GDAS on a chain of blocks with the expected latency of FBNet, held to a hard limit.

    Source:
        Gates, temperature 10 -> 0.1, weight decay 5e-4, clip 5, weights before architecture: GDAS, arXiv
        1910.04465, section 4 and released code. Weights frozen out of the architecture for the first 10 of
        90 epochs, SGD 0.1 with momentum 0.9, Adam 0.01: FBNet, arXiv 1812.03443, section 4.1.
        Differs: the multiplier of the latency adapts (dual ascent) instead of a fixed penalty; temperature
        ends at 0.5, as fewer epochs leave no time for the high-variance gradients below it; a 0/1
        programme derives the architecture; no weight decay on the logits, which would pull them apart
        from the limit.
    """
    return Recipe(
        name="gumbel",
        relaxation=StraightThroughGumbel(tau=Linear(10.0, 0.5)),
        scheme=Alternating(warm_up=10 / 90),
        regularizers=(AdaptiveLatency(rate=0.05),),
        derivation=MostProbableWithinBudget(),
        weight_optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        weight_lr=Cosine(0.1),
        arch_optimizer=partial(Adam, lr=0.01, betas=(0.5, 0.999)),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
