"""GOLD-NAS: one level, a growing cost, and gradual pruning of operators that do not compete."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import Survivors
from hwnas.search.growing import GrowingCost
from hwnas.search.pruners import BelowThreshold
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import Sigmoid
from hwnas.search.schedules import Cosine
from hwnas.search.schemes import OneLevel


def gold_nas(
    *,
    num_epochs: int = 50,
    batch_size: int = 64,
    arch_lr: float = 3e-3,
    lambda0: float = 0.0,
    lambda_growth: float = 10.0,
    per_op: float = 0.1,
    prune_threshold: float = 0.01,
    min_prune_per_epoch: int = 4,
    to_limit: bool = True,
    cutout: float = 1.0,
) -> Recipe:
    """Gradual one-level differentiable search, on the space gold-nas.

    ``survivors.jsonl`` in the run's folder lists the networks that it went through, a series of latencies; from Python
    ``survivors(result, model)``. The search wants strong augmentation. Of that only CutOut is here; AutoAugment comes
    with the images: ``replace(data, train=data.train.augmented_by(...))``, for example of ``randaugment()``.

    Args:
        num_epochs: Passes over all training images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        lambda0: Weight of the cost at the start.
        lambda_growth: What it grows by in a search that is always too slow; see ``GrowingCost``.
        per_op: What all operators cost together beside their latency, in shares of the limit.
        prune_threshold: An operator of less weight is pruned.
        min_prune_per_epoch: Operators pruned in every epoch, the weakest first.
        to_limit: End pruning at the limit; if not, the series goes on below it.
        cutout: Share of the images that CutOut takes a square of 16 pixels from, which is meant for 32 x 32.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3: one level, logistic weights, cost, gradual pruning, no further rules.
        Differs: the cost is latency, not multiply-adds. The shape of the cost, its growth, threshold, least number and
        every other number are ours, as none is confirmed; SGD is as of DARTS.
    """
    return Recipe(
        name="gold_nas",
        relaxation=Sigmoid(),
        scheme=OneLevel(),
        regularizers=(GrowingCost(lambda0, lambda_growth, per_op),),
        derivation=Survivors(),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.025, 0.001),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999)),
        num_epochs=num_epochs,
        weight_share=1.0,
        batch_size=batch_size,
        pruner=BelowThreshold(prune_threshold, min_prune_per_epoch, to_limit),
        cutout=cutout,
    )
