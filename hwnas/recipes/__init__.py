"""Published methods, one file each; a new one is a file here whose function has the file's name."""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
import runpy
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from hwnas.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwnas.search.recipe import Recipe


def recipe_names() -> dict[str, str]:
    """Name -> one line about it, read from the files without importing them."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files}
    return {name: doc.splitlines()[0] for name, doc in docs.items()}


def recipe_arguments() -> dict[str, tuple[str, ...]]:
    """Name -> names of its arguments, read from the files without importing them."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem: _arguments(ast.parse(file.read_text(encoding="utf-8")), file.stem) for file in files}


def _arguments(module: ast.Module, function: str) -> tuple[str, ...]:
    (found,) = (part for part in module.body if isinstance(part, ast.FunctionDef) and part.name == function)
    return tuple(each.arg for each in (*found.args.args, *found.args.kwonlyargs))


def create_recipe(name: str, **arguments: Any) -> Recipe:
    """Builds a recipe.

    Args:
        name: One of ``recipe_names()``, or ``FILE.py:FUNCTION`` for one of your own.
        arguments: Keyword arguments of that recipe, such as ``num_epochs``.

    Raises:
        UnknownNameError: No recipe of that name; lists them.
        UsageError: The recipe takes no such argument; lists those it takes. Or one is infinite or NaN, or the file
            holds no such function.
    """
    function = _function(name)
    known = inspect.signature(function).parameters
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"recipe '{name}' has no argument '{argument}'; it takes {', '.join(known) or 'none'}.")
    _check_types(name, function, arguments)
    recipe = function(**arguments)
    if type(recipe).__name__ != "Recipe":
        raise UsageError(f"{name} returned a {type(recipe).__name__}; expected a hwnas.Recipe.")
    return recipe  # type: ignore[no-any-return]


def recipe_origin(name: str) -> dict[str, str]:
    """Hash of the file that a recipe of your own comes from; nothing for a named one."""
    path, in_file, _ = name.rpartition(".py:")
    return {"sha256": hashlib.sha256(Path(f"{path}.py").read_bytes()).hexdigest()} if in_file else {}


def _check_types(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    for argument, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"recipe '{name}' got {argument}={value}; expected a finite number. Correct it.")
    for argument, kind in get_type_hints(function).items():
        if argument not in arguments:
            continue
        value, options = arguments[argument], get_args(kind)
        if get_origin(kind) is Literal:
            fits, expected = value in options, " or ".join(map(repr, options))
        elif kind in (bool, int, float, str):
            accepted = (int, float) if kind is float else kind
            fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
            expected = kind.__name__
        else:
            continue
        if not fits:
            raise UsageError(f"recipe '{name}' takes {argument} as {expected}; got {value!r}.")


def _function(name: str) -> Callable[..., Any]:
    path, in_file, function = name.rpartition(".py:")
    if not in_file:
        if name not in recipe_names():
            raise UnknownNameError.among("recipe", name, recipe_names())
        return getattr(import_module(f"{__name__}.{name}"), name)  # type: ignore[no-any-return]
    file = Path(f"{path}.py")
    if not file.is_file():
        raise UsageError(
            f"recipe file {file} does not exist. Give FILE.py:FUNCTION, or a name of 'hwnas list recipes'."
        )
    members = runpy.run_path(str(file))
    if not callable(members.get(function)):
        known = ", ".join(key for key, value in members.items() if inspect.isfunction(value)) or "none"
        raise UsageError(f"{file} has no function '{function}'; it has {known}.")
    return members[function]  # type: ignore[no-any-return]
