"""DARTS: every option runs, weighted by a softmax; first or second order."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.errors import UsageError
from hwnas.search.derivations import StrongestEdges
from hwnas.search.gradients import FirstOrder, Unrolled
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Cosine
from hwnas.search.schemes import Alternating


def darts(*, num_epochs: int = 50, batch_size: int = 64, arch_lr: float = 3e-4, order: int = 1) -> Recipe:
    """Differentiable architecture search, DARTS, on cells or on a chain of blocks.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        order: 1, or 2 for the gradient through one unrolled weight step.

    Source:
        DARTS, arXiv 1806.09055. Equation 2: softmax. Equations 7 and 8: second order, xi is the current learning rate.
        Appendix A.1 and released code: 50 epochs, batch 64, half of the images for each, SGD 0.025 to 0.001 (cosine),
        momentum 0.9, decay 3e-4, clip 5, Adam 3e-4 with betas (0.5, 0.999) and decay 1e-3, logits of deviation 1e-3,
        architecture before weights.
        Differs: latency is held to the limit, and a cell above it is replaced by the most probable one within it; the
        blocks of a chain keep their affine batch-norm; the learning rate falls every step instead of every epoch.
    """
    if order not in (1, 2):
        raise UsageError(f"recipe 'darts' has no order {order}; it takes 1 or 2.")
    return Recipe(
        name="darts",
        relaxation=Softmax(),
        scheme=Alternating(arch_first=True, gradient=FirstOrder() if order == 1 else Unrolled()),
        regularizers=(hard_limit(arch_lr),),
        derivation=StrongestEdges(),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.025, 0.001),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
