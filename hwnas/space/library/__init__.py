"""The named search spaces; a new one is a function here and a line in ``SPACES``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from hwnas.errors import UnknownNameError, UsageError
from hwnas.space.library.darts import darts_cell, gold_nas, robust_darts
from hwnas.space.library.fbnet import fbnet, fbnet_cifar
from hwnas.space.library.mbconv import mobilenetv2, proxylessnas, tiny_mbconv
from hwnas.space.library.nas_bench import nas_bench_201, nas_bench_macro
from hwnas.space.search_space import SearchSpace

SPACES: dict[str, Callable[..., SearchSpace]] = {
    "darts-cell": darts_cell,
    "fbnet": fbnet,
    "fbnet-cifar": fbnet_cifar,
    "gold-nas": gold_nas,
    "mobilenetv2": mobilenetv2,
    "nas-bench-201": nas_bench_201,
    "nas-bench-macro": nas_bench_macro,
    "proxylessnas": proxylessnas,
    "robust-darts": robust_darts,
    "tiny-mbconv": tiny_mbconv,
}


FLAGS = ("resolution", "num_classes", "width")
"""Options that the commands have a flag for; all others stand behind the name of the space."""

LARGEST = 1_000_000
"""No option of a space comes near; sizes that follow from it stay numbers that can be worked with."""


def create_space(name: str, **options: float) -> SearchSpace:
    """Builds a named space.

    Args:
        name: One of ``SPACES``.
        options: Keyword arguments of that space, such as ``resolution`` and ``num_classes``.

    Raises:
        UnknownNameError: No space of that name; lists them.
        UsageError: The space takes no such option, or not that value; says what it takes.

    Example:
        >>> create_space("tiny-mbconv", resolution=32).size
        40000
    """
    if name not in SPACES:
        raise UnknownNameError.among("space", name, SPACES)
    known = inspect.signature(SPACES[name]).parameters
    for option in options:
        if option not in known:
            raise UsageError(f"space '{name}' has no option '{option}'; it takes {', '.join(known)}.")
        default = known[option].default
        accepted = (int, float) if isinstance(default, float) else int
        value = options[option]
        if isinstance(value, bool) or not isinstance(value, accepted) or not value <= LARGEST:
            raise UsageError(
                f"space '{name}' takes {option} as {type(default).__name__} of at most {LARGEST:,}; "
                f"got {value!r:.80}. The default is {default}."
            )
    return SPACES[name](**options)


def spelled(name: str, options: Mapping[str, float], *, flags: Sequence[str] = FLAGS) -> dict[str, float | str]:
    """How a command is told of a space: ``space``, and what is given by flags; defaults are left out.

    Args:
        name: Of the space.
        options: It was created with.
        flags: Options that are given by a flag.

    Example:
        >>> spelled("darts-cell", {"resolution": 64, "channels": 8, "inputs": 2})
        {'space': 'darts-cell:channels=8', 'resolution': 64}
    """
    known = inspect.signature(SPACES[name]).parameters if name in SPACES else {}
    chosen = {key: value for key, value in options.items() if key not in known or value != known[key].default}
    behind = listed({key: value for key, value in chosen.items() if key not in flags})
    return {"space": f"{name}:{behind}" if behind else name, **{key: chosen[key] for key in flags if key in chosen}}


def listed(options: Mapping[str, float]) -> str:
    """Options as ``NAME=NUMBER,NAME=NUMBER``, which commands read behind the name of a space and after ``--proxy``."""
    return ",".join(f"{key}={value}" for key, value in options.items())
