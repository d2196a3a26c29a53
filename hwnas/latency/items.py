"""What a sweep times: operators and whole networks, as what a profiler consumes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from hwnas.metrics import Progress, no_progress
from hwnas.onnx_graph import export_many, join
from hwnas.ops.blocks import build_op
from hwnas.ops.wiring import Wired
from hwnas.space import Architecture, OpSignature, SearchSpace, Shape, Wiring, chained

if TYPE_CHECKING:
    from hwnas.plugins import Profiler

EXPORTED_TOGETHER = 16
"""Operators a pass of the exporter; more take more memory and give less news of progress."""


@dataclass(frozen=True)
class Item:
    """Something to time: operators that feed one another.

    Args:
        key: Its name in the journal: a signature's text or an architecture's id.
        operators: In the order in which they run.
        wiring: Where each takes its input from.
    """

    key: str
    operators: tuple[OpSignature, ...]
    wiring: Wiring

    @classmethod
    def operator(cls, signature: OpSignature, key: str = "") -> Item:
        """One operator alone."""
        return cls(key or str(signature), (signature,), chained(1))

    @classmethod
    def network(cls, space: SearchSpace, architecture: Architecture) -> Item:
        """A whole network."""
        layers, wiring = space.network(architecture)
        return cls(architecture.id, tuple(layers.values()), wiring)

    @property
    def input_shape(self) -> Shape:
        """Channels, height, width of what goes in."""
        return self.operators[0].in_shape


def models_for(
    items: Sequence[Item], profiler: Profiler, progress: Progress = no_progress
) -> Iterator[tuple[bytes | nn.Module, nn.Module]]:
    """Every item in turn, as what the profiler consumes, and as a module.

    Operators shared by items are built and exported once; a network's graph is its operators' graphs, joined.
    """
    modules = {s: build_op(s).eval() for s in dict.fromkeys(s for item in items for s in item.operators)}
    graphs = _export_operators(modules, profiler.environment().batch, progress) if profiler.consumes == "onnx" else {}
    for item in items:
        module = Wired(*(modules[s] for s in item.operators), wiring=item.wiring).eval()
        if graphs:
            yield join([graphs[s] for s in item.operators], item.wiring).SerializeToString(), module
        else:
            yield module, module


def _export_operators(
    modules: Mapping[OpSignature, nn.Module], batch: int, progress: Progress
) -> dict[OpSignature, Any]:
    graphs: dict[OpSignature, Any] = {}
    signatures = list(modules)
    for start in range(0, len(signatures), EXPORTED_TOGETHER):
        progress("exporting operators", start, len(signatures))
        part = signatures[start : start + EXPORTED_TOGETHER]
        exported = export_many([modules[s] for s in part], [s.in_shape for s in part], batch=batch)
        graphs.update(zip(part, exported, strict=True))
    progress("exporting operators", len(signatures), len(signatures))
    return graphs
