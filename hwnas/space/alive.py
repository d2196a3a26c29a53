"""Which operators of a network lie on a way from the image to the output; all others change nothing."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwnas.space.signature import NONE

if TYPE_CHECKING:
    from hwnas.space.search_space import SearchSpace


def tidied(columns: Sequence[Any], space: SearchSpace) -> tuple[list[Any], Any]:
    """The same networks with ``none`` for every choice whose operators change nothing.

    An operator changes nothing where only zeros reach it, or where nothing reads it, in any layer. Edges of nodes that
    keep a fixed number stay.

    Args:
        columns: Of every choice in order, its option index: an integer, or an array of one for each of many networks.
        space: Its wiring is followed.

    Returns:
        Columns of the same kind; and whether the image reaches the output.
    """
    if not space.free:
        return list(columns), True
    chosen = dict(zip(space.choice_names, columns, strict=True))
    alive = _alive([_runs(space, position, chosen) for position in range(len(space.layers))], space)
    lives = _lives(alive, space)
    for name, none in space.free.items():
        chosen[name] = chosen[name] * lives[name] + none * (1 - lives[name])
    return list(chosen.values()), alive[-1]


def whole(row: Sequence[int], space: SearchSpace) -> bool:
    """Whether the image reaches the output of a network, and no operator of it changes nothing.

    Args:
        row: Option index of every choice in order.
        space: Its wiring is followed.
    """
    return tidied(row, space) == ([*row], True)


def without_dead(left: Mapping[str, tuple[int, ...]], space: SearchSpace) -> dict[str, tuple[int, ...]] | None:
    """The same with ``none`` for every choice whose operators nothing reaches, or that reach nothing, in any layer.

    Args:
        left: Choice name -> numbers of the options that are left.
        space: Its wiring is followed.

    Returns:
        Candidates, or None where nothing reaches the output any more.
    """
    runs = [
        any(
            signature.op != NONE
            for k, signature in enumerate(layer.signatures)
            if len(layer.choices) != 1 or k in left[layer.choices[0]]
        )
        for layer in space.layers
    ]
    alive = _alive(runs, space)
    lives = _lives(alive, space)
    lost = {name: (none,) for name, none in space.free.items() if name in left and not lives[name]}
    return {**left, **lost} if alive[-1] else None


def _runs(space: SearchSpace, position: int, chosen: Mapping[str, Any]) -> Any:
    """Whether a layer is more than ``none``."""
    layer = space.layers[position]
    nothing = [k for k, signature in enumerate(layer.signatures) if signature.op == NONE]
    if not nothing or not layer.choices:
        return not nothing
    row = space.row(layer, chosen)
    return functools.reduce(operator.and_, (row != k for k in nothing))


def _alive(runs: Sequence[Any], space: SearchSpace) -> list[Any]:
    """Of every layer, whether it lies on a way from the image to the output, given which of them run."""
    reached: list[Any] = []
    for here, sources in zip(runs, space.wiring, strict=True):
        reached.append(here & _any(True if i < 0 else reached[i] for i in sources))
    found: list[Any] = [False] * (len(reached) - 1) + [True]
    for position in reversed(range(len(found))):
        found[position] = found[position] & reached[position]
        for source in space.wiring[position]:
            if source >= 0:
                found[source] = found[source] | found[position]
    return found


def _lives(alive: Sequence[Any], space: SearchSpace) -> dict[str, Any]:
    """Of every free choice, whether an operator of it is alive."""
    found = dict.fromkeys(space.free, False)
    for here, layer in zip(alive, space.layers, strict=True):
        for name in found.keys() & layer.choices:
            found[name] = found[name] | here
    return found


def _any(values: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, values, False)
