"""ASAP: the temperature falls, and options whose share is small are pruned on the way."""

from __future__ import annotations

from dataclasses import replace

from hwnas.recipes.darts import darts
from hwnas.search.derivations import Survivors
from hwnas.search.pruners import BelowShare
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Exponential
from hwnas.search.schemes import Alternating

GRACE = 10 / 50
"""Share of the search in which logits rest and nothing is pruned: the temperature is below 1 from epoch 10 of 50."""


def asap(*, num_epochs: int = 50, batch_size: int = 64, arch_lr: float = 3e-4, share: float = 0.4) -> Recipe:
    """Search of ASAP, anneal and prune; on cells of any number of edges, such as darts-cell:inputs=0.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        share: An option is pruned below so much of an equal share.

    Source:
        ASAP, arXiv 1904.04123. Section 3: annealing and pruning. Temperature 1.6 times 0.95 an epoch and threshold 0.4
        are those of a re-implementation; 50 epochs are ours, the paper's schedules are not confirmed. The rest is as of
        DARTS.
        Differs: latency is held to the limit; the temperature falls every step, by the share of the search done.
    """
    return replace(
        darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr),
        name="asap",
        relaxation=Softmax(tau=Exponential(1.6, 1.6 * 0.95**50)),
        scheme=Alternating(arch_first=True, warm_up=GRACE),
        derivation=Survivors(),
        pruner=BelowShare(share, warm_up=GRACE),
    )
