"""FairDARTS: options do not compete, and a zero-one loss drives each towards in or out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from torch.optim import SGD, Adam

from hwnas.recipes.darts import darts
from hwnas.search.derivations import Threshold
from hwnas.search.logit_terms import ZeroOne
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import Sigmoid
from hwnas.search.schedules import Cosine


def fair_darts(
    *,
    num_epochs: int = 50,
    batch_size: int = 128,
    arch_lr: float = 3e-3,
    weight: float = 10.0,
    kind: Literal["square", "absolute"] = "square",
    threshold: float = 0.85,
) -> Recipe:
    """Search of FairDARTS, on darts-cell:inputs=0,with_none=0.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        weight: Of the zero-one loss.
        kind: Of the zero-one loss.
        threshold: Least weight of an operator that is kept.

    Source:
        FairDARTS, arXiv 1911.12126. Section 3: logistic weights, zero-one loss. Section 4 and released code:
        50 epochs, batch 128, SGD 0.005 to 0.001 (cosine), Adam 3e-3 with betas (0.9, 0.999) and decay 1e-3, logits of
        zero, weight 10, threshold 0.85, at most two edges into a node, first order; momentum, decay and clip of DARTS.
        Differs: latency is held to the limit; its expectation counts every edge by its weight, also those beyond two.
        The learning rate falls every step instead of every epoch. The search on one level, of which the paper speaks
        as well, is ``replace(recipe, scheme=OneLevel())``.
    """
    return replace(
        darts(num_epochs=num_epochs, batch_size=batch_size),
        name="fair_darts",
        relaxation=Sigmoid(),
        regularizers=(ZeroOne(weight, kind), hard_limit(arch_lr)),
        derivation=Threshold(threshold),
        weight_optimizer=partial(SGD, lr=0.005, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.005, 0.001),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.9, 0.999), weight_decay=1e-3),
        logit_std=0.0,
    )
