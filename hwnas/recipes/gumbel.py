"""Straight-through Gumbel with one path in memory, under an adaptive latency limit."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import MostProbableWithinBudget
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import StraightThroughGumbel
from hwnas.search.schedules import Cosine, Linear
from hwnas.search.schemes import Alternating


def gumbel(*, num_epochs: int = 90, batch_size: int = 64, arch_lr: float = 0.01, arch_every: int = 2) -> Recipe:
    """The sampling of GDAS on a chain of blocks with the expected latency of FBNet, held to a hard limit.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        arch_every: Weight steps per architecture step.

    Source:
        Gates, temperature from 10, weight decay 5e-4, clip 5, weights before architecture: GDAS, arXiv
        1910.04465, section 4 and released code. Architecture frozen for the first 10 of 90 epochs, SGD 0.1
        with momentum 0.9, Adam 0.01: FBNet, arXiv 1812.03443, section 4.1.
        Differs: the multiplier of the latency adapts, instead of a fixed penalty; two weight steps per
        architecture step (GDAS one, ProxylessNAS five); the temperature ends at 0.5, not 0.1, as few epochs
        leave no time for gradients that noisy; a 0/1 programme derives the architecture; the logits have no
        weight decay, which would pull them towards each other against the limit.
    """
    return Recipe(
        name="gumbel",
        relaxation=StraightThroughGumbel(tau=Linear(10.0, 0.5)),
        scheme=Alternating(warm_up=10 / 90, every=arch_every),
        regularizers=(hard_limit(arch_lr),),
        derivation=MostProbableWithinBudget(),
        weight_optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        weight_lr=Cosine(0.1),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999)),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
