"""Two-path binary gates with one path in memory, under an adaptive latency limit."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import MostProbableWithinBudget
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import BinaryGates, Categorical
from hwnas.search.schedules import Cosine
from hwnas.search.schemes import Alternating


def gates(*, num_epochs: int = 90, batch_size: int = 64, arch_lr: float = 0.01, arch_every: int = 2) -> Recipe:
    """The gates of ProxylessNAS with the pace of FBNet, held to a hard limit; for searches of few epochs too.

    Of the relaxations that run one path and probe at most one more option a choice, this one's gradient follows what
    options do to the loss most closely, and needs the fewest steps to be heard (``benchmarks/gradients.py``).
    Straight-through Gumbel follows it poorly: the gradient through the one option that runs says what its scale does,
    which the next batch-norm takes away.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        arch_every: Weight steps per architecture step.

    Source:
        Gates, gradient of two paths, no momentum of the logits: ProxylessNAS, arXiv 1812.00332, section 3.2, equation 4
        and released code. Architecture frozen for the first 10 of 90 epochs, SGD 0.1 with momentum 0.9, Adam 0.01:
        FBNet, arXiv 1812.03443, section 4.1. Weight decay 5e-4, clip 5: GDAS, arXiv 1910.04465, released code.
        Differs: the multiplier of the latency adapts, instead of a fixed penalty; two weight steps per architecture
        step (GDAS one, ProxylessNAS five); half of the images for each, as for searches of few images (FBNet 80 and 20
        of 100, ProxylessNAS 96 and 4); a 0/1 programme derives the architecture; the logits have no weight decay,
        which would pull them towards each other against the limit.
    """
    return Recipe(
        name="gates",
        relaxation=BinaryGates("two"),
        weight_relaxation=Categorical(),
        scheme=Alternating(warm_up=10 / 90, every=arch_every),
        regularizers=(hard_limit(arch_lr),),
        derivation=MostProbableWithinBudget(),
        weight_optimizer=partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        weight_lr=Cosine(0.1),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.0, 0.999)),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
