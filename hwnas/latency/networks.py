"""Named fixed networks, to compare a space or a derived network with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.errors import MeasurementError, UnknownNameError, UsageError
from hwnas.latency.measure import as_consumed, take_turns
from hwnas.latency.measurement import Measurement, failure, summarise
from hwnas.metrics import Progress, no_progress

if TYPE_CHECKING:
    from hwnas.plugins import Profiler, Session


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    name: partial(_torchvision, name)
    for name in (
        "efficientnet_b0",
        "mnasnet1_0",
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
        "resnet18",
        "resnet50",
    )
}
"""Untrained networks of torchvision: latency does not depend on the weights' values."""

NUM_ROUNDS = 24
ROUND_MS = 40.0


@dataclass(frozen=True)
class NetworkResult:
    """One fixed network on a device.

    Args:
        name: One of ``NETWORKS``.
        macs: Multiply-adds of one image.
        parameters: Trainable parameters.
        measurement: Its latency, or why there is none.
    """

    name: str
    macs: int
    parameters: int
    measurement: Measurement


def profile_networks(
    names: Sequence[str],
    profiler: Profiler,
    *,
    resolution: int = 224,
    num_classes: int = 1000,
    num_rounds: int = NUM_ROUNDS,
    progress: Progress = no_progress,
) -> list[NetworkResult]:
    """Measures fixed networks in interleaved rounds, so that they can be compared with one another.

    Args:
        names: Of ``NETWORKS``.
        profiler: The device.
        resolution: Height and width of the images, at least 32.
        num_classes: Outputs.
        num_rounds: Visits to every network.
        progress: Told about every step.

    Returns:
        Results, fastest first; failed ones last.

    Raises:
        UnknownNameError: No such network; lists them.
        UsageError: The images are too small.
    """
    for name in names:
        if name not in NETWORKS:
            raise UnknownNameError.among("network", name, NETWORKS)
    if resolution < 32 or num_rounds < 1:
        raise UsageError(f"networks need a resolution of at least 32 and a round; got {resolution} and {num_rounds}.")
    shape = (3, resolution, resolution)
    modules = {name: NETWORKS[name](num_classes=num_classes).eval() for name in dict.fromkeys(names)}
    sessions: dict[str, Session] = {}
    failures: dict[str, str] = {}
    for number, (name, module) in enumerate(modules.items(), start=1):
        try:
            sessions[name] = profiler.prepare(as_consumed(module, shape, profiler), shape)
        except MeasurementError as error:
            failures[name] = str(error)
        progress("preparing", number, len(modules))
    samples: dict[str, list[list[float]]] = {name: [] for name in sessions}
    for name, visit, found in take_turns(sessions, num_rounds=num_rounds, budget_ms=ROUND_MS):
        if isinstance(found, Exception):
            failures[name] = str(found)
        else:
            samples[name].append(found)
        progress("measuring", visit + 1, num_rounds)
    for session in sessions.values():
        session.close()
    results = [
        NetworkResult(
            name,
            _macs(module, resolution),
            sum(p.numel() for p in module.parameters()),
            failure(failures[name]) if name in failures else summarise(samples[name]),
        )
        for name, module in modules.items()
    ]
    return sorted(results, key=lambda r: (not r.measurement.usable, r.measurement.ms))


def _macs(module: nn.Module, resolution: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, resolution, resolution))
    return int(counter.get_total_flops()) // 2
