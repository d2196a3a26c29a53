"""RobustDARTS: DARTS that stops, or is regularised, before the architecture loss becomes sharp."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from torch.optim import SGD

from hwnas.errors import UsageError
from hwnas.recipes.darts import darts
from hwnas.search.recipe import Recipe
from hwnas.search.schedules import Linear
from hwnas.search.stoppers import EigenvalueRise, RollBack

ARGUMENT = {"stop": None, "l2": "factor", "drop_path": "largest", "adaptive": "factor"}


def robust_darts(
    *,
    num_epochs: int = 50,
    batch_size: int = 64,
    arch_lr: float = 3e-4,
    order: int = 2,
    mode: Literal["stop", "l2", "drop_path", "adaptive"] = "stop",
    factor: float | None = None,
    largest: float | None = None,
) -> Recipe:
    """DARTS-ES, R-DARTS (L2), R-DARTS (DP) or DARTS-ADA.

    The grids of the paper are several searches, of which the result that validates best is kept: run one for each of
    the factors 1, 3, 9, 27 and 81, or of the largest probabilities 0, 0.2, 0.4 and 0.6.

    Args:
        num_epochs: Passes over the weights' images, at most; at least 23 where the eigenvalue is watched.
        batch_size: Images a step.
        arch_lr: Learning rate of the logits.
        order: As of DARTS.
        mode: Stop where the eigenvalue rises; more weight decay; drop edges and cut images more and more; or, where the
            eigenvalue rises, go back and on with more weight decay.
        factor: Of the weight decay of 3e-4, 3 if not given; ``adaptive``: every time, 10 if not given, up to 0.03.
        largest: Probability at the end that an edge is dropped, 0.2 if not given; CutOut ends at 1.

    Raises:
        UsageError: A number would have no effect in this mode.

    Source:
        RobustDARTS, arXiv 1909.09656, sections 4 and 5, and released code.
        Differs: as in DARTS; probabilities rise every step instead of every epoch; CutOut goes to images that train
        weights only, the released code cuts all; what ``RollBack`` lists.
    """
    for name, value in (("factor", factor), ("largest", largest)):
        if value is not None and ARGUMENT[mode] != name:
            raise UsageError(f"{name}={value:g} has no effect in mode '{mode}' of 'robust_darts'. Leave it out.")
    plain = replace(
        darts(num_epochs=num_epochs, batch_size=batch_size, arch_lr=arch_lr, order=order), name="robust_darts"
    )
    if mode == "l2":
        decay = 3e-4 * (3.0 if factor is None else factor)
        return replace(plain, weight_optimizer=partial(SGD, lr=0.025, momentum=0.9, weight_decay=decay))
    if mode == "drop_path":
        return replace(plain, drop_path=Linear(0.0, 0.2 if largest is None else largest), cutout=Linear(0.0, 1.0))
    back = RollBack(10.0 if factor is None else factor) if mode == "adaptive" else None
    return replace(plain, stopper=EigenvalueRise(), roll_back=back)
