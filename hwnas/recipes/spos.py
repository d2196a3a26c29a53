"""Single Path One-Shot: train all paths uniformly, then search by evolution within the limit."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import Evolution
from hwnas.search.recipe import Recipe
from hwnas.search.relaxations import UniformPath
from hwnas.search.schedules import Linear
from hwnas.search.schemes import WeightsOnly


def spos(*, num_epochs: int = 120, batch_size: int = 1024, weight_share: float = 0.96, generations: int = 20) -> Recipe:
    """Uniform training, then evolution on held-out accuracy after batch-norm recalibration.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step; the learning rate is scaled with it.
        weight_share: Share of the images that trains weights; the paths are compared on the others.
        generations: Of the evolution.

    Source:
        SPOS, arXiv 1904.00420. Section 3.2: uniform paths. Section 3.4: evolution, population 50, 20 generations, 10
        parents, 25 mutations of rate 0.1, 25 crossovers, recalibration before every evaluation. Section 4 and released
        code: 150,000 steps of batch 1024 (about 120 epochs of ImageNet), SGD 0.5 to 0 in a line, momentum 0.9, decay
        4e-5, label smoothing 0.1, 50,000 of 1.28 million images held out.
        Differs: paths are uniform, as in the paper, where the code draws them evenly by FLOPs from 290 to 360 million;
        the limit is latency, not FLOPs; blocks keep their affine batch-norm; the limit should be used to
        95 % where the space allows it; statistics are of 16 batches of 128 images, not of 200, and networks are
        compared on at most 10,000 of the images held out, not on 8,000.
    """
    rate = 0.5 * batch_size / 1024
    return Recipe(
        name="spos",
        relaxation=UniformPath(),
        scheme=WeightsOnly(),
        regularizers=(),
        derivation=Evolution(
            population=50, generations=generations, num_parents=10, num_mutations=25, num_crossovers=25,
            mutation_rate=0.1, floor=0.95,
        ),
        weight_optimizer=partial(SGD, lr=rate, momentum=0.9, weight_decay=4e-5),
        weight_lr=Linear(rate, 0.0),
        arch_optimizer=Adam,
        num_epochs=num_epochs,
        weight_share=weight_share,
        batch_size=batch_size,
        label_smoothing=0.1,
        grad_clip=math.inf,
    )  # fmt: skip
