"""Which options leave a search at the end of an epoch; weights of edges do not matter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from hwnas.errors import UsageError
from hwnas.search.protocols import Candidates, Pruner
from hwnas.search.step import SearchStep
from hwnas.search.surviving import surviving
from hwnas.space import NONE, SearchSpace


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
        model, probabilities = step.budget.model, step.within()
        left = {name: _among(step, name, p) for name, p in probabilities.items()}
        gone, before = 0, _operators(left, model.space)
        for p, name, option in _weakest_first(probabilities, left, model.space):
            enough = p >= self.threshold and gone >= self.at_least
            if enough or (self.to_limit and _keeps_limit(step, probabilities, left)):
                break
            fewer = _without(left, name, option, model.space)
            if fewer is not None:
                left = fewer
                gone = before - _operators(left, model.space)
        return left


def _among(step: SearchStep, name: str, p: Tensor) -> tuple[int, ...]:
    return step.state.candidates.get(name, tuple(range(len(p))))


def _weakest_first(
    probabilities: Mapping[str, Tensor], left: Candidates, space: SearchSpace
) -> Iterator[tuple[float, str, int]]:
    found = [
        (float(probabilities[name][k]), name, k)
        for name, among in left.items()
        for k in among
        if k != space.idle.get(name)
    ]
    return iter(sorted(found))


def _operators(left: Candidates, space: SearchSpace) -> int:
    """How many are left, ``none`` where it is not searched apart."""
    return sum(k != space.idle.get(name) for name, among in left.items() for k in among)


def _keeps_limit(step: SearchStep, probabilities: Mapping[str, Tensor], left: Candidates) -> bool:
    space = step.budget.model.space
    if not space.permits(row := surviving({name: _only(p, left[name]) for name, p in probabilities.items()}, space)):
        return False
    return step.budget.allows(float(step.budget.model.exact_ms_many([row])[0]))


def _only(p: Tensor, among: tuple[int, ...]) -> Tensor:
    return p.new_zeros(len(p)).index_copy(0, index := p.new_tensor(among).long(), p[index])


def _without(left: Candidates, name: str, option: int, space: SearchSpace) -> dict[str, tuple[int, ...]] | None:
    """What is left without an option and what dies with it; None if the option has gone already, or has to stay."""
    if option not in left[name]:
        return None
    rest = tuple(k for k in left[name] if k != option)
    options, in_node = space.choice(name).options, any(name in node.choices for node in space.nodes)
    if not rest and (in_node or NONE not in options):
        return None
    return without_dead({**left, name: rest or (options.index(NONE),)}, space)


def without_dead(left: Candidates, space: SearchSpace) -> dict[str, tuple[int, ...]] | None:
    """The same with ``none`` for every choice whose operators nothing reaches, or that reach nothing, in any layer.

    Args:
        left: Choice name -> numbers of the options that are left.
        space: Of at most one choice a layer; its wiring is followed.

    Returns:
        Candidates, or None where nothing reaches the output any more.
    """
    dead = [
        all(layer.signatures[k].op == NONE for k in (left[layer.choices[0]] if layer.choices else (0,)))
        for layer in space.layers
    ]
    reached: list[bool] = []
    for gone, sources in zip(dead, space.wiring, strict=True):
        reached.append(not gone and any(i < 0 or reached[i] for i in sources))
    if not reached[-1]:
        return None
    used = [False] * (len(dead) - 1) + [True]
    for position in reversed(range(len(dead))):
        for source in space.wiring[position] if used[position] and reached[position] else ():
            if source >= 0:
                used[source] = True
    alive = {name for layer, r, u in zip(space.layers, reached, used, strict=True) if r and u for name in layer.choices}
    fixed = {name for node in space.nodes for name in node.choices}
    lost = {
        name: (space.choice(name).options.index(NONE),)
        for name in left
        if name not in alive | fixed and NONE in space.choice(name).options
    }
    return {**left, **lost}
