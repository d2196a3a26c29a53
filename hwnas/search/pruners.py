"""Which options leave a search at the end of an epoch; weights of edges do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Candidates, Pruner
from hwnas.search.step import SearchStep
from hwnas.search.surviving import strongest
from hwnas.space import NONE, SearchSpace, without_dead

if TYPE_CHECKING:
    from hwnas.search.recipe import Recipe


@dataclass(frozen=True)
class BelowShare(Pruner):
    """Option k of a choice leaves when ``w_k < share / n``, with ``n`` options left; the largest, ``>= 1/n``, stays.

    Args:
        share: Above 0 and below 1.
        warm_up: Share of the search, from its start, in which nothing leaves.

    Raises:
        UsageError: A number is out of range.

    Source:
        ASAP, arXiv 1904.04123, section 3, with the constant 0.4 of a re-implementation; the paper's own schedule of
        thresholds is not confirmed.
    """

    share: float = 0.4
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 0 <= self.warm_up < 1:
            raise UsageError(
                f"BelowShare got share={self.share:g} and warm_up={self.warm_up:g}; expected above 0 and below 1, and "
                "from 0 to below 1. Leave the share out for 0.4."
            )

    def __call__(self, step: SearchStep) -> Candidates:
        """See ``Pruner``."""
        if step.progress < self.warm_up:
            return step.state.candidates
        left = {}
        for name, p in step.within().items():
            among = _among(step, name, p)
            total = float(p[list(among)].sum())  # less than one where options do not compete
            least = self.share / len(among) * total
            left[name] = tuple(k for k in among if float(p[k]) >= least)
        return left


@dataclass(frozen=True)
class DropWorst(Pruner):
    """The least probable options of every choice leave; one always stays, and of equal ones the first.

    Args:
        count: How many, of every choice.
        every: Epochs from one time to the next.

    Raises:
        UsageError: A number is below 1.

    Source:
        CP-NAS, arXiv 2005.00057, section 3.
    """

    count: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        if min(self.count, self.every) < 1:
            raise UsageError(f"DropWorst drops at least 1 option every 1 epoch; got {self.count} and {self.every}.")

    def check(self, recipe: Recipe) -> None:
        """See ``Pruner``."""
        if 0 < recipe.num_epochs < self.every:
            raise UsageError(
                f"recipe '{recipe.name}' drops nothing in {recipe.num_epochs:g} epochs: the first drop comes after "
                f"{self.every}. Search longer, or drop more often: of cp_nas, epochs_per_round={recipe.num_epochs:g} "
                "or less."
            )

    def __call__(self, step: SearchStep) -> Candidates:
        """See ``Pruner``."""
        if len(step.state.history) % self.every:
            return step.state.candidates
        left = {}
        for name, p in step.within().items():
            best_first = sorted(_among(step, name, p), key=lambda k, p=p: (-float(p[k]), k))  # type: ignore[misc]
            left[name] = tuple(sorted(best_first[: max(1, len(best_first) - self.count)]))
        return left


@dataclass(frozen=True)
class BelowThreshold(Pruner):
    """Options whose probability is below a threshold leave, and so many of the weakest in any case.

    Where the last operator of a choice leaves, ``none`` is what remains, if that is an option and no node keeps a fixed
    number of edges. Operators that nothing reaches any more, or that reach nothing, leave with it: edges from a node
    without edges, which is zero, change no output. One way from the input to the output always stays.

    Args:
        threshold: Above 0 and below 1.
        at_least: Options that leave every epoch, the weakest first.
        to_limit: Nothing leaves any more once the network of the most probable options that are left keeps the limit.

    Raises:
        UsageError: A number is out of range.

    Source:
        GOLD-NAS, arXiv 2007.03331, section 3. The threshold and the least number are not confirmed; that the number
        is enforced is ours.
    """

    threshold: float = 0.01
    at_least: int = 0
    to_limit: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.at_least < 0:
            raise UsageError(
                f"BelowThreshold got threshold={self.threshold:g} and at_least={self.at_least}; expected above 0 and "
                "below 1, and at least 0. A search that never prunes has no pruner."
            )

    def __call__(self, step: SearchStep) -> Candidates:
        """See ``Pruner``."""
        space, probabilities = step.budget.model.space, step.within()
        left = {name: _among(step, name, p) for name, p in probabilities.items()}
        values, idle, gone = {name: p.tolist() for name, p in probabilities.items()}, space.idle, 0
        row = {name: strongest(values[name], left[name], idle.get(name)) for name in space.choice_names}
        for p, name, option in _weakest_first(values, left, idle):
            enough = p >= self.threshold and gone >= self.at_least
            if enough or (self.to_limit and _keeps_limit(step, list(row.values()))):
                break
            fewer = _without(left, name, option, space) or left
            for other in [n for n in fewer if fewer[n] != left[n]]:
                gone += _operators(left[other], idle.get(other)) - _operators(fewer[other], idle.get(other))
                row[other] = strongest(values[other], fewer[other], idle.get(other))
            left = fewer
        return left


def _among(step: SearchStep, name: str, p: Tensor) -> tuple[int, ...]:
    return step.state.candidates.get(name, tuple(range(len(p))))


def _weakest_first(
    values: Mapping[str, Sequence[float]], left: Candidates, idle: Mapping[str, int]
) -> list[tuple[float, str, int]]:
    return sorted((values[name][k], name, k) for name, among in left.items() for k in among if k != idle.get(name))


def _operators(among: Sequence[int], none: int | None) -> int:
    """How many are left, ``none`` where it is not searched apart."""
    return sum(k != none for k in among)


def _keeps_limit(step: SearchStep, row: Sequence[int]) -> bool:
    model = step.budget.model
    return model.space.permits(row) and step.budget.allows(float(model.exact_ms_many([row])[0]))


def _without(left: Candidates, name: str, option: int, space: SearchSpace) -> dict[str, tuple[int, ...]] | None:
    """What is left without an option and what dies with it; None if the option has gone already, or has to stay."""
    if option not in left[name]:
        return None
    rest = tuple(k for k in left[name] if k != option)
    options, in_node = space.choice(name).options, any(name in node.choices for node in space.nodes)
    if not rest and (in_node or NONE not in options):
        return None
    return without_dead({**left, name: rest or (options.index(NONE),)}, space)
