"""Whether a document that somebody else wrote is what its reader expects."""

from __future__ import annotations

import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar, Union, get_args, get_origin, get_type_hints

from hwnas.errors import RunError
from hwnas.files import read_json

T = TypeVar("T")


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    low: float
    high: float


LARGEST = 1e18
"""No figure comes near, and arithmetic with such stays finite."""

Figure = Annotated[float, Within(-LARGEST, LARGEST)]
Count = Annotated[int, Within(0, LARGEST)]
Share = Annotated[float, Within(0, 1)]
LARGEST_MS = 1e9
"""No latency comes near."""

Positive = Annotated[float, Within(1e-6, LARGEST_MS)]
Milliseconds = Positive


def read_document(path: Path | str, kind: type[T]) -> T:
    """Reads a JSON file of one of the types of this package.

    Raises:
        RunError: It is missing, no JSON or not of that type; names the place.
    """
    document = read_json(path)
    try:
        return fitting(document, kind)
    except ValueError as error:
        raise RunError(f"{path}: {error}. Restore it or run the step again.") from error


def fitting(value: Any, kind: type[T], where: str = "") -> T:
    """The value itself, if it is of that type.

    Objects must have the keys that their ``TypedDict`` requires, and may have others. Numbers must be within the
    bounds of their ``Annotated``; a bool is no number.

    Args:
        value: As JSON gives it.
        kind: A ``TypedDict``, or made of ``dict``, ``list``, ``| None``, ``Annotated``, scalars and ``Any``.
        where: Begins the name of the place in an error.

    Raises:
        ValueError: It is not; names the place.

    Example:
        >>> from hwnas.documents.run import TableReference
        >>> fitting({"path": "a.csv", "sha256": 5}, TableReference)
        Traceback (most recent call last):
        ValueError: sha256 is 5; expected str
    """
    _check(value, kind, where)
    return value  # type: ignore[no-any-return]


def _check(value: Any, kind: Any, where: str) -> None:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and type(None) in arguments):
        return
    if origin is Annotated:
        plain, bounds = arguments
        _check(value, plain, where)
        _expect(bounds.low <= value <= bounds.high, value, f"a number from {bounds.low:g} to {bounds.high:g}", where)
    elif origin in (Union, types.UnionType):
        (only,) = (each for each in arguments if each is not type(None))
        _check(value, only, where)
    elif origin is list:
        _expect(isinstance(value, list), value, "a list", where)
        for number, each in enumerate(value):
            _check(each, arguments[0], f"{where}[{number}]")
    elif origin is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        for key, each in value.items():
            _check(each, arguments[1], _inside(where, key))
    elif issubclass(kind, dict):
        _expect(isinstance(value, dict), value, "an object", where)
        _check_keys(value, kind, where)
    else:
        fits = isinstance(value, (int, float) if kind is float else kind)
        _expect(fits and isinstance(value, bool) == (kind is bool), value, kind.__name__, where)


def _check_keys(value: dict[str, Any], kind: Any, where: str) -> None:
    for key, each in _keys(kind).items():
        optional = get_origin(each) is NotRequired
        if key in value:
            _check(value[key], get_args(each)[0] if optional else each, _inside(where, key))
        elif not optional:
            raise ValueError(f"{where or 'it'} lacks '{key}'")


@cache
def _keys(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _inside(where: str, key: str) -> str:
    return f"{where}.{key:.80}" if where else f"{key:.80}"


def _expect(fits: bool, value: Any, expected: str, where: str) -> None:
    if not fits:
        raise ValueError(f"{where or 'it'} is {value!r:.80}; expected {expected}")
