"""SDARTS: DARTS whose weights are trained under noise, or under an attack, on the probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from hwnas.recipes.darts import darts
from hwnas.search.perturbations import Adversarial, Perturbed
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Linear


def sdarts(
    *,
    num_epochs: int = 50,
    batch_size: int = 64,
    arch_lr: float = 3e-4,
    order: int = 1,
    mode: Literal["random", "adversarial"] = "random",
) -> Recipe:
    """SmoothDARTS, SDARTS-RS and SDARTS-ADV.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        order: As of DARTS.
        mode: Uniform noise, or the noise of the largest training loss, which costs about 8 more passes a step.

    Source:
        SDARTS, arXiv 2002.05283, section 3, and released code: eps from 0.03 to 0.3 in a line, 7 ascents, architecture
        first; all else as in DARTS.
        Differs: as in DARTS; eps grows every step instead of every epoch.
    """
    plain, eps = darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr, order=order), Linear(0.03, 0.3)
    if mode == "random":
        return replace(plain, name="sdarts", weight_relaxation=Perturbed(eps=eps))
    scheme = replace(plain.scheme, attack=Adversarial(eps, steps=7))  # type: ignore[type-var]
    return replace(plain, name="sdarts", scheme=scheme)
