"""The steps of a run, each from one folder state to the next: search or adopt, train, export."""

from hwnas.steps.adopting import adopt_run
from hwnas.steps.finishing import (
    export_run,
    exported_name,
    sample,
    train_run,
    trained_network,
    training_data,
    weights_hash,
)
from hwnas.steps.inputs import default_target_ms, matching_data, profiler_of, supernet_weights
from hwnas.steps.searching import search_run, tighten_run, write_derivation

__all__ = [
    "adopt_run",
    "default_target_ms",
    "export_run",
    "exported_name",
    "matching_data",
    "profiler_of",
    "sample",
    "search_run",
    "supernet_weights",
    "tighten_run",
    "train_run",
    "trained_network",
    "training_data",
    "weights_hash",
    "write_derivation",
]
