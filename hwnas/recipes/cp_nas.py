"""CP-NAS: options are sampled equally often, rated, and the worst of every choice is dropped round by round."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD

from hwnas.search.derivations import Survivors
from hwnas.search.pruners import DropWorst
from hwnas.search.rating import Rated, WithoutReplacement
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.schedules import Cosine


def cp_nas(*, num_epochs: int = 21, batch_size: int = 64, arch_lr: float = 0.01, epochs_per_round: int = 3) -> Recipe:
    """Search by dropping candidates, after CP-NAS; on cells of any number of edges, such as darts-cell:inputs=0.

    Args:
        num_epochs: Passes over the weights' images, each of which trains as many networks as there are candidates; of K
            candidates one is left after ``(K - 1) * epochs_per_round``. Of more the most probable is derived.
        batch_size: Images a step.
        arch_lr: What a logit rises by for an accuracy of 1; the scale of ratings beside that of latency.
        epochs_per_round: Epochs from one drop to the next.

    Source:
        CP-NAS, arXiv 2005.00057, section 3; that it is what "CPNAS" means is not confirmed. Sampling without
        replacement, dropping the worst of every edge until one is left.
        Differs: networks of one bit, and with them the second term of the indicator, are left out; latency is held to
        the limit; epochs, learning rate and batch are ours, SGD is as of DARTS.
    """
    return Recipe(
        name="cp_nas",
        relaxation=WithoutReplacement(),
        scheme=Rated(),
        regularizers=(hard_limit(arch_lr),),
        derivation=Survivors(),
        weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.025, 0.001),
        arch_optimizer=partial(SGD, lr=arch_lr),
        num_epochs=num_epochs,
        batch_size=batch_size,
        logit_std=0.0,
        pruner=DropWorst(every=epochs_per_round),
    )
