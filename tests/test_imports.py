"""Imports run one way, heavy packages stay inside the plug-in that needs them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = ["space", "ops", "latency", "supernet", "search", "recipes"]
"""Each may import itself and those before it."""

SHARED = {
    "errors",
    "_version",
    "documents",
    "files",
    "plugins",
    "memory",
    "rehearsal",
    "metrics",
    "checkpoint",
    "compute",
    "data",
    "distributed",
    "run",
    "onnx_graph",
    "tensorrt_engine",
}
"""Modules beside the layers that layers may use."""

ABOVE = {
    "steps",
    "accuracy",
    "training",
    "demo",
    "cli",
    "cli_devices",
    "cli_options",
    "cli_profile",
    "cli_tables",
    "cli_train",
    "console",
    "testing",
    "__main__",
}
"""Modules that no layer may use."""

PLUGIN_PACKAGES = {"tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "onnxscript", "sklearn"}

TORCH_FREE = ["hwnas", "hwnas.cli", "hwnas.space", "hwnas.plugins", "hwnas.latency.table", "hwnas.latency.environment",
              "hwnas.latency.budget", "hwnas.latency.model", "hwnas.run"]  # fmt: skip


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute names imported anywhere in a file, and whether at module level (type-checking blocks excluded)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, id(node) not in inside


@pytest.mark.parametrize("path", sources("hwnas"), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_inside_the_core(path: Path) -> None:
    layer = path.relative_to(ROOT / "hwnas").parts[0].removesuffix(".py")
    for name, _ in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("profilers", "deploy", "latency_tables"), f"{name}: bare plug-in folder"
        if parts[0] != "hwnas" or len(parts) == 1:
            continue
        assert parts[1] not in ("profilers", "deploy"), f"{name}: ask hwnas.plugins instead"
        if layer in LAYERS:
            assert parts[1] not in ABOVE, f"{name}: layers do not know the steps above them"
            assert parts[1] in SHARED or LAYERS.index(parts[1]) <= LAYERS.index(layer), f"{name}: arrow reversed"


@pytest.mark.parametrize("path", sources("profilers", "deploy"), ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_import_siblings_relatively(path: Path) -> None:
    for name, _ in imports(path):
        assert name.split(".")[0] not in ("profilers", "deploy"), f"{name}: would make a second copy"
        assert not name.startswith(("hwnas.profilers", "hwnas.deploy")), f"{name}: use a relative import"


@pytest.mark.parametrize("path", sources("hwnas", "profilers", "deploy"), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    top_level = {name.split(".")[0] for name, at_top in imports(path) if at_top}
    assert not top_level & PLUGIN_PACKAGES


@pytest.mark.parametrize("path", sources("hwnas/space"), ids=lambda p: p.name)
def test_space_uses_the_standard_library_only(path: Path) -> None:
    roots = {name.split(".")[0] for name, _ in imports(path)}
    assert roots <= set(sys.stdlib_module_names) | {"hwnas"}


@pytest.mark.parametrize("path", sources("hwnas", "profilers", "deploy"), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0  # type: ignore[operator]
            length = (node.end_lineno or 0) - node.lineno + 1 - doc
            assert length <= 45, f"{node.name} has {length} lines without its docstring"


def test_the_core_imports_without_torch_and_without_plugin_packages() -> None:
    code = (
        f"import sys, importlib\nfor name in {TORCH_FREE!r}: importlib.import_module(name)\n"
        f"loaded = {{'torch', 'torchvision', *{sorted(PLUGIN_PACKAGES)!r}}} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_everything_imports_without_plugin_packages() -> None:
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in sources("hwnas")
        if p.name != "__main__.py"
    ]
    code = (
        f"import sys, importlib\nfor name in {sorted(PLUGIN_PACKAGES)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
