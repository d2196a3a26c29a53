"""DropNAS: one level, and options dropped at random in two groups."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch.optim import SGD

from hwnas.recipes.darts import darts
from hwnas.search.op_dropout import OpDropout
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Cosine
from hwnas.search.schemes import OneLevel


def drop_nas(*, num_epochs: int = 76, batch_size: int = 96, arch_lr: float = 3e-4, rate: float = 3e-5) -> Recipe:
    """Search with grouped operation dropout, in the paper on darts-cell:num_cells=14.

    Choices need two candidates with weights, or two without: S2 and S4 of robust-darts and gold-nas have none.

    Args:
        num_epochs: Passes over all training images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        rate: Chance that all of a group would be dropped.

    Source:
        DropNAS, IJCAI 2020. Section 3: groups of operators with and without weights, dropped with 3e-5, only what runs
        moves and decays. Section 4: 76 epochs, batch 96, SGD 0.0375 to 0.0015 (cosine), clip 3, derivation of DARTS;
        momentum, decay and the logits' optimizer as of DARTS.
        Differs: latency is held to the limit; weights and logits decay in the step that moves them, in the released
        code in one of its own after that, clipped by itself, and by twice as much.
    """
    return replace(
        darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr),
        name="drop_nas",
        relaxation=OpDropout(rate),
        scheme=OneLevel(),
        weight_optimizer=partial(SGD, lr=0.0375, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.0375, 0.0015),
        weight_share=1.0,
        grad_clip=3.0,
    )
