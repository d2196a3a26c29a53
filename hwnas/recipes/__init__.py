"""Published methods, one file each; a new one is a file here whose function has the file's name."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwnas.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from hwnas.search.recipe import Recipe


def recipe_names() -> dict[str, str]:
    """Name -> one line about it, read from the files without importing them."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "" for file in files}
    return {name: doc.splitlines()[0] for name, doc in docs.items()}


def create_recipe(name: str, **arguments: Any) -> Recipe:
    """Builds a recipe.

    Args:
        name: One of ``recipe_names()``.
        arguments: Keyword arguments of that recipe, such as ``num_epochs``.

    Raises:
        UnknownNameError: No recipe of that name; lists them.
        UsageError: The recipe takes no such argument; lists those it takes.
    """
    if name not in recipe_names():
        raise UnknownNameError.among("recipe", name, recipe_names())
    function = getattr(import_module(f"{__name__}.{name}"), name)
    known = inspect.signature(function).parameters
    for argument in arguments:
        if argument not in known:
            raise UsageError(f"recipe '{name}' has no argument '{argument}'; it takes {', '.join(known)}.")
    recipe: Recipe = function(**arguments)
    return recipe
