"""A space small enough to enumerate, and a device that computes its latency by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.latency.environment import Environment
from hwnas.latency.measurement import summarise
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.space import Choice, LayerSpec, OpSignature, SearchSpace, macs

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space import Shape

CALL_MS = 0.01
"""What every operator of the analytic device costs before it computes anything."""

MACS_PER_MS = 1e6


def toy_space(*, num_layers: int = 3, resolution: int = 8, num_classes: int = 10) -> SearchSpace:
    """``num_layers`` choices of MBConv k3 e2, k5 e2 or none, on 8 channels; 3 ** num_layers networks."""
    shape: Shape = (8, resolution // 2, resolution // 2)
    options = {
        "k3_e2": OpSignature.create("mbconv", shape, 8, k=3, e=2, r=1),
        "k5_e2": OpSignature.create("mbconv", shape, 8, k=5, e=2, r=1),
        "skip": OpSignature.create("skip", shape, 8),
    }
    names = [f"layer{i + 1}" for i in range(num_layers)]
    stem = OpSignature.create("conv", (3, resolution, resolution), 8, stride=2, k=3)
    return SearchSpace(
        "toy",
        stem.in_shape,
        num_classes,
        tuple(Choice(name, tuple(options)) for name in names),
        (
            LayerSpec("stem", (stem,)),
            *(LayerSpec(name, tuple(options.values()), (name,)) for name in names),
            LayerSpec("classifier", (OpSignature("classifier", shape, (num_classes, 1, 1)),)),
        ),
    )


def analytic_ms(signature: OpSignature) -> float:
    """Latency of one operator on the analytic device."""
    return CALL_MS + macs(signature) / MACS_PER_MS


def toy_table(space: SearchSpace) -> LatencyTable:
    """A complete table of the analytic device, without calibration networks."""
    entries = {s: summarise([[analytic_ms(s)] * 5] * 2) for s in space.signatures()}
    return LatencyTable(AnalyticProfiler().environment(), entries)


def toy_latency_model() -> tuple[SearchSpace, LatencyModel]:
    """The toy space and its latency model.

    Example:
        >>> space, model = toy_latency_model()
        >>> fast, slow = space.architecture([2, 2, 2]), space.architecture([1, 1, 1])
        >>> model.exact_ms(fast) < model.exact_ms(slow)
        True
    """
    space = toy_space()
    return space, LatencyModel.from_table(space, toy_table(space))


class AnalyticProfiler:
    """A device whose latency is a formula of the multiply-adds, exactly repeatable.

    Args:
        device: Its name.
        noise: Largest relative slowdown of a run, drawn from a fixed seed.
        precision, batch, threads: Recorded; they change nothing.
    """

    consumes: Literal["module"] = "module"

    def __init__(
        self,
        *,
        device: str = "formula",
        noise: float = 0.0,
        precision: str = "fp32",
        batch: int = 1,
        threads: int = 1,
    ) -> None:
        self._environment = Environment(device, "analytic", "1.0", precision, batch, threads, "formula")
        self._noise = noise

    def environment(self) -> Environment:
        """A made-up device."""
        return self._environment

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> AnalyticSession:
        """Counts the module's multiply-adds."""
        assert isinstance(model, nn.Module)
        return AnalyticSession(model, (self._environment.batch, *input_shape), self._noise)


class AnalyticSession:
    """One module with its computed latency."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...], noise: float) -> None:
        self._module = module.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._module(torch.zeros(shape))
        calls = len(module) if isinstance(module, nn.Sequential) else 1
        self._ms = calls * CALL_MS + counter.get_total_flops() / 2 / MACS_PER_MS
        self._rng, self._noise = np.random.default_rng(0), noise

    def run(self, images: np.ndarray) -> np.ndarray:
        """Runs the module."""
        with torch.no_grad():
            return np.asarray(self._module(torch.from_numpy(images)).numpy())

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Five computed times."""
        return [self._ms * (1 + self._noise * float(self._rng.random())) for _ in range(5)]

    def close(self) -> None:
        """Nothing to free."""


def save_toy_table(folder: Path) -> LatencyTable:
    """The toy table as files."""
    return toy_table(toy_space()).save(folder / "toy.csv")
