"""PC-DARTS: a part of the channels is searched, and edges are weighed against one another; for cells."""

from __future__ import annotations

from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import StrongestEdges
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import hard_limit
from hwnas.search.relaxations import Softmax
from hwnas.search.schedules import Cosine
from hwnas.search.schemes import Alternating


def pc_darts(
    *, num_epochs: int = 50, batch_size: int = 256, arch_lr: float = 6e-4, partial_channels: int = 4
) -> Recipe:
    """DARTS with partial channels and weights of edges, in a K-th of the memory.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        partial_channels: K; 4 for CIFAR, 2 for ImageNet.

    Source:
        PC-DARTS, arXiv 1907.05737. Sections 3.2 and 3.3: partial channels, edge normalisation. Section 4.2 and released
        code: 50 epochs, batch 256, half of the images for each, SGD 0.1 to 0 (cosine), momentum 0.9, decay 3e-4, clip
        5, Adam 6e-4 with betas (0.5, 0.999) and decay 1e-3, logits of deviation 1e-3, first order, the architecture
        frozen for the first 15 epochs and then before the weights.
        Differs: latency is held to the limit, and a cell above it is replaced by the most probable one within it; the
        learning rate falls every step instead of every epoch. For ImageNet (section 4.3): batch 1024, SGD 0.5, Adam
        6e-3, frozen for 35 epochs.
    """
    return Recipe(
        name="pc_darts",
        relaxation=Softmax(),
        scheme=Alternating(warm_up=15 / 50, arch_first=True),
        regularizers=(hard_limit(arch_lr),),
        derivation=StrongestEdges(),
        weight_optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=3e-4),
        weight_lr=Cosine(0.1),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.5, 0.999), weight_decay=1e-3),
        num_epochs=num_epochs,
        batch_size=batch_size,
        edge_weights=True,
        partial_channels=partial_channels,
    )
