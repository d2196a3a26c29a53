"""Amended DARTS: the implicit term of the architecture gradient, estimated by two products with second derivatives."""

from __future__ import annotations

from dataclasses import replace

from hwnas.recipes.darts import darts
from hwnas.search.gradients import Amended
from hwnas.search.recipe import Recipe
from hwnas.search.schemes import Alternating


def amended_darts(
    *, num_epochs: int = 50, batch_size: int = 64, arch_lr: float = 3e-4, eta: float = 0.1, every: int = 1
) -> Recipe:
    """DARTS with the amended gradient.

    The paper searches in the network that is trained afterwards: give the space the same cells and channels.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        eta: Weight of the correction; unconfirmed.
        every: Weight steps per architecture step; the estimate assumes weights near their optimum. Unconfirmed.

    Source:
        Bi et al., arXiv 1910.11831; all else as in DARTS, which is unconfirmed. There is no released code.
        Differs: as in DARTS.
    """
    plain = darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr)
    scheme = Alternating(arch_first=True, every=every, gradient=Amended(eta))
    return replace(plain, name="amended_darts", scheme=scheme)
