"""What a run is made from: data, device, limit and weights."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hwnas.checkpoint import load_checkpoint
from hwnas.data import ImageData, load_data
from hwnas.documents import LARGEST_MS
from hwnas.errors import EnvironmentMismatchError, MeasurementError, RunError, UsageError
from hwnas.latency.budget import Budget, feasible_range_ms, rounded_up
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.plugins import create_profiler
from hwnas.run import RunFolder
from hwnas.space import SearchSpace

if TYPE_CHECKING:
    from hwnas.plugins import Profiler

log = logging.getLogger("hwnas")

DEFAULT_TARGET = 0.5
"""Position of the default target between the fastest (0) and the slowest (1) network."""


def default_target_ms(model: LatencyModel) -> float:
    """A limit in the middle of the reachable range, rounded up to three figures."""
    low, high = feasible_range_ms(model)
    return rounded_up(low + DEFAULT_TARGET * (high - low), figures=3)


def target_budget(model: LatencyModel, max_ms: float | None) -> Budget:
    """The limit that was asked for, or the default one.

    Raises:
        UsageError: It is more than the documents of a run hold.
        InfeasibleBudgetError: No network is that fast.
    """
    if max_ms is not None and LARGEST_MS < max_ms < math.inf:
        raise UsageError(f"a limit of {max_ms:g} ms limits nothing. Give milliseconds, such as --max-ms 20.")
    return Budget(model, default_target_ms(model) if max_ms is None else max_ms)


def matching_data(spec: str, space: SearchSpace, seed: int, classes: int | None = None) -> ImageData:
    """A data set at the space's resolution, or that many classes of it.

    Raises:
        UsageError: It has another number of classes than the space.
    """
    images = load_data(spec, resolution=space.input_shape[1], seed=seed, num_classes=classes)
    if len(images.classes) != space.num_classes:
        raise UsageError(
            f"data set '{spec}' has {len(images.classes)} classes, space '{space.name}' was built for "
            f"{space.num_classes}. Pass --num-classes {len(images.classes)} when profiling and searching; "
            "to search on some of the classes, --num-classes with fewer."
        )
    return images


def left_out(images: ImageData) -> int:
    """How many images could not be read since the command was started; logged if there are any."""
    found, total = len(images.train.unreadable) + len(images.val.unreadable), len(images.train) + len(images.val)
    if found:
        log.warning("%d of %d images %s left out.", found, total, "was" if found == 1 else "were")
    return found


def profiler_of(table: LatencyTable) -> Profiler:
    """The profiler that measures what the table measured.

    Raises:
        EnvironmentMismatchError: This machine is not where the table was measured.
    """
    environment = table.environment
    try:
        profiler = create_profiler(
            environment.runtime,
            precision=environment.precision,
            batch=environment.batch,
            threads=environment.threads,
            **environment.arguments,
        )
    except (UsageError, MeasurementError) as error:  # a phone may be elsewhere
        raise EnvironmentMismatchError(
            f"latency table {table.name} ({environment}) cannot be measured here: {error} "
            "Make the device reachable; or search with --other-device, which predicts for it and measures nothing."
        ) from error
    table.require_environment(profiler.environment())
    return profiler


def supernet_weights(space: SearchSpace, path: Path | str | None) -> dict[str, Tensor] | None:
    """The supernet of another run.

    Raises:
        RunError: There is none, or it is of another space.
    """
    if path is None:
        return None
    other = RunFolder.open(path)
    if other.adopted:
        raise RunError(f"{path} has no supernet: its network was given. Start from a search of this space.")
    snapshot = load_checkpoint(other.file("search.pt"), "space", "supernet")
    if snapshot["space"] != space.fingerprint:
        raise RunError(
            f"the supernet of {path} is of another space ({snapshot['space']}, here {space.fingerprint}). "
            "Start from a run of this space, with the same resolution, width and classes."
        )
    weights: dict[str, Tensor] = snapshot["supernet"]
    return weights
