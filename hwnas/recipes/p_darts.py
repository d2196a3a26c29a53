"""P-DARTS: three searches in deeper and deeper networks, among fewer and fewer options; skips are held back."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import StrongestEdges
from hwnas.search.recipe import Recipe, Stage
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Cosine, Exponential, Linear, Phases, Scalar
from hwnas.search.schemes import Alternating

EPOCHS, FROZEN = 25, 10


def p_darts(
    *,
    num_epochs: int = EPOCHS,
    batch_size: int = 96,
    arch_lr: float = 6e-4,
    dropout1: float = 0.1,
    dropout2: float = 0.4,
    dropout3: float = 0.7,
    max_skips: int = 2,
) -> Recipe:
    """DARTS in networks of 5, 11 and 17 cells, with 8, 5 and 3 options an edge and dropout after skips.

    Args:
        num_epochs: Passes over the weights' images, of each of the three searches.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        dropout1: First rate of the dropout after skips in the first search.
        dropout2: In the second.
        dropout3: In the third.
        max_skips: Most skips in the normal cell.

    Source:
        P-DARTS, arXiv 1904.12760, sections 3 and 4.2.1, and released code: three searches of 25 epochs, of which the
        first 10 move weights only; 5, 11 and 17 cells, 5 and then 3 options left an edge; batch 96, half of the images
        for each, SGD 0.025 to 0 (cosine), momentum 0.9, decay 3e-4, clip 5, Adam 6e-4 with betas (0.5, 0.999) and decay
        1e-3, logits of deviation 1e-3, first order, architecture before weights; at most 2 skips. Rates of the dropout:
        its README, for CIFAR-10; the paper has 0.0 in the first search. For CIFAR-100 0.1, 0.2, 0.3 (unverified).
        Differs: latency is held to the limit, in every search, and a cell above it is replaced by the most probable one
        within it; the gradient of the logits is not clipped, the released code clips it by 5 as well; learning rate and
        dropout change every step instead of every epoch; one cell of at most ``max_skips`` skips is derived, where the
        released code prints those of at most 8, 7, ... and 0.
    """
    last = Recipe(
        name="p_darts",
        relaxation=Softmax(),
        scheme=Alternating(warm_up=FROZEN / EPOCHS, arch_first=True),
        regularizers=(hard_limit(arch_lr),),
        derivation=StrongestEdges(max_skips=max_skips),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.025),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        num_epochs=num_epochs,
        batch_size=batch_size,
        proxy={"num_cells": 17},
        skip_dropout=falling(dropout3),
    )
    first = replace(last, proxy={"num_cells": 5}, skip_dropout=falling(dropout1))
    second = replace(last, proxy={"num_cells": 11}, skip_dropout=falling(dropout2))
    return replace(last, stages=(Stage(first, keep=5), Stage(second, keep=3)))


def falling(rate: float) -> Scalar:
    """Dropout after skips: ``q (E - e - 1) / E`` in the 10 first of ``E = 25`` epochs, then ``q exp(-0.2 (e - 10))``.

    Args:
        rate: q; 0 for none.

    Source:
        P-DARTS, arXiv 1904.12760, released code.
    """
    if rate <= 0:
        return rate
    first = Linear(rate * (EPOCHS - 1) / EPOCHS, rate * (EPOCHS - FROZEN - 1) / EPOCHS)
    return Phases(FROZEN / EPOCHS, first, Exponential(rate, rate * math.exp(-0.2 * (EPOCHS - FROZEN))))
