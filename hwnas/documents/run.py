"""What the files of a run hold."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from hwnas.documents.checking import Count, Figure, Milliseconds, Positive, Share, Within
from hwnas.documents.table import EnvironmentDocument, SpaceDocument


class Origin(TypedDict):
    """When, by what command, on what and with which versions something was made."""

    date: str
    command: str
    hwnas: str
    python: str
    system: str
    packages: dict[str, str]
    gpu: NotRequired[str]
    driver: NotRequired[str]
    cuda: NotRequired[str]


class TableReference(TypedDict):
    """A table, and its hash."""

    path: str
    sha256: str


class RecipeDocument(TypedDict):
    """A method with its arguments."""

    name: str
    arguments: dict[str, Any]


class Config(TypedDict):
    """What a run was asked for."""

    space: SpaceDocument
    table: TableReference
    max_ms: Milliseconds
    recipe: RecipeDocument
    data: str
    seed: Annotated[int, Within(0, 2**64)]
    other_device: bool
    classes: Count | None
    proxy: NotRequired[dict[str, float]]
    weights_from: NotRequired[str | None]
    images: NotRequired[str]
    resolved: NotRequired[str]


class How(TypedDict):
    """How a search is computed."""

    compute: NotRequired[dict[str, Any]]
    ranks: NotRequired[Count]


class ArchitectureDocument(TypedDict):
    """``architecture.json``."""

    space: str
    options: dict[str, str]


class RunDocument(TypedDict):
    """``run.json``."""

    config: Config
    how: NotRequired[How]
    origin: Origin


class Round(TypedDict):
    """One architecture held against the limit."""

    id: str
    architecture: dict[str, str]
    limit_ms: Milliseconds
    predicted_ms: Figure
    measured_ms: Milliseconds | None
    met: bool
    slowdown: Positive
    accuracy: NotRequired[Share]


class ErrorFigures(TypedDict):
    """How far predictions are from measured networks."""

    mape: Figure
    within_5: Figure
    within_10: Figure
    bias: Figure
    spearman: Figure
    num_networks: Count


class Prediction(TypedDict):
    """What is known about a latency model."""

    error: ErrorFigures | None
    baselines: dict[str, ErrorFigures]
    poor: bool


class Layer(TypedDict):
    """One layer of the result."""

    name: str
    operator: str
    predicted_ms: Figure
    macs: Count
    parameters: Count


class PathAccuracies(TypedDict):
    """Accuracy of the result with the supernet's weights."""

    inherited: NotRequired[Share]
    recalibrated: NotRequired[Share]


class Derivation(TypedDict):
    """``derivation.json``."""

    target_ms: Milliseconds
    reachable_ms: list[Figure]
    rounds: list[Round]
    prediction: Prediction
    layers: list[Layer]
    overhead_ms: Figure
    probabilities: dict[str, list[Share]]
    accuracy: PathAccuracies
    num_unreadable: NotRequired[Count]


class Training(TypedDict):
    """``training.json``."""

    architecture: str
    data: str
    classes: list[str]
    mean: list[Figure]
    std: list[Figure]
    num_train: Count
    num_val: Count
    num_unreadable: NotRequired[Count]
    epochs: Count
    accuracy: Share
    top5: NotRequired[Share | None]
    ranks: NotRequired[Count]
    options: NotRequired[dict[str, Any]]
    compute: NotRequired[dict[str, Any]]
    origin: Origin


class Numerics(TypedDict):
    """An exported file against PyTorch."""

    num_images: Count
    max_difference: Figure
    mean_difference: Figure
    min_cosine: Figure
    top1_agreement: Share
    accuracy_pytorch: Share
    accuracy_exported: Share


class Quantiles(TypedDict):
    """Measured latency of an exported file."""

    measured_ms: Milliseconds
    statistic: str
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p99_ms: Milliseconds


class Judged(TypedDict):
    """The same of the file that is held against the target; not measured where its device is elsewhere."""

    measured_ms: Milliseconds | None
    statistic: str
    p50_ms: Milliseconds | None
    p90_ms: Milliseconds | None
    p99_ms: Milliseconds | None
    slowdown: Positive


class LayerTime(TypedDict):
    """One layer of an exported file; the last one is what belongs to none."""

    name: str
    measured_ms: Figure | None


class Proof(TypedDict):
    """An exported file, and where it was timed."""

    file: str
    bytes: Count
    environment: EnvironmentDocument
    numerics: Numerics
    failures: list[str]


class ExportedFile(Proof):
    """One of them; ``note`` says what to know about its latency, if anything."""

    precision: str
    note: str
    latency: Quantiles


class NotRun(TypedDict):
    """A file that there is no proof of."""

    file: str
    reason: str


class Verification(Proof):
    """``verification.json``: of the file that is held against the target, and of all."""

    architecture: str
    latency: Judged
    layers: list[LayerTime]
    files: list[ExportedFile]
    not_run: list[NotRun]
    origin: Origin


class ScoredPath(TypedDict):
    """Line of ``scores.jsonl``."""

    architecture: dict[str, str]
    accuracy: Share
    identity: str
