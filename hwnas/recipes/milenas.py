"""MiLeNAS: the logits follow the training and the validation loss at once, both first order."""

from __future__ import annotations

from dataclasses import replace

from hwnas.recipes.darts import darts
from hwnas.search.gradients import MixedLevel
from hwnas.search.recipe import Recipe
from hwnas.search.schemes import Alternating


def milenas(*, num_epochs: int = 50, batch_size: int = 64, arch_lr: float = 3e-4, weight: float = 1.0) -> Recipe:
    """Mixed-level search, MiLeNAS.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        weight: Of the validation loss; 1 is usual, but unconfirmed.

    Source:
        MiLeNAS, arXiv 2003.12238; all else as in DARTS, which is unconfirmed.
        Differs: as in DARTS; the architecture moves before the weights.
    """
    plain = darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr)
    return replace(plain, name="milenas", scheme=Alternating(arch_first=True, gradient=MixedLevel(weight)))
