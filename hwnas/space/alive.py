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
    chosen = dict(zip(space.choice_names, columns, strict=True))
    alive = _alive([_runs(space, position, chosen) for position in range(len(space.layers))], space)
    lives, found = _lives(alive, space), list(columns)
    for position, choice in enumerate(space.choices):
        if choice.name in lives:
            here = lives[choice.name]
            found[position] = found[position] * here + choice.options.index(NONE) * (1 - here)
    return found, alive[-1]


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
    lost = [name for name, here in _lives(alive, space).items() if name in left and not here]
    return {**left, **{name: (space.choice(name).options.index(NONE),) for name in lost}} if alive[-1] else None


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
    """Of every choice that may be ``none``, whatever others are, whether an operator of it is alive."""
    fixed = {name for node in space.nodes for name in node.choices}
    found = {choice.name: False for choice in space.choices if NONE in choice.options and choice.name not in fixed}
    for here, layer in zip(alive, space.layers, strict=True):
        for name in found.keys() & layer.choices:
            found[name] = found[name] | here
    return found


def _any(values: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, values, False)
