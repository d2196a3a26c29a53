"""Random search: the best of some random networks within the limit, by a uniformly trained supernet."""

from __future__ import annotations

from dataclasses import replace

from hwnas.recipes.spos import spos
from hwnas.search.derivations import SampleAndScore
from hwnas.search.recipe import Recipe


def random(
    *, num_epochs: int = 120, batch_size: int = 1024, weight_share: float = 0.96, num_samples: int = 50
) -> Recipe:
    """The baseline that every other method must beat.

    Args:
        num_epochs: Passes over the weights' images.
        batch_size: Images a step.
        weight_share: Share of the images that trains weights; the networks are compared on the others.
        num_samples: Networks compared.

    Source:
        Li and Talwalkar, Random Search and Reproducibility for NAS, arXiv 1902.07638, section 3, with the training of
        SPOS, arXiv 1904.00420. Differs: networks are drawn among those within the limit.
    """
    return replace(
        spos(num_epochs=num_epochs, batch_size=batch_size, weight_share=weight_share),
        name="random",
        derivation=SampleAndScore(num_samples=num_samples),
    )
