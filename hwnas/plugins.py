"""Targets and export formats from any package, found by entry point.

A package adds a device by declaring one entry point in the group ``hwnas.profilers`` (or
``hwnas.exporters``); the core never imports ``hwnas.profilers`` or ``hwnas.deploy`` by name.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

from hwnas.errors import MeasurementError, MissingPackageError, UnknownNameError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hwnas.latency.environment import Environment
    from hwnas.space import Shape

PROFILERS = "hwnas.profilers"
EXPORTERS = "hwnas.exporters"
PROOFS = "hwnas.proofs"
DEVICES = "hwnas.devices"


@runtime_checkable
class Session(Protocol):
    """One network, loaded on the device and ready to run."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Output for images of shape ``(batch, channels, height, width)``, float32."""

    def time_ms(self, *, budget_ms: float) -> list[float]:
        """Runs for about ``budget_ms`` after a short warm-up; the time of every run, synchronised."""

    def close(self) -> None:
        """Frees what the device holds."""


@runtime_checkable
class GroupSession(Session, Protocol):
    """A session that is timed in rounds with others of its device in one go, where every start costs."""

    def time_with(
        self, others: Mapping[str, Any], *, num_rounds: int, budget_ms: float
    ) -> Generator[tuple[str, int, list[float] | MeasurementError]]:
        """Times this network and the others once a round, each for about ``budget_ms``.

        This one comes first in every round, and again between the others. Those that do not fit into memory together
        have rounds of other numbers. Closing the iterator ends it all.

        Args:
            others: Sessions of the same profiler by names of your choice.
            num_rounds: Visits to each.
            budget_ms: For a visit.

        Yields:
            Name (empty for this one), number of the round, and run times in milliseconds; or, once for a network that
            the device refuses, the reason.

        Raises:
            DeviceLostError: The device stopped answering.
        """


@runtime_checkable
class ManySession(Session, Protocol):
    """A session that tells whether its ``run`` also takes several batches at once, because every start costs."""

    many: bool


@runtime_checkable
class Profiler(Protocol):
    """One target: a runtime on a device.

    ``consumes`` says what ``prepare`` takes: ``onnx`` (the bytes of a model) or ``module`` (a PyTorch
    module in evaluation mode).
    """

    consumes: Literal["onnx", "module"]

    def environment(self) -> Environment:
        """The conditions under which this profiler measures."""

    def prepare(self, model: bytes | nn.Module, input_shape: Shape) -> Session:
        """Loads a model for inputs of ``(environment().batch, *input_shape)``.

        Raises:
            MeasurementError: The device refuses the model; the sweep records it and goes on.
        """


@runtime_checkable
class NodeTimer(Protocol):
    """A profiler that tells how long the parts of a network take."""

    def node_ms(self, model: bytes, *, budget_ms: float) -> dict[str, float]:
        """Milliseconds of every node that runs, by name, over about ``budget_ms``; nothing where they cannot be told.

        A network is slower while its nodes are timed. ``model`` is an exported file, as it is.
        """


@runtime_checkable
class Exporter(Protocol):
    """One deployment format; how to write it, as its precision, is said when the exporter is made.

    ``suffix`` ends the names of its files.
    """

    suffix: str

    def export(
        self,
        network: nn.Module,
        path: Path,
        *,
        input_shape: Shape,
        metadata: Mapping[str, str],
        calibration: Iterable[np.ndarray] | None = None,
    ) -> Path:
        """Writes the network to ``path`` and returns the path; the file is complete or absent.

        Args:
            network: In evaluation mode.
            path: Ends with ``suffix``.
            input_shape: Channels, height, width.
            metadata: Kept with the network.
            calibration: Float32 images of shape ``(batch, channels, height, width)``, normalised like those the network
                was trained on; they fix the ranges of 8-bit activations.
        """


@dataclass(frozen=True)
class Plugin:
    """An installed entry point, described without importing it.

    Args:
        name: What the user types.
        target: ``module:attribute``.
        missing: Requirements of the entry point's extra that are not installed.
        remedy: The command that installs them.
    """

    name: str
    target: str
    missing: tuple[str, ...]
    remedy: str


def available(group: str) -> dict[str, Plugin]:
    """Every plug-in of a group by name; imports none of them."""
    return {point.name: _describe(point) for point in sorted(metadata.entry_points(group=group), key=lambda p: p.name)}


def load(group: str, name: str) -> Any:
    """The object an entry point names.

    Raises:
        UnknownNameError: No such plug-in; lists those installed.
        MissingPackageError: A package it needs is absent; names the command that installs it.
    """
    kind = group.removeprefix("hwnas.").removesuffix("s")
    points = {point.name: point for point in metadata.entry_points(group=group)}
    if name not in points:
        raise UnknownNameError.among(kind, name, points)
    plugin = _describe(points[name])
    if plugin.missing:
        raise MissingPackageError(
            f"{kind} '{name}' needs {', '.join(plugin.missing)}, which is not installed. Run: {plugin.remedy}"
        )
    try:
        return points[name].load()
    except ImportError as error:
        raise MissingPackageError(
            f"{kind} '{name}' ({plugin.target}) cannot be imported: {error}. Install what it needs, or repair the "
            "package that brings it."
        ) from error


def create_profiler(name: str, **options: Any) -> Profiler:
    """A profiler by name, with options such as ``threads`` and ``batch``; see ``load`` for errors."""
    return cast(Profiler, _create(PROFILERS, name, options))


def create_exporter(name: str, **options: Any) -> Exporter:
    """An exporter by name, with options such as ``precision``; see ``load`` for errors."""
    return cast(Exporter, _create(EXPORTERS, name, options))


def _create(group: str, name: str, options: Mapping[str, Any]) -> Any:
    factory: Callable[..., Any] = load(group, name)
    known = inspect.signature(factory).parameters
    unknown = [option for option in options if option not in known]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise UsageError(
            f"{group.removeprefix('hwnas.').removesuffix('s')} '{name}' has no option '{unknown[0]}'; it takes "
            f"{', '.join(known) or 'none'}. Leave it out."
        )
    return factory(**options)


def _describe(point: metadata.EntryPoint) -> Plugin:
    missing = tuple(r for extra in point.extras for r in _requirements(point, extra) if not _installed(r))
    package = point.dist.name if point.dist else "hwnas"
    return Plugin(point.name, point.value, missing, f"pip install '{package}[{','.join(point.extras)}]'")


def _requirements(point: metadata.EntryPoint, extra: str) -> list[str]:
    marker = re.compile(rf"extra\s*==\s*[\"']{re.escape(extra)}[\"']")
    listed = (point.dist.requires if point.dist else None) or []
    return [re.split(r"[\s\[<>=!~;(]", line, maxsplit=1)[0] for line in listed if marker.search(line)]


def _installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
