"""FBNet: every option runs, weighted by Gumbel-softmax samples that sharpen; latency from the table."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import SGD, Adam

from hwnas.search.derivations import SampleAndScore
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import LogLatency, check_unit, hard_limit
from hwnas.search.relaxations import Concrete
from hwnas.search.schedules import Cosine, Exponential
from hwnas.search.schemes import Alternating


def fbnet(
    *,
    num_epochs: int = 90,
    batch_size: int = 192,
    arch_lr: float = 0.01,
    published: bool = False,
    units_per_ms: float = 1.0,
) -> Recipe:
    """Differentiable search of FBNet.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        published: The paper's latency term, which knows no limit, instead of one that is held to it.
        units_per_ms: Unit of the published term, in which every network must take more than one; 1000: microseconds.

    Raises:
        UsageError: The unit has no effect, or is not positive.

    Source:
        FBNet, arXiv 1812.03443. Equation 2: loss ``CE * 0.2 * log(latency) ** 0.6`` of the sampled weights. Equation 6:
        Gumbel-softmax. Section 4.1: temperature 5 times ``exp(-0.045)`` an epoch, 90 epochs, 80 % of the images for
        weights (SGD 0.1, momentum 0.9, cosine, decay 1e-4), 20 % for the logits (Adam 0.01, decay 5e-4), which rest
        for 10 epochs. Section 3.3: architectures are drawn from the probabilities and the best is kept; six.
        Differs: the term adapts to the limit unless ``published``; steps on the two parts alternate, four to one,
        instead of epoch halves; the temperature falls every step; the architectures are within the limit, one
        of the six is the most probable one, and they are compared with the supernet's weights, instead of being
        trained. Batch 192 is a common choice of re-implementations; the paper has none.
    """
    check_unit("fbnet", units_per_ms, used=published)
    term = LogLatency(scale=0.2, power=0.6, units_per_ms=units_per_ms, of="sample") if published else None
    return Recipe(
        name="fbnet",
        relaxation=Concrete(tau=Exponential(5.0, 5.0 * math.exp(-0.045 * 90))),
        scheme=Alternating(warm_up=10 / 90, every=4),
        regularizers=(term or hard_limit(arch_lr),),
        derivation=SampleAndScore(num_samples=6),
        weight_optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-4),
        weight_lr=Cosine(0.1),
        arch_optimizer=partial(Adam, lr=arch_lr, weight_decay=5e-4),
        num_epochs=num_epochs,
        weight_share=0.8,
        batch_size=batch_size,
        grad_clip=math.inf,
    )
