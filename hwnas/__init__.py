"""Hardware-aware neural architecture search with latency lookup tables.

Names are imported on first use, so that ``import hwnas`` is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hwnas._version import __version__

if TYPE_CHECKING:
    from hwnas.data import load_data
    from hwnas.errors import HwnasError
    from hwnas.latency.budget import Budget, feasible_range_ms
    from hwnas.latency.environment import Environment
    from hwnas.latency.measure import measure
    from hwnas.latency.measurement import Measurement
    from hwnas.latency.model import LatencyModel
    from hwnas.latency.sweep import profile
    from hwnas.latency.table import LatencyTable
    from hwnas.plugins import create_exporter, create_profiler
    from hwnas.recipes import create_recipe
    from hwnas.run import RunFolder
    from hwnas.search.recipe import Recipe
    from hwnas.space.architecture import Architecture
    from hwnas.space.library import create_space
    from hwnas.space.search_space import SearchSpace
    from hwnas.space.signature import OpSignature
    from hwnas.steps import adopt_run, export_run, search_run, train_run
    from hwnas.supernet.gates import Gate, one_hot_gates
    from hwnas.supernet.supernet import Network, Supernet, extract, recalibrate_batchnorm
    from hwnas.training import TrainingOptions, evaluate, train

_MODULES = {
    "Architecture": "space.architecture",
    "Budget": "latency.budget",
    "Environment": "latency.environment",
    "Gate": "supernet.gates",
    "HwnasError": "errors",
    "LatencyModel": "latency.model",
    "LatencyTable": "latency.table",
    "Measurement": "latency.measurement",
    "Network": "supernet.supernet",
    "OpSignature": "space.signature",
    "Recipe": "search.recipe",
    "RunFolder": "run",
    "SearchSpace": "space.search_space",
    "Supernet": "supernet.supernet",
    "TrainingOptions": "training",
    "adopt_run": "steps",
    "create_exporter": "plugins",
    "create_profiler": "plugins",
    "create_recipe": "recipes",
    "create_space": "space.library",
    "evaluate": "training",
    "export_run": "steps",
    "extract": "supernet.supernet",
    "feasible_range_ms": "latency.budget",
    "load_data": "data",
    "measure": "latency.measure",
    "one_hot_gates": "supernet.gates",
    "profile": "latency.sweep",
    "recalibrate_batchnorm": "supernet.supernet",
    "search_run": "steps",
    "train": "training",
    "train_run": "steps",
}

__all__ = [
    "Architecture",
    "Budget",
    "Environment",
    "Gate",
    "HwnasError",
    "LatencyModel",
    "LatencyTable",
    "Measurement",
    "Network",
    "OpSignature",
    "Recipe",
    "RunFolder",
    "SearchSpace",
    "Supernet",
    "TrainingOptions",
    "__version__",
    "adopt_run",
    "create_exporter",
    "create_profiler",
    "create_recipe",
    "create_space",
    "evaluate",
    "export_run",
    "extract",
    "feasible_range_ms",
    "load_data",
    "measure",
    "one_hot_gates",
    "profile",
    "recalibrate_batchnorm",
    "search_run",
    "train",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hwnas' has no attribute '{name}'")
    return getattr(import_module(f"hwnas.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
