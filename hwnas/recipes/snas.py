"""SNAS: sampled weights and shared weights follow one gradient of one batch."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import StrongestEdges
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import Concrete
from hwnas.search.schedules import Cosine, Linear
from hwnas.search.schemes import OneLevel


def snas(*, num_epochs: int = 150, batch_size: int = 64, arch_lr: float = 3e-4) -> Recipe:
    """Stochastic search of SNAS; of cells, on darts-cell:inputs=0, where any edge may be ``none``.

    Args:
        num_epochs: Passes over all training images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.

    Source:
        SNAS, arXiv 1812.09926. Equation 3: concrete distribution. Section 2.2: one level. Re-released code: temperature
        1 to 0.03 in a line over 150 epochs, SGD 0.025 to 0.001 (cosine), momentum 0.9, decay 3e-4, clip 5, Adam 3e-4,
        betas (0.5, 0.999) and decay 1e-3, logits of deviation 0.01, all images.
        Differs: latency held to the limit, instead of 1e-2 times the mean logarithm of size, FLOPs and memory access;
        where the most probable option of every edge, ``none`` among them, breaks the limit, the most probable network
        within it, as always in a chain of blocks; no clipping of the logits' gradient, by 10 there, no drop-path, 0.3
        there (``replace(recipe, drop_path=0.3)``); logits of mean 0, not 1, which a softmax cannot tell but the decay
        can; temperature and learning rate fall every step instead of every epoch.
    """
    return Recipe(
        name="snas",
        relaxation=Concrete(tau=Linear(1.0, 0.03)),
        scheme=OneLevel(),
        regularizers=(hard_limit(arch_lr),),
        derivation=StrongestEdges(),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.025, 0.001),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        num_epochs=num_epochs,
        weight_share=1.0,
        batch_size=batch_size,
        logit_std=0.01,
    )
