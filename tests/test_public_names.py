"""The public surface: every name exists, is sorted, is documented, and its examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import hwnas
from hwnas import errors

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(hwnas.__path__, "hwnas.") if not m.name.endswith("__main__")]


def test_all_is_sorted_and_resolves() -> None:
    assert hwnas.__all__ == sorted(hwnas.__all__)
    assert set(dir(hwnas)) == set(hwnas.__all__)
    for name in hwnas.__all__:
        assert getattr(hwnas, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hwnas.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "hwnas" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    seen = {alias.name: n.module for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == {name: f"hwnas.{module}" for name, module in hwnas._MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented_and_examples_run(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__, f"{module} has no docstring"
    for name, value in vars(loaded).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{module}.{name} has no docstring"
    result = doctest.testmod(loaded)
    assert result.failed == 0


def test_the_error_tree_drawn_in_words_is_the_real_one() -> None:
    drawn = {line.split()[0] for line in (errors.__doc__ or "").splitlines() if "Error" in line.split("(")[0]}
    real = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, errors.HwnasError)}
    assert {name for name in drawn if name.endswith("Error")} == real
    for name in real - {"HwnasError"}:
        builtin = [c for c in getattr(errors, name).__mro__ if c.__module__ == "builtins"]
        assert builtin[0] not in (Exception, object), f"{name} is no builtin error"
