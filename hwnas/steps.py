"""The steps of a run, each from one folder state to the next: search, train, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hwnas.data import BatchStream, ImageData, load_data
from hwnas.errors import EnvironmentMismatchError, RunError, UsageError
from hwnas.files import read_json, write_atomic, write_json
from hwnas.latency.budget import Budget, feasible_range_ms
from hwnas.latency.model import LatencyModel
from hwnas.latency.table import LatencyTable
from hwnas.metrics import Progress, no_progress
from hwnas.plugins import create_exporter, create_profiler
from hwnas.recipes import create_recipe
from hwnas.run import RunFolder, origin, table_hash
from hwnas.search.loop import SearchResult, search
from hwnas.search.target import DerivationRound, meet_target
from hwnas.space import Architecture, SearchSpace, macs, parameters
from hwnas.supernet.supernet import Network, Supernet, extract, recalibrate_batchnorm
from hwnas.training import TrainingOptions, evaluate, train

if TYPE_CHECKING:
    from hwnas.plugins import Profiler

DEFAULT_TARGET = 0.5
"""Position of the default target between the fastest (0) and the slowest (1) network."""

NUM_RECALIBRATION = 8
"""Training batches for batch-norm statistics of a derived path."""


def default_target_ms(model: LatencyModel) -> float:
    """A limit in the middle of the reachable range, to three digits."""
    low, high = feasible_range_ms(model)
    return float(f"{low + DEFAULT_TARGET * (high - low):.3g}")


def search_run(
    space: SearchSpace,
    table: LatencyTable,
    output: Path | str,
    *,
    data: str = "digits",
    max_ms: float | None = None,
    recipe: str = "gumbel",
    recipe_arguments: dict[str, Any] | None = None,
    seed: int = 0,
    resume: bool = False,
    other_device: bool = False,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> list[DerivationRound]:
    """Searches a space under a limit and writes the run folder.

    Args:
        space: What to choose from.
        table: Latency of its operators; must be saved.
        output: The run folder.
        data: Data set, such as ``digits`` or ``imagenet:PATH``.
        max_ms: The limit; the middle of the reachable range if not given.
        recipe: Name of the method.
        recipe_arguments: Keyword arguments of the method.
        seed: Decides everything random.
        resume: Go on with an interrupted run.
        other_device: Accept a table of another device; nothing is then measured here.
        checkpoint_seconds: Time between checkpoints.
        progress: Told about every step.

    Returns:
        The derivation's rounds; the last one is the result.

    Raises:
        InfeasibleBudgetError: The limit is below the fastest network.
        EnvironmentMismatchError: The table is of another device and ``other_device`` is not set.
        HwnasError: Any other error of the parts; see ``hwnas.errors``.
    """
    model = LatencyModel.from_table(space, table)
    budget = Budget(model, default_target_ms(model) if max_ms is None else max_ms)
    chosen = create_recipe(recipe, **(recipe_arguments or {}))
    images = matching_data(data, space, seed)
    profiler = None if other_device else profiler_of(table)
    config = {
        "space": space.describe(),
        "table": {"path": str(Path(table.path or "").resolve()), "sha256": table_hash(table)},
        "max_ms": budget.max_ms,
        "recipe": {"name": recipe, "arguments": recipe_arguments or {}},
        "data": data,
        "seed": seed,
        "other_device": other_device,
    }
    run = RunFolder.create(output, config, resume=resume)
    result = search(budget, images, chosen, run, seed=seed, checkpoint_seconds=checkpoint_seconds, progress=progress)
    rounds = list(meet_target(chosen.derivation, result.probabilities, budget, profiler))
    write_derivation(run, budget, rounds, result, images)
    return rounds


def tighten_run(run: RunFolder, measured_ms: float, *, num_rounds: int = 1) -> list[DerivationRound]:
    """Derives again after the trained and exported network missed the target.

    Args:
        run: A searched run; keeps its earlier rounds, the last of them with what the exported file measured.
        measured_ms: What the exported file measured.
        num_rounds: Derivations at most.

    Returns:
        The new rounds; empty where nothing faster can be derived.
    """
    budget, config = run.budget(), run.config
    recipe = create_recipe(config["recipe"]["name"], **config["recipe"]["arguments"])
    images = matching_data(config["data"], budget.model.space, config["seed"])
    result = search(budget, images, recipe, run, seed=config["seed"])  # finished: restores the checkpoint
    limit = budget.max_ms * budget.model.exact_ms(run.architecture()) / measured_ms
    rounds = list(
        meet_target(
            recipe.derivation, result.probabilities, budget, profiler_of(run.table()),
            num_rounds=num_rounds, limit_ms=limit,
        )
    )  # fmt: skip
    if rounds:
        earlier = read_json(run.file("derivation.json"))["rounds"]
        earlier[-1] |= {"measured_ms": measured_ms, "met": False}
        write_derivation(run, budget, rounds, result, images, earlier=earlier)
        run.file("training.pt").unlink(missing_ok=True)
    return rounds


def train_run(
    run: RunFolder,
    *,
    data: str | None = None,
    options: TrainingOptions | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Progress = no_progress,
) -> float:
    """Trains the run's architecture from scratch; writes ``weights.safetensors`` and ``training.json``.

    Returns:
        Top-1 accuracy on the held-out images.
    """
    from safetensors.torch import save

    options = options or TrainingOptions()
    space, architecture, seed = run.space(), run.architecture(), run.config["seed"]
    images = matching_data(data or run.config["data"], space, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(space, architecture)
    accuracy = train(
        network, images, run, options=options, seed=seed, identity=architecture.id,
        checkpoint_seconds=checkpoint_seconds, progress=progress,
    )  # fmt: skip
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_atomic(run.file("weights.safetensors"), save(weights, {"architecture": architecture.to_json()}))
    operators = space.operators(architecture)
    write_json(
        run.file("training.json"),
        {
            "accuracy": accuracy,
            "data": images.spec,
            "classes": list(images.classes),
            "mean": list(images.mean),
            "std": list(images.std),
            "num_train": len(images.train),
            "num_val": len(images.val),
            "epochs": options.num_epochs,
            "architecture": architecture.id,
            "parameters": sum(map(parameters, operators)),
            "macs": sum(map(macs, operators)),
            "origin": origin(),
        },
    )
    return accuracy


def trained_network(run: RunFolder) -> Network:
    """The run's network with its trained weights, in evaluation mode.

    Raises:
        RunError: The run is not trained, or its weights belong to another architecture.
    """
    from safetensors import SafetensorError, safe_open

    path, architecture = run.file("weights.safetensors"), run.architecture()
    if not path.exists():
        raise RunError(f"{run.path} has no trained weights. Run 'hwnas train {run.path}' first.")
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("architecture") != architecture.to_json():
                raise RunError(f"{path} belongs to another architecture. Run 'hwnas train {run.path}' again.")
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise RunError(f"{path} cannot be read ({error}). Run 'hwnas train {run.path}' again.") from error
    network = Network(run.space(), architecture)
    network.load_state_dict(weights)
    return network.eval()


def export_run(run: RunFolder, *, exporter: str = "onnx", precision: str = "fp32") -> Path:
    """Exports the trained network with everything needed to use it in the file's metadata."""
    plugin = create_exporter(exporter)
    network, training = trained_network(run), read_json(run.file("training.json"))
    architecture, table, model = run.architecture(), run.table(), run.budget().model
    metadata = {
        "hwnas": origin()["hwnas"],
        "space": model.space.name,
        "architecture": architecture.to_json(),
        "architecture_id": architecture.id,
        "classes": "\n".join(training["classes"]),
        "input_range": "0 1",
        "mean": " ".join(map(repr, training["mean"])),
        "std": " ".join(map(repr, training["std"])),
        "predicted_ms": repr(model.exact_ms(architecture)),
        "latency_table": table.name,
        "environment": str(table.environment),
    }
    path = run.file(f"model{plugin.suffix}")
    return plugin.export(network, path, input_shape=model.space.input_shape, precision=precision, metadata=metadata)


def matching_data(spec: str, space: SearchSpace, seed: int) -> ImageData:
    """A data set at the space's resolution.

    Raises:
        UsageError: It has another number of classes than the space.
    """
    images = load_data(spec, resolution=space.input_shape[1], seed=seed)
    if len(images.classes) != space.num_classes:
        raise UsageError(
            f"data set '{spec}' has {len(images.classes)} classes, space '{space.name}' was built for "
            f"{space.num_classes}. Pass --num-classes {len(images.classes)} when profiling and searching."
        )
    return images


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
    except UsageError as error:
        raise EnvironmentMismatchError(
            f"latency table {table.name} ({environment}) cannot be measured here: {error} "
            "Pass --other-device to search for that device all the same."
        ) from error
    table.require_environment(profiler.environment())
    return profiler


def write_derivation(
    run: RunFolder,
    budget: Budget,
    rounds: list[DerivationRound],
    result: SearchResult,
    data: ImageData,
    *,
    earlier: Sequence[dict[str, Any]] = (),
) -> None:
    """Records how the limit was met, and the architecture that did."""
    model, chosen = budget.model, rounds[-1].architecture
    operators = model.space.operators(chosen)
    write_json(
        run.file("derivation.json"),
        {
            "target_ms": budget.max_ms,
            "reachable_ms": list(feasible_range_ms(model)),
            "met": rounds[-1].met,
            "rounds": [*earlier, *(each.to_dict() for each in rounds)],
            "prediction": {
                "error": model.error.to_dict() if model.error else None,
                "baselines": {name: error.to_dict() for name, error in (model.baselines or {}).items()},
                "poor": model.poor,
            },
            "layers": [
                {
                    "name": name,
                    "operator": str(op),
                    "predicted_ms": ms,
                    "macs": macs(op),
                    "parameters": parameters(op),
                }
                for (name, ms), op in zip(model.layers_ms(chosen), operators, strict=False)
            ],
            "overhead_ms": model.overhead_ms,
            "probabilities": {name: p.tolist() for name, p in result.probabilities.items()},
            "accuracy": _inherited_accuracy(result.supernet, chosen, data, run.config["seed"]),
        },
    )
    run.save_architecture(chosen)


def _inherited_accuracy(supernet: Supernet, architecture: Architecture, data: ImageData, seed: int) -> dict[str, float]:
    """Held-out accuracy of the derived path with the supernet's weights, before and after recalibration."""
    network = extract(supernet, architecture)
    before = evaluate(network, data.val)
    stream = BatchStream(data.train, min(64, len(data.train)), seed=seed, augment=False).batches(0)
    recalibrate_batchnorm(network, (next(stream)[0] for _ in range(NUM_RECALIBRATION)))
    return {"inherited": before, "recalibrated": evaluate(network, data.val)}
