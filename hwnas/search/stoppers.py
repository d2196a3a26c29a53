"""When a search of cells has gone on for too long, and which of its epochs is the result."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hwnas.errors import UsageError
from hwnas.search.derivations.cells import plain_skips, strongest
from hwnas.search.hessian import dominant_eigenvalue
from hwnas.search.op_dropout import without_weights
from hwnas.search.protocols import Epoch, Stopper
from hwnas.search.recipe import Recipe
from hwnas.search.sampling import log_probabilities
from hwnas.search.step import SearchStep
from hwnas.space import SearchSpace

SKIPS, RANKING, EIGENVALUE = "skips", "ranking", "eigenvalue"


@dataclass(frozen=True)
class SkipCount(Stopper):
    """Stops at the first epoch whose derived normal cell has too many skips.

    The cell is that of the rule of DARTS, whatever the limit of the search.

    Args:
        most: Skips at which the search stops; at least 1.
        back: How many epochs before that one the result lies; at least 0. The paper does not say: unconfirmed.

    Raises:
        UsageError: A number is out of range.

    Source:
        DARTS+, arXiv 1909.06035, section 3.2: two skips in one normal cell.
    """

    most: int = 2
    back: int = 0

    def __post_init__(self) -> None:
        if self.most < 1 or self.back < 0:
            raise UsageError(f"SkipCount got {self.most} skips, {self.back} epochs back; expected at least 1 and 0.")

    def check(self, recipe: Recipe, space: SearchSpace) -> None:
        """See ``Stopper``."""
        if not plain_skips(space):
            raise UsageError(
                f"recipe '{recipe.name}' counts the skips of normal cells, of which space '{space.name}' has none "
                "whose nodes keep a number of edges. Use a space such as darts-cell."
            )

    def measure(self, step: SearchStep) -> dict[str, float]:
        """Skips in the derived normal cell."""
        space = step.budget.model.space
        found = strongest(log_probabilities(step.probabilities(), space), space)
        return {SKIPS: float(sum(found[choice] == option for choice, option in plain_skips(space)))}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        """See ``Stopper``."""
        full = (number for number, epoch in enumerate(history, 1) if epoch.figures[SKIPS] >= self.most)
        first = next(full, None)
        return None if first is None else max(1, first - self.back)


@dataclass(frozen=True)
class StableRanking(Stopper):
    """Stops once the operators with weights have kept their order, on every edge, for some epochs in a row.

    An epoch counts if every choice ranks its convolutions as the epoch before did; ``none``, skips and pooling are left
    out, and of equal logits the first option ranks higher.

    Args:
        epochs: In a row; at least 1.
        back: How many epochs before the last one the result lies; at least 0. Unconfirmed.

    Raises:
        UsageError: A number is out of range.

    Source:
        DARTS+, arXiv 1909.06035, section 3.2: ten epochs.
    """

    epochs: int = 10
    back: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.back < 0:
            raise UsageError(
                f"StableRanking got {self.epochs} epochs, {self.back} epochs back; expected at least 1 and 0."
            )

    def check(self, recipe: Recipe, space: SearchSpace) -> None:
        """See ``Stopper``."""
        if all(len(options) < 2 for options in learnable(space).values()):
            raise UsageError(
                f"recipe '{recipe.name}' ranks operators that have weights, of which no choice of space '{space.name}' "
                "has two. Use a space such as darts-cell, or SkipCount()."
            )
        _require_epochs(self, recipe, self.epochs + 1, "epochs")

    def measure(self, step: SearchStep) -> dict[str, float]:
        """A number that stands for the order of the operators."""
        logits, ranks = step.state.logits, list[list[int]]()
        for name, options in learnable(step.budget.model.space).items():
            among = step.state.candidates.get(name, options)
            values = logits[name].tolist()
            ranks.append(sorted((k for k in options if k in among), key=lambda k: (-values[k], k)))
        return {RANKING: float(zlib.crc32(repr(ranks).encode()))}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        """See ``Stopper``."""
        in_a_row, before = 0, None
        for number, epoch in enumerate(history, 1):
            in_a_row, before = (in_a_row + 1 if epoch.figures[RANKING] == before else 0), epoch.figures[RANKING]
            if in_a_row == self.epochs:
                return max(1, number - self.back)
        return None


@dataclass(frozen=True)
class EigenvalueRise(Stopper):
    """Stops when the largest eigenvalue of the Hessian of the loss on architecture images has risen by a factor.

    The loss is without the recipe's terms, such as that of latency, but with the weight decay of the logits. The
    eigenvalue is measured in the first epoch and in every ``every``-th one after it, on one batch. From the third value
    on ``mean(t)`` is that of the last ``window`` values, or of as many as there are, and stands for the epoch in the
    middle of a full window. The search stops when ``mean(t) / mean(t - lag) > ratio``, where the earlier mean is above
    0 and stands for an epoch from ``first`` on; that epoch is the result. With the published numbers it is 12 epochs
    back, and the earliest stop is in epoch 23, counted from 1.

    Args:
        ratio: Of the means.
        window: Values in a mean; odd.
        lag: Values between the means.
        every: Epochs from one value to the next.
        first: Epoch, counted from 0 as published, of the earliest result.

    Raises:
        UsageError: A number is out of range.

    Source:
        RobustDARTS, arXiv 1909.09656, section 4 and released code; the paper writes the inverse ratio, 0.75.
    """

    ratio: float = 1.3
    window: int = 5
    lag: int = 4
    every: int = 2
    first: int = 10

    def __post_init__(self) -> None:
        if self.ratio <= 0 or self.window < 1 or self.window % 2 == 0 or min(self.lag, self.every) < 1:
            raise UsageError(
                f"EigenvalueRise got a ratio of {self.ratio:g}, a window of {self.window}, a lag of {self.lag} and a "
                f"value every {self.every} epochs; expected a positive ratio, an odd window, and at least 1 each."
            )

    @property
    def reach(self) -> int:
        """See ``Stopper``."""
        return (self.lag + self.window // 2) * self.every

    def check(self, recipe: Recipe, space: SearchSpace) -> None:
        """See ``Stopper``."""
        if not recipe.scheme.needs_arch_split:
            raise UsageError(
                f"recipe '{recipe.name}': the eigenvalue is that of a loss on images that train no weights, which "
                f"{type(recipe.scheme).__name__} leaves none. Use Alternating(), or another stopper."
            )
        if recipe.relaxation.probes or not recipe.relaxation.differentiable:
            raise UsageError(
                f"recipe '{recipe.name}': there is no Hessian in the logits of {type(recipe.relaxation).__name__}. "
                "Use Softmax(), or another stopper."
            )
        earliest = -(-max(0, self.first) // self.every) * self.every
        _require_epochs(self, recipe, earliest + self.reach + 1, "first")

    def measure(self, step: SearchStep) -> dict[str, float]:
        """The eigenvalue, in an epoch that is due."""
        if len(step.state.history) % self.every:
            return {}
        decay = float(step.state.arch_optimizer.param_groups[0].get("weight_decay", 0.0))
        return {EIGENVALUE: dominant_eigenvalue(step, step.arch_batch()) + decay}

    def __call__(self, history: Sequence[Epoch]) -> int | None:
        """See ``Stopper``."""
        measured = [(n, epoch.figures[EIGENVALUE]) for n, epoch in enumerate(history, 1) if EIGENVALUE in epoch.figures]
        half = self.window // 2
        means = {}
        for last in range(half, len(measured)):
            values = [value for _, value in measured[max(0, last + 1 - self.window) : last + 1]]
            means[last] = sum(values) / len(values)
            earlier = last - self.lag
            if earlier not in means:
                continue
            number = measured[earlier - half][0]
            if number > self.first and 0 < self.ratio * means[earlier] < means[last]:
                return number
        return None


@dataclass(frozen=True)
class RollBack:
    """Instead of ending where the stopper says, a search goes back there, and on with more weight decay.

    Weights, logits, both optimizers and all else are those of that epoch, bit for bit; only the weight decay is
    multiplied, and figures of epochs before are forgotten, as they were measured under another one. With the largest
    decay the stopper is ignored, and the search does all its epochs.

    Args:
        factor: Of the weight decay, every time; more than 1.
        most: Largest weight decay.

    Raises:
        UsageError: The factor is not more than 1.

    Source:
        DARTS-ADA of RobustDARTS, arXiv 1909.09656, section 5.3, and the scripts of its released code: 10, up to 0.03.
        Its arguments' defaults are 3, up to 0.0243.
        Differs: images and gates after going back are those of before; earlier figures are forgotten; its extra epochs
        after a roll-back (``extra_rollback_epochs``) are left out.
    """

    factor: float = 10.0
    most: float = 0.03

    def __post_init__(self) -> None:
        if self.factor <= 1:
            raise UsageError(f"a roll-back multiplies the weight decay by more than 1; got {self.factor:g}.")

    def check(self, recipe: Recipe) -> None:
        """Refuses a recipe whose search never stops, or not in an earlier epoch, or whose weights do not decay.

        Raises:
            UsageError: Says what would do.
        """
        if recipe.stopper is None:
            raise UsageError(f"recipe '{recipe.name}' has nothing that would trigger a roll-back. Give it a stopper.")
        if recipe.stopper.reach < 1:
            raise UsageError(
                f"recipe '{recipe.name}' cannot roll back: {type(recipe.stopper).__name__} names no earlier epoch that "
                "is kept. Use EigenvalueRise(), or leave roll_back out."
            )
        if self.next(decay_of(recipe.weight_optimizer([nn.Parameter(torch.zeros(1))]))) is None:
            raise UsageError(
                f"recipe '{recipe.name}' rolls back to multiply its weight decay by {self.factor:g} up to "
                f"{self.most:g}, but starts with none, or with as much. Use for example 3e-4."
            )

    def next(self, decay: float) -> float | None:
        """The next weight decay, or None where there is none."""
        return None if not 0 < decay < self.most * (1 - 1e-9) else min(decay * self.factor, self.most)


def decay_of(optimizer: torch.optim.Optimizer) -> float:
    """The weight decay of an optimizer."""
    return float(optimizer.param_groups[0].get("weight_decay", 0.0))


def learnable(space: SearchSpace) -> dict[str, list[int]]:
    """Choice name -> numbers of its options that have weights wherever they are options."""
    free = without_weights(space)
    return {c.name: [k for k, option in enumerate(c.options) if option not in free] for c in space.choices}


def _require_epochs(stopper: Stopper, recipe: Recipe, least: int, argument: str) -> None:
    if recipe.num_epochs < least:
        raise UsageError(
            f"recipe '{recipe.name}' would never stop: {type(stopper).__name__} needs {least} epochs, and there "
            f"are {recipe.num_epochs:g}. Use --epochs {least} or more, or in a recipe of your own a smaller "
            f"'{argument}' of its stopper."
        )
