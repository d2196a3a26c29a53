"""GDAS: one hard Gumbel sample a step, with the gradient of the soft one."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import StrongestEdges
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import StraightThroughGumbel
from hwnas.search.schedules import Cosine, Linear
from hwnas.search.schemes import Alternating


def gdas(*, num_epochs: int = 250, batch_size: int = 64, arch_lr: float = 3e-4, added: bool = False) -> Recipe:
    """Gradient-based search with a differentiable sampler, GDAS.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        added: The variant of the released code for NAS-Bench-201, in which options that do not run get a gradient too.

    Source:
        GDAS, arXiv 1910.04465. Equations 3 to 6: sampling. Section 4.1 and released code: 250 epochs, temperature 10 to
        0.1 in a line, SGD 0.025 to 0.001 (cosine), Nesterov momentum 0.9, decay 5e-4, clip 5, batch 64, Adam 3e-4 with
        betas (0.5, 0.999) and decay 1e-3, logits of deviation 1e-3, weights first, half of the images for each.
        In cells the released code has batches of 256.
        Differs: latency is held to the limit, GDAS knows none, and a cell above it is replaced by the most probable one
        within it; two edges into a node of a cell end in different nodes before it; the temperature falls every step
        instead of every epoch; the variant with a fixed reducing cell (FRC) is left out.
    """
    return Recipe(
        name="gdas",
        relaxation=StraightThroughGumbel(tau=Linear(10.0, 0.1), added=added),
        scheme=Alternating(),
        regularizers=(hard_limit(arch_lr),),
        derivation=StrongestEdges(),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4),
        weight_lr=Cosine(0.025, 0.001),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        num_epochs=num_epochs,
        batch_size=batch_size,
    )
