"""ProxylessNAS: binary gates, one path in memory; by gradients or by REINFORCE."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

from torch.optim import SGD, Adam

from hwnas.search.derivations import MostProbableWithinBudget
from hwnas.search.recipe import Recipe
from hwnas.search.regularizers import LogLatency, PowerLatency, check_unit, hard_limit
from hwnas.search.relaxations import BinaryGates, Categorical
from hwnas.search.schedules import Cosine, Phases
from hwnas.search.schemes import Alternating, Reinforce


def proxylessnas(
    *,
    num_epochs: int = 160,
    batch_size: int = 256,
    arch_lr: float = 1e-3,
    mode: Literal["two", "all", "reinforce"] = "two",
    weight_share: float = 0.96,
    published: bool = False,
    units_per_ms: float = 1.0,
) -> Recipe:
    """Path-level search of ProxylessNAS.

    Args:
        num_epochs: Passes over the weights' images; a quarter of them warms up.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        weight_share: Share of the images that trains weights; leave more for the architecture if they are few.
        mode: Gate gradients of two paths or of all, or REINFORCE.
        published: The released code's latency term, whose pull on latency is fixed, instead of one held to the limit.
        units_per_ms: Unit of the published logarithm, in which every network must take more than one; 1000:
            microseconds. REINFORCE has no logarithm.

    Raises:
        UsageError: The unit has no effect, or is not positive.

    Source:
        ProxylessNAS, arXiv 1812.00332, and its released code. Section 3.2 and equation 4: gates, two paths. Section
        3.3.2: REINFORCE. Code: 40 epochs of warm-up (cosine from 0.05), 120 of search (cosine from 0.025), batch 256,
        SGD with Nesterov momentum 0.9, decay 4e-5, label smoothing 0.1, 50,000 of 1.28 million images for the logits;
        Adam 1e-3 with betas (0, 0.999), every fifth step and not in the first epoch of the 120; loss
        ``0.2 * CE * (log E[latency] / log limit) ** 0.3``; REINFORCE: 300 updates of 10 samples an epoch, that is every
        sixteenth step, reward ``accuracy * (limit / latency) ** 0.1``.
        Differs: the latency term adapts to the limit unless ``published``; a 0/1 programme derives the most probable
        network within the limit, instead of the most probable option of every layer; two paths a step, the paper's
        algorithm, where the code probes all options unless told otherwise (``mode="all"``); weight steps draw their
        path from all options, as the code does, and architecture steps from their pair.
    """
    check_unit("proxylessnas", units_per_ms, used=published and mode != "reinforce")
    log_latency = LogLatency(scale=0.2, power=0.3, relative=True, units_per_ms=units_per_ms, of="probabilities")
    by_gradient = Recipe(
        name="proxylessnas",
        relaxation=BinaryGates("two" if mode == "two" else "all"),
        weight_relaxation=Categorical(),
        scheme=Alternating(warm_up=41 / 160, every=5),
        regularizers=(log_latency if published else hard_limit(arch_lr),),
        derivation=MostProbableWithinBudget(),
        weight_optimizer=partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=4e-5),
        weight_lr=Phases(40 / 160, Cosine(0.05), Cosine(0.025)),
        arch_optimizer=partial(Adam, lr=arch_lr, betas=(0.0, 0.999), eps=1e-8),
        num_epochs=num_epochs,
        weight_share=weight_share,
        batch_size=batch_size,
        label_smoothing=0.1,
        grad_clip=math.inf,
    )
    if mode != "reinforce":
        return by_gradient
    return replace(
        by_gradient,
        relaxation=Categorical(),
        weight_relaxation=None,
        scheme=Reinforce(num_samples=10, decay=0.99, warm_up=41 / 160, every=16),
        regularizers=(PowerLatency(0.1, of="sample"),) if published else (hard_limit(arch_lr),),
    )
