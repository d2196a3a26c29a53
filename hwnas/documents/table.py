"""What stands beside the rows of a latency table, and in the journal of a sweep."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from hwnas.documents.checking import Count, Figure, Milliseconds


class EnvironmentDocument(TypedDict):
    """Where and how a latency was measured."""

    device: str
    runtime: str
    runtime_version: str
    precision: NotRequired[str]
    batch: NotRequired[Count]
    threads: NotRequired[Count]
    mode: NotRequired[str]
    arguments: NotRequired[dict[str, str]]
    details: NotRequired[dict[str, str]]


class SpaceDocument(TypedDict):
    """What a space is built again from."""

    name: str
    options: dict[str, Figure]
    fingerprint: str


class MeasuredNetwork(TypedDict):
    """A whole network, by the number of the option of every choice."""

    options: list[Count]
    ms: Milliseconds


class Calibration(TypedDict):
    """The measured networks of a space."""

    space: SpaceDocument
    networks: list[MeasuredNetwork]


class Reference(TypedDict):
    """The operator that was timed in between."""

    ms: Milliseconds
    spread: Figure


class Sweep(TypedDict):
    """What one sweep was asked for."""

    plan: NotRequired[dict[str, Any]]


class Provenance(Sweep):
    """How a table came about."""

    date: NotRequired[str]
    command: NotRequired[str]
    reference: NotRequired[Reference]
    earlier: NotRequired[list[Sweep]]


class Sidecar(TypedDict):
    """What stands beside the rows of a table."""

    num_rows: Count
    sha256: str
    environment: EnvironmentDocument
    calibrations: dict[str, Calibration]
    provenance: Provenance


class Begun(TypedDict):
    """First line of a sweep's journal."""

    format: str
    environment: EnvironmentDocument
    plan: dict[str, Any]


class Visited(TypedDict):
    """Line of a sweep's journal."""

    key: str
    visit: Count
    ms: list[Milliseconds]


class Failed(TypedDict):
    """Line of a sweep's journal."""

    key: str
    failed: str
